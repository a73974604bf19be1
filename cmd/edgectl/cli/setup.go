package cli

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// loginOptions are the flags by which one says which core, and who.
type loginOptions struct {
	name, pin, user string
	tokenStdin      bool
}

func (o *loginOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "name of the context; default the host")
	f.StringVar(&o.pin, "ca-pin", "", "SHA-256 of the core's root certificate, in hex")
	f.StringVar(&o.user, "user", "", "the name of your account")
}

// loginContext reads which core is meant, and how it is trusted.
func (a *app) loginContext(ctx context.Context, address string, o *loginOptions) (c client.Context, err error) {
	base, err := client.BaseURL(address)
	if err != nil {
		return c, err
	}
	if o.name == "" {
		o.name = base.Hostname()
	}
	c = client.Context{Server: base.String(), Tenant: a.value(a.tenant, "EDGECTL_TENANT")}
	switch ca := a.value(a.ca, "EDGECTL_CA"); {
	case ca != "":
		c.CA, err = readCA(ca)
	case o.pin != "":
		c.CA, err = fetchRoot(ctx, c.Server, o.pin)
	}
	return c, err
}

func (a *app) loginCommand() *cobra.Command {
	var o loginOptions
	c := &cobra.Command{
		Use: "login URL", Short: "Log in to a core, or remember your token for it", Args: cobra.ExactArgs(1),
		Long: `Log in to a core by name, password and code (--user), or remember a token for it, in
~/.config/tributary/edgectl.yaml (mode 0600, or EDGECTL_CONFIG). Password and code are asked
for; without a terminal they are lines of standard input. The core's certificate is checked
against --ca, or against the root certificate that the core shows and whose SHA-256 is
--ca-pin; with neither, against the roots of this machine. The token and the address are
tried before they are kept.`,
		Example: "  edgectl login https://core.example:8443 --user alice --ca root.crt\n  edgectl login https://core.example:8443 --token-stdin --ca root.crt < admin.token\n  edgectl login https://core.example:8443 --token T --ca-pin 3f…",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, err := a.loginContext(cmd.Context(), args[0], &o)
			if err != nil {
				return err
			}
			if o.user != "" {
				if err := a.passwordLogin(cmd.Context(), &ctx, o.user); err != nil {
					return err
				}
				return a.login(cmd.Context(), o.name, ctx)
			}
			ctx.Token = a.value(a.token, "EDGECTL_TOKEN")
			if o.tokenStdin {
				b, err := io.ReadAll(io.LimitReader(a.In, 4096))
				if err != nil {
					return err
				}
				ctx.Token = strings.TrimSpace(string(b))
			}
			if ctx.Token == "" {
				return &api.Error{Code: api.Unauthorized, Message: "there is neither a name nor a token", Remedy: "give --user, or --token or --token-stdin; the first token lies in DATA/admin.token on the core, others are made by `cored token create`"}
			}
			return a.login(cmd.Context(), o.name, ctx)
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&o.tokenStdin, "token-stdin", false, "read the token from standard input")
	c.MarkFlagsMutuallyExclusive("user", "token-stdin")
	return c
}

// login tries the core, then keeps it.
func (a *app) login(ctx context.Context, name string, c client.Context) error {
	cl, err := client.New(c, buildVersion())
	if err != nil {
		return err
	}
	var who struct{ Name, Role string }
	if err := cl.Do(ctx, http.MethodGet, "/api/v1/whoami", nil, nil, &who); err != nil {
		return err
	}
	path, err := client.Path(a.env)
	if err != nil {
		return err
	}
	cfg, err := client.Load(path)
	if err != nil {
		return err
	}
	cfg.Contexts[name] = &c
	cfg.Current = name
	if err := cfg.Save(path); err != nil {
		return &api.Error{Code: api.Invalid, Message: "the configuration cannot be kept", Remedy: "check " + path, Err: err}
	}
	fmt.Fprintf(a.Out, "logged in to %s as %s (%s); context %s\n", c.Server, who.Name, who.Role, name)
	return nil
}

