package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

// person is what the core tells of somebody.
type person struct {
	UID, Login, Name, Email string
	Disabled, SecondFactor  bool
	Password                bool
	Created                 time.Time
}

// asker asks for what is secret: at a terminal without an echo, else a line of standard input.
type asker struct {
	a     *app
	lines *bufio.Reader
}

func (a *app) asker() *asker {
	return &asker{a: a, lines: bufio.NewReader(io.LimitReader(a.In, 64<<10))}
}

func (q *asker) ask(what string) (string, error) {
	if f, ok := q.a.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(q.a.Err, "%s: ", what)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(q.a.Err)
		return string(b), err
	}
	line, err := q.lines.ReadString('\n')
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", &api.Error{Code: api.Invalid, Message: "standard input has no " + strings.ToLower(what), Remedy: "run it at a terminal, or give one line for each that is asked for", Err: ignoreEOF(err)}
	}
	return line, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// loggedIn is the core's answer to whoever got in.
type loggedIn struct {
	Person person
	Ends   time.Time
	Token  string
}

// passwordLogin gets a session by name, password and, where the core asks for one, code.
func (a *app) passwordLogin(ctx context.Context, c *client.Context, user string) error {
	cl, err := client.New(*c, buildVersion())
	if err != nil {
		return err
	}
	q := a.asker()
	password, err := q.ask("Password")
	if err != nil {
		return err
	}
	in := map[string]any{"login": user, "password": password, "bearer": true}
	var out loggedIn
	err = cl.Do(ctx, http.MethodPost, "/api/v1/login", nil, in, &out)
	var e *api.Error
	if errors.As(err, &e) && e.Field == "code" {
		if in["code"], err = q.ask("Code"); err != nil {
			return err
		}
		err = cl.Do(ctx, http.MethodPost, "/api/v1/login", nil, in, &out)
	}
	if err != nil {
		if errors.As(err, &e) && e.Code == api.Unauthorized {
			e.Remedy = "try again; an administrator resets passwords"
		}
		return err
	}
	c.Token, c.Expires = out.Token, out.Ends
	return nil
}

func (a *app) setupCommand() *cobra.Command {
	var o loginOptions
	c := &cobra.Command{Use: "setup URL", Short: "Become the first administrator of a core, by its one-time token", Args: cobra.ExactArgs(1),
		Long: `Become an administrator of a core, by a one-time token: the core leaves one in
DATA/first-admin.token at its very first start, and ` + "`cored admin-token`" + ` makes others. It
asks for the token and a password; without a terminal they are lines of standard input.`,
		Example: "  edgectl setup https://core.example:8443 --user alice --ca root.crt",
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.user == "" {
				return &api.Error{Code: api.Invalid, Field: "--user", Message: "no name is given", Remedy: "give the name that you will log in by"}
			}
			ctx, err := a.loginContext(cmd.Context(), args[0], &o)
			if err != nil {
				return err
			}
			cl, err := client.New(ctx, buildVersion())
			if err != nil {
				return err
			}
			q := a.asker()
			token, err := q.ask("One-time token")
			if err != nil {
				return err
			}
			password, err := q.ask("New password")
			if err != nil {
				return err
			}
			var out loggedIn
			if err := cl.Do(cmd.Context(), http.MethodPost, "/api/v1/setup", nil, map[string]any{"token": token, "login": o.user, "password": password, "bearer": true}, &out); err != nil {
				return err
			}
			ctx.Token, ctx.Expires = out.Token, out.Ends
			return a.login(cmd.Context(), o.name, ctx)
		}}
	o.flags(c)
	return c
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "End your session, and forget its token", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		// A token of a service account is the core's to revoke, and a session may have ended.
		if err := cl.Do(cmd.Context(), http.MethodPost, "/api/v1/logout", nil, nil, nil); err != nil && api.CodeOf(err) != api.Unauthorized && api.CodeOf(err) != api.Conflict {
			return err
		}
		path, cfg, err := a.config()
		if err != nil {
			return err
		}
		name := a.value(a.context, "EDGECTL_CONTEXT")
		if name == "" {
			name = cfg.Current
		}
		if known := cfg.Contexts[name]; known != nil {
			known.Token, known.Expires = "", time.Time{}
			return cfg.Save(path)
		}
		return nil
	}}
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Say who the core takes you for", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var who struct {
			Name, Account, Person string
			Bindings              []struct{ Role, Tenant, Site, Fleet string }
		}
		if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/whoami", nil, nil, &who); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, printable(who.Name))
		if who.Person != "" {
			fmt.Fprintln(a.Out, "person "+printable(who.Person))
		} else {
			fmt.Fprintln(a.Out, "service account "+printable(who.Account))
		}
		for _, b := range who.Bindings {
			in := b.Tenant
			if b.Site != "" {
				in += ", site " + b.Site
			}
			if b.Fleet != "" {
				in += ", fleet " + b.Fleet
			}
			fmt.Fprintln(a.Out, printable(b.Role+" in "+in))
		}
		return nil
	}}
}

