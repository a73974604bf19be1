package agent

import (
	"context"
	"log/slog"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
)

// First makes the apps ready that items name, for a box that is no member yet: their
// bundles are fetched and kept as a member's are. An app that cannot be made ready is in
// the set, held, and its reason in unready, with those of items that are not understood.
func First(ctx context.Context, items map[string]manifest.Item, kept *state.Store, from oci.Upstream, log *slog.Logger) (apps []workload.App, unready map[string]string) {
	a := &Agent{cfg: Config{State: kept, Artifacts: from, Log: log}}
	w, findings := take(&manifest.Manifest{Items: items})
	unready = map[string]string{}
	for key, err := range findings {
		unready[key] = err.Error()
	}
	for _, want := range w.apps {
		app, err := a.prepare(ctx, want, w.configs, nil)
		if err != nil {
			unready[want.name] = err.Error()
			app = workload.App{Bundle: api.Bundle{App: want.name}, Hold: err.Error()}
		}
		apps = append(apps, app)
	}
	return apps, unready
}
