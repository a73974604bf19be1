package fleet

import (
	"crypto/sha256"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// First is what a device of a tenant with labels of people's would run now: apps and
// configs, for one that is expected and may not reach the core on its first day. Secrets
// are left out, which are sealed to a key that nobody knows yet, and so is what only a
// member heeds.
func (l *Loop) First(tenant string, labels map[string]string) map[string]manifest.Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.worlds.tenants[tenant]; t != nil {
		return t.first(labels)
	}
	return nil
}

func (w *World) first(labels map[string]string) map[string]manifest.Item {
	out := map[string]manifest.Item{}
	for key, want := range Desire(&Device{Labels: labels}, w, w.Selected(labels)) {
		if want.Plain == nil && (strings.HasPrefix(key, manifest.PrefixApp) || strings.HasPrefix(key, manifest.PrefixConfig)) {
			out[key] = manifest.Item{Gen: 1, Refs: want.Refs, Body: want.Body}
		}
	}
	return out
}

// Awaited is a box that a relay may greet while the core is away.
type Awaited struct {
	Serial string
	// Tag is another one when what the box is to be told is.
	Tag [sha256.Size]byte
}

// Leads tells whether a device is a relay itself, or stands above it as far as is known by now: what is for one passes
// the others.
func (l *Loop) Leads(by, relay api.DeviceID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range maxDepth {
		if by == relay {
			return true
		}
		e := l.worlds.byID[relay]
		if e == nil {
			return false
		}
		next, err := api.ParseDeviceID(e.parent)
		if err != nil { // the core's, or nobody's
			return false
		}
		relay = next
	}
	return false
}

// AwaitedAt lists the boxes that may come by way of a relay: those of its tenant that are expected
// at its site or anywhere, by serial number. Of a device that is not known, none may.
func (l *Loop) AwaitedAt(relay api.DeviceID) []Awaited {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.worlds.byID[relay]
	if e == nil || l.worlds.tenants[e.Tenant] == nil {
		return nil
	}
	var out []Awaited
	for _, x := range l.worlds.tenants[e.Tenant].Expected {
		if x.at(e.Spec.Site) {
			out = append(out, Awaited{x.Serial, sha256.Sum256(append(x.Spec[:], x.First[:]...))})
		}
	}
	slices.SortFunc(out, func(a, b Awaited) int { return strings.Compare(a.Serial, b.Serial) })
	return out
}

// firstOf stands for what boxes with labels would run at first. Most have the same labels, so that
// it is made once for all of them.
func (t *tenant) firstOf(labels map[string]string) [sha256.Size]byte {
	key := string(encode(labels))
	sum, ok := t.firsts[key]
	if !ok {
		sum = sha256.Sum256(encode(t.first(labels)))
		if t.firsts == nil {
			t.firsts = map[string][sha256.Size]byte{}
		}
		t.firsts[key] = sum
	}
	return sum
}

// settle adds the relays by which boxes may come for whom the fleets have something else now.
func (w *worlds) settle(d dirty) {
	for _, t := range w.tenants {
		if !t.unsettled {
			continue
		}
		t.unsettled, t.firsts = false, nil
		sites := map[string]bool{}
		for name, e := range t.Expected {
			if sum := t.firstOf(e.Labels); sum != e.First {
				e.First = sum
				t.Expected[name] = e
				sites[e.Site] = true
			}
		}
		if len(sites) > 0 {
			d.where(t, func(e *entry) bool { return e.relay && (sites[""] || sites[e.Spec.Site]) })
		}
	}
}