func (a *app) passwordCommand() *cobra.Command {
	var fromToken bool
	c := &cobra.Command{Use: "password", Short: "Set your password; all your sessions end", Args: cobra.NoArgs,
		Long: `Set your password: by the one of now, or with --invited by the token that an administrator
gave you. It asks; without a terminal the answers are lines of standard input.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q, in := a.asker(), map[string]any{}
			if fromToken {
				in["token"], err = q.ask("Token")
			} else {
				in["password"], err = q.ask("Password of now")
			}
			if err == nil {
				in["new"], err = q.ask("New password")
			}
			if err != nil {
				return err
			}
			err = cl.Do(cmd.Context(), http.MethodPost, "/api/v1/password", nil, in, nil)
			var e *api.Error
			if errors.As(err, &e) && e.Field == "code" {
				if in["code"], err = q.ask("Code"); err == nil {
					err = cl.Do(cmd.Context(), http.MethodPost, "/api/v1/password", nil, in, nil)
				}
			}
			if err == nil {
				fmt.Fprintln(a.Out, "the password is set; log in with `edgectl login`")
			}
			return err
		}}
	c.Flags().BoolVar(&fromToken, "invited", false, "by a token that an administrator gave you")
	return c
}

func (a *app) factorCommand() *cobra.Command {
	return &cobra.Command{Use: "factor", Short: "Set up a second factor: codes of an authenticator", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		q, in := a.asker(), map[string]any{}
		if in["password"], err = q.ask("Password"); err != nil {
			return err
		}
		var f struct{ Secret, URI string }
		err = cl.Do(cmd.Context(), http.MethodPost, "/api/v1/factor", nil, in, &f)
		var e *api.Error
		if errors.As(err, &e) && e.Field == "code" { // it takes the place of one that is there
			if in["code"], err = q.ask("Code of now"); err == nil {
				err = cl.Do(cmd.Context(), http.MethodPost, "/api/v1/factor", nil, in, &f)
			}
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(a.Out, "give this to your authenticator:\n  %s\n  %s\n", printable(f.Secret), printable(f.URI))
		code, err := q.ask("Code that it shows")
		if err != nil {
			return err
		}
		var out struct{ RecoveryCodes []string }
		if err := cl.Do(cmd.Context(), http.MethodPut, "/api/v1/factor", nil, map[string]any{"code": code}, &out); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, "a code is asked for from now on. Keep these safe: each takes the place of one code, once:")
		for _, c := range out.RecoveryCodes {
			fmt.Fprintln(a.Out, "  "+printable(c))
		}
		return nil
	}}
}

const peoplePath = "/api/v1/people"

func (a *app) personCommand() *cobra.Command {
	c := &cobra.Command{Use: "person", Short: "Make, disable and reset people"}
	c.AddCommand(&cobra.Command{Use: "list", Short: "List everybody", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var list struct{ Items []person }
		if err := cl.Do(cmd.Context(), http.MethodGet, peoplePath, nil, nil, &list); err != nil {
			return err
		}
		t := &table{header: []string{"UID", "LOGIN", "NAME", "EMAIL", "STATE", "FACTOR", "AGE"}}
		for _, p := range list.Items {
			state, factor := "-", "-"
			switch {
			case p.Disabled:
				state = "disabled"
			case p.Login != "" && !p.Password:
				state = "invited"
			}
			if p.SecondFactor {
				factor = "totp"
			}
			t.rows = append(t.rows, []string{p.UID, orDash(p.Login), orDash(p.Name), orDash(p.Email), state, factor, a.age(&p.Created)})
		}
		t.write(a.Out, true)
		return nil
	}})
	var shown, email string
	create := &cobra.Command{Use: "create LOGIN", Short: "Make a person, and print the token by which they set a password, once", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.invite(cmd.Context(), peoplePath, map[string]any{"login": args[0], "name": shown, "email": email})
	}}
	create.Flags().StringVar(&shown, "name", "", "the name that is shown")
	create.Flags().StringVar(&email, "email", "", "a mere attribute")
	var factor bool
	reset := &cobra.Command{Use: "reset UID", Short: "Take a person's password and sessions, and print a token to set another", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.invite(cmd.Context(), peoplePath+"/"+url.PathEscape(args[0])+"/reset", map[string]any{"secondFactor": factor})
	}}
	reset.Flags().BoolVar(&factor, "second-factor", false, "take the second factor and the recovery codes too")
	turn := func(use, short string, disabled bool) *cobra.Command {
		return &cobra.Command{Use: use + " UID", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.Do(cmd.Context(), http.MethodPatch, peoplePath+"/"+url.PathEscape(args[0]), nil, map[string]any{"disabled": disabled}, nil)
		}}
	}
	c.AddCommand(create, reset, turn("disable", "Shut a person out, at once", true), turn("enable", "Let a person in again", false))
	return c
}

// invite has the core make a token for somebody, and prints it.
func (a *app) invite(ctx context.Context, path string, in map[string]any) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	var out struct {
		Person *person
		Token  string
	}
	if err := cl.Do(ctx, http.MethodPost, path, nil, in, &out); err != nil {
		return err
	}
	if out.Person != nil {
		fmt.Fprintln(a.Err, "person "+printable(out.Person.UID)+"; bindings refer to this uid")
	}
	fmt.Fprintln(a.Err, "they set a password with `edgectl password --invited`, within three days, by this token:")
	fmt.Fprintln(a.Out, printable(out.Token))
	return nil
}
