package agent

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// Bounds of what a manifest's parts may be.
const (
	maxBundle = 1 << 20
	maxBody   = 1 << 20
)

var bodyMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxNestedLevels: 8, MaxArrayElements: 4096, MaxMapPairs: 4096, UTF8: cbor.UTF8RejectInvalid}.DecMode()
	if err != nil {
		panic(err) // constant options: a fault in this file
	}
	return m
}()

// wish is a manifest taken apart.
type wish struct {
	apps    []wantedApp // by name
	configs map[string]api.ConfigData
	sealed  map[string]sealedItem
	// settings and parents are nil when the manifest says nothing of them.
	settings *api.DeviceSettings
	parents  []api.ParentRef
	network  []api.FunctionPolicy
	flows    map[string]api.FlowPolicySpec // by name
	sealing  []byte                        // names the core's sealing key; nil: it was never another
	permits  map[string]api.Permit         // by the key of the item that each is for
	expected string                        // another one: other boxes are expected at the site
}

type wantedApp struct {
	name   string
	bundle manifest.Ref
}

type sealedItem struct {
	gen  uint64
	body []byte
}

// take reads a manifest's items. What it does not understand comes back as findings,
// by item key; the rest stands.
func take(m *manifest.Manifest) (w wish, findings map[string]error) {
	w = wish{configs: map[string]api.ConfigData{}, sealed: map[string]sealedItem{}, flows: map[string]api.FlowPolicySpec{}}
	findings = map[string]error{}
	for key, item := range m.Items {
		if err := w.item(key, item); err != nil {
			findings[key] = err
		}
	}
	slices.SortFunc(w.apps, func(a, b wantedApp) int { return cmp.Compare(a.name, b.name) })
	return w, findings
}

func (w *wish) item(key string, item manifest.Item) error {
	decode := func(to any) error {
		if len(item.Body) > maxBody {
			return api.Errorf(api.TooLarge, "%d bytes", len(item.Body))
		}
		return bodyMode.Unmarshal(item.Body, to)
	}
	prefix, name, _ := strings.Cut(key, "/")
	switch {
	case prefix+"/" == manifest.PrefixApp:
		if len(item.Refs) == 0 {
			return api.Errorf(api.Invalid, "the app names no bundle")
		}
		w.apps = append(w.apps, wantedApp{name, item.Refs[0]})
	case prefix+"/" == manifest.PrefixConfig:
		var c api.ConfigData
		if err := decode(&c); err != nil {
			return err
		}
		w.configs[name] = c
	case prefix+"/" == manifest.PrefixSecret:
		w.sealed[name] = sealedItem{item.Gen, item.Body}
	case prefix+"/" == manifest.PrefixFlow:
		var p api.FlowPolicySpec
		if err := decode(&p); err != nil {
			return err
		}
		w.flows[name] = p
	case key == manifest.KeyDevice:
		w.settings = new(api.DeviceSettings)
		return decode(w.settings)
	case key == manifest.KeyNetwork:
		return decode(&w.network)
	case key == manifest.KeyParents:
		return decode(&w.parents)
	case key == manifest.KeyPermits:
		return decode(&w.permits)
	case key == manifest.KeyRevoked: // the link's
		return nil
	case key == manifest.KeyExpected: // the greeter's
		w.expected = string(item.Body)
		return nil
	case key == manifest.KeyRelease: // the update's
		return nil
	case key == manifest.KeySealing:
		return decode(&w.sealing)
	case key == manifest.KeyUnlock: // the console's
		return nil
	default:
		return api.Errorf(api.Invalid, "this version does not know what it is")
	}
	return nil
}

