package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tributary.dev/tributary/cmd/edgectl/push"
	"tributary.dev/tributary/pkg/api"
)

func (a *app) appCommand() *cobra.Command {
	c := &cobra.Command{Use: "app", Short: "Push images of apps"}
	c.AddCommand(a.pushCommand())
	return c
}

func (a *app) pushCommand() *cobra.Command {
	var quiet bool
	c := &cobra.Command{
		Use: "push SOURCE [TENANT/]NAME[:TAG]", Short: "Push an image into the core's registry", Args: cobra.ExactArgs(2),
		Long: `Push an image into the core's registry by the ordinary protocol of OCI registries.
SOURCE is an OCI image layout, as a folder or a tar, or the output of ` + "`docker save`" + `.
What the registry has already is not sent again. The pushed image is printed by digest.`,
		Example: "  edgectl app push web/ default/web:1\n  docker save web:1 -o web.tar && edgectl app push web.tar default/web:1",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.push(cmd.Context(), args[0], args[1], quiet) },
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	return c
}

// push sends what lies at path to the core's registry, and prints it by digest.
func (a *app) push(ctx context.Context, path, name string, quiet bool) error {
	artifact, err := a.pushed(ctx, path, name, quiet)
	if err == nil {
		_, err = fmt.Fprintln(a.Out, artifact)
	}
	return err
}

// pushed sends it, and answers what it is called by digest.
func (a *app) pushed(ctx context.Context, path, name string, quiet bool) (artifact string, err error) {
	cl, err := a.client()
	if err != nil {
		return "", err
	}
	source, err := push.Open(path, os.TempDir())
	if err != nil {
		return "", err
	}
	defer source.Close()
	target := push.Target{Base: cl.Base(), Transport: cl.HTTP().Transport, Token: cl.Token(), Agent: "edgectl/" + buildVersion()}
	if !strings.Contains(name, "/") { // as in a Compose file: the tenant's own
		tenant := cl.Tenant()
		if tenant == "" {
			tenant = api.DefaultTenant
		}
		name = tenant + "/" + name
	}
	reference, err := target.Reference(name)
	if err != nil {
		return "", err
	}
	progress, finish := a.progress("pushing "+name, quiet)
	digest, err := push.Push(ctx, source, target, name, progress)
	finish()
	return reference.Context().RepositoryStr() + "@" + digest, err
}

// progress draws a bar on standard error where that is a terminal.
func (a *app) progress(what string, quiet bool) (update func(done, total int64), finish func()) {
	var out io.Writer = a.Err
	f, ok := a.Err.(*os.File)
	if quiet || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	// Without a spinner: its goroutine reads the bar's state without the bar's lock (v3.19.1, IsStarted).
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetSpinnerChangeInterval(0), progressbar.OptionSetDescription(what), progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
	return func(done, total int64) {
		bar.ChangeMax64(max(total, 1))
		_ = bar.Set64(done) // a bar that cannot be drawn hinders no push
	}, func() { _ = bar.Finish() }
}
