// Package cli answers: what can a person ask of the core from a shell, and how does
// the answer look?
//
// Exit codes: 0 done; 1 a fault of ours; 2 the request can never succeed as written;
// 3 not found; 4 conflict; 5 not allowed; 6 not reachable, try again; 10 `diff` found
// differences; `exec` passes on the exit code of the program it ran; 130 interrupted.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/flagvalue"
)

// Streams are the three of a process.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// The exit codes that api.Code does not give.
const (
	exitDifferent   = 10
	exitInterrupted = 130
)

// exitError ends the program with a code and no message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// app is what every command needs.
type app struct {
	Streams
	env func(string) (string, bool)
	now func() time.Time

	// Flags of every command.
	server, token, ca, tenant, context string

	// parents has the names of devices by id, once they were looked up.
	parents map[string]string
	// fleets are known while apps are shown.
	fleets []fleetView
}

// Main runs edgectl and returns its exit code.
func Main(ctx context.Context, args []string, s Streams, env func(string) (string, bool)) int {
	a := &app{Streams: s, env: env, now: time.Now}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	return a.finish(ctx, err)
}

// finish tells a person what went wrong and picks the exit code.
func (a *app) finish(ctx context.Context, err error) int {
	var exit exitError
	var e *api.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(a.Err, "interrupted")
		return exitInterrupted
	case errors.As(err, &e):
		a.printError(e)
		return e.Code.ExitCode()
	default: // cobra's own, about flags and arguments
		fmt.Fprintf(a.Err, "error: %v\n", err)
		return api.Invalid.ExitCode()
	}
}

// printError writes a finding a line, its remedy below.
func (a *app) printError(e *api.Error) {
	one := func(e *api.Error, head string) {
		var b strings.Builder
		b.WriteString(head)
		if e.Line > 0 {
			fmt.Fprintf(&b, "line %d: ", e.Line)
		}
		if e.Field != "" {
			b.WriteString(e.Field + ": ")
		}
		b.WriteString(e.Message)
		if e.Err != nil {
			fmt.Fprintf(&b, ": %v", e.Err)
		}
		fmt.Fprintln(a.Err, printable(b.String()))
		if e.Remedy != "" {
			fmt.Fprintln(a.Err, "  → "+printable(e.Remedy))
		}
	}
	one(e, "error: ")
	for _, c := range e.Causes {
		one(c, "- ")
	}
}

// printable keeps what the core or a device sends from steering the terminal, and from being shown in another order
// than it stands.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return -1
		}
		return r
	}, s)
}

// version is set by the linker; else the module's.
var version = ""

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "edgectl", Short: "Tell a tree of boxes what to run, and see what it does",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetFlagErrorFunc(flagvalue.Explain)
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", "", "address of the core, https://HOST:8443 (EDGECTL_SERVER)")
	f.StringVar(&a.token, "token", "", "your token (EDGECTL_TOKEN)")
	f.StringVar(&a.ca, "ca", "", "file with the core's root certificate in PEM (EDGECTL_CA)")
	f.StringVar(&a.tenant, "tenant", "", "tenant (EDGECTL_TENANT); default \"default\"")
	f.StringVar(&a.context, "context", "", "context of the configuration file (EDGECTL_CONTEXT)")
	root.AddGroup(&cobra.Group{ID: "objects", Title: "Objects:"}, &cobra.Group{ID: "devices", Title: "Devices:"}, &cobra.Group{ID: "billing", Title: "Billing:"}, &cobra.Group{ID: "setup", Title: "Setup:"})
	for group, commands := range map[string][]*cobra.Command{
		"objects": {a.applyCommand(), a.getCommand(), a.describeCommand(), a.deleteCommand(), a.diffCommand(), a.appCommand(), a.rolloutCommand(), a.trainingCommand()},
		"devices": {a.deviceCommand(), a.incidentCommand(), a.logsCommand(), a.execCommand(), a.forwardCommand(), a.topCommand(), a.consoleCommand(), a.recordsCommand(), a.usageCommand(), a.eventsCommand(), a.auditCommand()},
		"billing": {a.costCommand(), a.billingCommand(), a.invoiceCommand()},
		"setup":   {a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.setupCommand(), a.passwordCommand(), a.factorCommand(), a.personCommand(), a.contextCommand(), a.tokenCommand(), a.voucherCommand(), a.hwCommand(), a.releaseCommand(), a.schemaCommand(), a.versionCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	showUsage(root)
	return root
}

// showUsage has every command say, when it is given too few or too many arguments, which
// it takes.
func showUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			var e *api.Error
			if err == nil || errors.As(err, &e) {
				return err
			}
			return &api.Error{Code: api.Invalid, Message: err.Error(), Remedy: "usage: " + c.UseLine()}
		}
	}
	for _, sub := range c.Commands() {
		showUsage(sub)
	}
}

// value prefers a flag to a variable of the environment.
func (a *app) value(flag, variable string) string {
	if flag != "" {
		return flag
	}
	v, _ := a.env(variable)
	return v
}

// resolve finds out which core to speak with: flags, then environment, then the
// chosen context of the configuration file.
func (a *app) resolve() (client.Context, error) {
	var c client.Context
	path, err := client.Path(a.env)
	if err == nil {
		var cfg *client.Config
		if cfg, err = client.Load(path); err != nil {
			return c, err
		}
		name := a.value(a.context, "EDGECTL_CONTEXT")
		if named := name != ""; !named {
			name = cfg.Current
		}
		if known := cfg.Contexts[name]; known != nil {
			c = *known
		} else if a.value(a.context, "EDGECTL_CONTEXT") != "" {
			return c, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("there is no context %q", name), Remedy: "see `edgectl context list`, or log in"}
		}
	}
	if v := a.value(a.server, "EDGECTL_SERVER"); v != "" && v != c.Server {
		c = client.Context{Server: v, Tenant: c.Tenant} // another core's token and CA are not for this one
	}
	if v := a.value(a.token, "EDGECTL_TOKEN"); v != "" {
		c.Token = v
	}
	if v := a.value(a.tenant, "EDGECTL_TENANT"); v != "" {
		c.Tenant = v
	}
	if v := a.value(a.ca, "EDGECTL_CA"); v != "" {
		if c.CA, err = readCA(v); err != nil {
			return c, err
		}
	}
	return c, nil
}

func readCA(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", &api.Error{Code: api.Invalid, Message: "the CA file cannot be read", Remedy: "give the core's root certificate in PEM (DATA/ca/root.crt on the core)", Err: err}
	}
	return string(b), nil
}

func (a *app) client() (*client.Client, error) {
	c, err := a.resolve()
	if err != nil {
		return nil, err
	}
	return client.New(c, buildVersion())
}