// parseBundle reads an app bundle for the app of the given name.
func parseBundle(raw []byte, name string) (b api.Bundle, err error) {
	if len(raw) > maxBundle {
		return b, api.Errorf(api.TooLarge, "a bundle of %d bytes", len(raw))
	}
	if err := json.Unmarshal(raw, &b); err != nil {
		return b, &api.Error{Code: api.Invalid, Message: "the bundle does not decode", Err: err}
	}
	if b.Version != 1 && b.Version != 2 || b.App != name {
		return b, api.Errorf(api.Invalid, "a bundle of version %d for app %q", b.Version, b.App)
	}
	return b, nil
}

// needs lists the configs and secrets that a bundle names.
func needs(b *api.Bundle) (configs, secrets []string) {
	for _, s := range b.Services {
		configs = append(configs, s.EnvConfig...)
		for _, m := range s.Mounts {
			name, _, _ := strings.Cut(m.Source, "/")
			switch {
			case m.Kind == api.MountConfig && name != "":
				configs = append(configs, name)
			case m.Kind == api.MountSecret:
				secrets = append(secrets, name)
			}
		}
	}
	slices.Sort(configs)
	slices.Sort(secrets)
	return slices.Compact(configs), slices.Compact(secrets)
}

// pick takes the named entries; missing lists the names that are not there.
func pick[T any](from map[string]T, names []string) (out map[string]T, missing []string) {
	out = map[string]T{}
	for _, n := range names {
		v, ok := from[n]
		if !ok {
			missing = append(missing, n)
			continue
		}
		out[n] = v
	}
	return out, missing
}

// version orders manifests.
type version struct{ epoch, gen uint64 }

// outcome is what the desired loop made of the newest manifest.
type outcome struct {
	of version
	// wanted is the bundle digest of each app; unready tells why an app could not be
	// made ready; an app in both keeps what it had.
	wanted  map[string]string
	unready map[string]string
	// applied is the newest manifest of which every item was taken and acted upon.
	applied version
}

// acted reports whether every item of the manifest was taken and acted upon, and nothing
// else is here. How it went does not matter: an app that fails, or an update that was
// rejected, tells so itself, and must not hide what became of the others.
func (o *outcome) acted(status []api.AppStatus) bool {
	if o.of == (version{}) || len(o.unready) > 0 {
		return false
	}
	seen := 0
	for _, s := range status {
		digest, wanted := o.wanted[s.Name]
		if !wanted || s.Taken != digest {
			return false
		}
		seen++
	}
	return seen == len(o.wanted)
}

// statuses are the runtime's, and one for each wanted app that it does not know yet.
func (o *outcome) statuses(status []api.AppStatus) []api.AppStatus {
	out := slices.Clone(status)
	for _, name := range slices.Sorted(maps.Keys(o.wanted)) {
		if slices.ContainsFunc(out, func(s api.AppStatus) bool { return s.Name == name }) {
			continue
		}
		out = append(out, api.AppStatus{Name: name, State: api.Pending, Message: o.unready[name]})
	}
	return out
}

// mergeWarnings keeps one of each name, the gravest and oldest, in the order of names.
func mergeWarnings(all []api.Warning) []api.Warning {
	grave := map[api.Severity]int{api.Info: 1, api.Degraded: 2, api.Critical: 3}
	by := map[string]api.Warning{}
	for _, w := range all {
		old, ok := by[w.Name]
		if !ok || grave[w.Severity] > grave[old.Severity] || grave[w.Severity] == grave[old.Severity] && w.Since < old.Since {
			by[w.Name] = w
		}
	}
	out := []api.Warning{}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		out = append(out, by[name])
	}
	return out
}

// unreadyWarning sums up what could not be made ready.
func unreadyWarning(unready map[string]string, findings map[string]error) (message string) {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(unready)) {
		parts = append(parts, fmt.Sprintf("app %s: %s", name, unready[name]))
	}
	for _, key := range slices.Sorted(maps.Keys(findings)) {
		parts = append(parts, fmt.Sprintf("%s: %v", key, findings[key]))
	}
	if len(parts) > 5 {
		parts = append(parts[:5], fmt.Sprintf("and %d more", len(parts)-5))
	}
	return strings.Join(parts, "; ")
}
