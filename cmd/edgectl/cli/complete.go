package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

const noFiles = cobra.ShellCompDirectiveNoFileComp

// names lists the names of a kind for the shell; a core that does not answer soon
// completes nothing.
func (a *app) names(ctx context.Context, kind string) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	k, err := api.LookupKind(kind)
	if err != nil {
		return nil
	}
	cl, err := a.client()
	if err != nil {
		return nil
	}
	objects, err := cl.List(ctx, k, client.ListOptions{})
	if err != nil {
		return nil
	}
	names := make([]string, len(objects))
	for i, o := range objects {
		names[i] = o.Metadata.Name
	}
	return names
}

func (a *app) completeObjects(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && !strings.Contains(args[0], "/") {
		return a.names(cmd.Context(), args[0]), noFiles
	}
	kind, _, named := strings.Cut(word, "/")
	if !named {
		return plurals(), noFiles
	}
	list := a.names(cmd.Context(), kind)
	for i := range list {
		list[i] = kind + "/" + list[i]
	}
	return list, noFiles
}

func (a *app) completeDevices(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.names(cmd.Context(), api.KindDevice), noFiles
}

func (a *app) completeDevice(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return a.completeDevices(cmd, args, word)
}

// completeDeviceService offers devices, then the services that run on the chosen one.
func (a *app) completeDeviceService(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeDevices(cmd, args, word)
	case 1:
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		k, err := api.LookupKind(api.KindDevice)
		if err != nil {
			return nil, noFiles
		}
		cl, err := a.client()
		if err != nil {
			return nil, noFiles
		}
		o, err := cl.Get(ctx, k, args[0])
		if err != nil {
			return nil, noFiles
		}
		var st api.DeviceStatus
		_ = readStatus(o, &st)
		var list []string
		for _, app := range st.Apps {
			for _, s := range app.Services {
				list = append(list, app.Name+"/"+s.Name)
			}
		}
		return list, noFiles
	}
	return nil, noFiles
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	_, cfg, err := a.config()
	if err != nil {
		return nil, noFiles
	}
	return sortedContexts(cfg), noFiles
}
