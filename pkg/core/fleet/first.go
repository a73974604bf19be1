package fleet

import (
	"strings"

	"tributary.dev/tributary/pkg/manifest"
)

// First is what a device of a tenant with labels of people's would run now: apps and
// configs, for one that is expected and may not reach the core on its first day. Secrets
// are left out, which are sealed to a key that nobody knows yet, and so is what only a
// member heeds.
func (l *Loop) First(tenant, name string, labels map[string]string) map[string]manifest.Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.worlds.tenants[tenant]
	if t == nil {
		return nil
	}
	out := map[string]manifest.Item{}
	for key, w := range Desire(&Device{Tenant: tenant, Name: name, Labels: labels}, &t.World, t.Selected(labels)) {
		if w.Plain == nil && (strings.HasPrefix(key, manifest.PrefixApp) || strings.HasPrefix(key, manifest.PrefixConfig)) {
			out[key] = manifest.Item{Gen: 1, Refs: w.Refs, Body: w.Body}
		}
	}
	return out
}