// fetchRoot gets the core's root certificate and checks it against its fingerprint.
func fetchRoot(ctx context.Context, server, pin string) (string, error) {
	var fp [sha256.Size]byte
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(pin), "sha256:"), ":", ""))
	if err != nil || len(b) != len(fp) {
		// Join tokens carry the same fingerprint in base64url.
		if b, err = base64.RawURLEncoding.DecodeString(pin); err != nil || len(b) != len(fp) {
			return "", &api.Error{Code: api.Invalid, Field: "--ca-pin", Message: "this is not a SHA-256", Remedy: "give 64 hex digits, as `sha256sum` of the root certificate's DER or `cored` print them"}
		}
	}
	copy(fp[:], b)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	trust, err := identity.FetchTrust(ctx, nil, server, fp)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trust.Root.Raw})), nil
}

func (a *app) contextCommand() *cobra.Command {
	c := &cobra.Command{Use: "context", Short: "List, choose or forget cores"}
	edit := func(use, short string, change func(cfg *client.Config, name string)) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
			RunE: func(_ *cobra.Command, args []string) error {
				path, cfg, err := a.config()
				if err != nil {
					return err
				}
				if cfg.Contexts[args[0]] == nil {
					return &api.Error{Code: api.NotFound, Message: fmt.Sprintf("there is no context %q", args[0]), Remedy: "see `edgectl context list`"}
				}
				change(cfg, args[0])
				return cfg.Save(path)
			}}
	}
	c.AddCommand(
		&cobra.Command{Use: "list", Short: "List the cores that are known", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			_, cfg, err := a.config()
			if err != nil {
				return err
			}
			if len(cfg.Contexts) == 0 {
				fmt.Fprintln(a.Err, "no core is known; run `edgectl login`")
				return nil
			}
			t := &table{header: []string{"", "NAME", "SERVER", "TENANT"}}
			for _, name := range sortedContexts(cfg) {
				mark := ""
				if name == cfg.Current {
					mark = "*"
				}
				t.rows = append(t.rows, []string{mark, name, cfg.Contexts[name].Server, orDash(cfg.Contexts[name].Tenant)})
			}
			t.write(a.Out, true)
			return nil
		}},
		edit("use", "Speak with another core", func(cfg *client.Config, name string) { cfg.Current = name }),
		edit("delete", "Forget a core and the token for it", func(cfg *client.Config, name string) {
			delete(cfg.Contexts, name)
			if cfg.Current == name {
				cfg.Current = ""
			}
		}),
	)
	return c
}

func (a *app) config() (string, *client.Config, error) {
	path, err := client.Path(a.env)
	if err != nil {
		return "", nil, err
	}
	cfg, err := client.Load(path)
	return path, cfg, err
}

func sortedContexts(cfg *client.Config) []string {
	names := make([]string, 0, len(cfg.Contexts))
	for name := range cfg.Contexts {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema [KIND]", Short: "Print the JSON Schema of a kind, or of all, for editors", Args: cobra.MaximumNArgs(1),
		ValidArgs: api.KindNames(),
		RunE: func(_ *cobra.Command, args []string) error {
			schema, err := api.CombinedSchema()
			if len(args) == 1 {
				schema, err = api.Schema(args[0])
			}
			if err != nil {
				return err
			}
			_, err = a.Out.Write(append(schema, '\n'))
			return err
		},
	}
}

func (a *app) versionCommand() *cobra.Command {
	var alone bool
	c := &cobra.Command{
		Use: "version", Short: "Print the versions of edgectl and the core", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(a.Out, "edgectl "+buildVersion())
			if alone {
				return nil
			}
			c, err := a.resolve()
			if err != nil || c.Server == "" {
				return err
			}
			cl, err := client.New(c, buildVersion())
			if err != nil {
				return err
			}
			var v struct {
				Version string `json:"version"`
			}
			if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/version", nil, nil, &v); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, "core "+printable(v.Version))
			return nil
		},
	}
	c.Flags().BoolVar(&alone, "client", false, "ask no core")
	return c
}
