package cli

import (
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
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			source, err := push.Open(args[0], os.TempDir())
			if err != nil {
				return err
			}
			defer source.Close()
			target := push.Target{Base: cl.Base(), Transport: cl.HTTP().Transport, Token: cl.Token(), Agent: "edgectl/" + buildVersion()}
			name := args[1]
			if !strings.Contains(name, "/") { // as in a Compose file: the tenant's own
				tenant := cl.Tenant()
				if tenant == "" {
					tenant = api.DefaultTenant
				}
				name = tenant + "/" + name
			}
			reference, err := target.Reference(name)
			if err != nil {
				return err
			}
			progress, finish := a.progress("pushing "+name, quiet)
			digest, err := push.Push(cmd.Context(), source, target, name, progress)
			finish()
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "%s@%s\n", reference.Context().RepositoryStr(), digest)
			return nil
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	return c
}

// progress draws a bar on standard error where that is a terminal.
func (a *app) progress(what string, quiet bool) (update func(done, total int64), finish func()) {
	var out io.Writer = a.Err
	f, ok := a.Err.(*os.File)
	if quiet || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetDescription(what), progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
	return func(done, total int64) {
		bar.ChangeMax64(max(total, 1))
		_ = bar.Set64(done) // a bar that cannot be drawn hinders no push
	}, func() { _ = bar.Finish() }
}
