package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/manifest"
)

// A World is made of the revisions that devices were given, never of what people wrote last. Most
// devices have the same: the tenant's World. One that has revisions of its own, while a rollout is
// under way or since it was pinned, is rendered from a view: the tenant's World with those in place.

// givenBy lists the objects of which a batch of changes may have given other revisions to devices.
func givenBy(events []store.Event) []api.Key {
	keys := []api.Key{}
	for _, e := range events {
		switch o := e.Object; {
		case api.HasRevisions(o.Kind):
			keys = append(keys, o.Key())
		case o.Kind == api.KindRollout && e.Type != store.Deleted:
			keys = append(keys, changedBy(o)...)
		}
	}
	slices.SortFunc(keys, func(a, b api.Key) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(keys)
}

// changedBy lists the objects that a Rollout gives revisions of.
func changedBy(o *api.Object) (keys []api.Key) {
	var status api.RolloutStatus
	if decode(o.Status, &status) != nil {
		return nil
	}
	for _, c := range status.Change {
		keys = append(keys, api.Key{Tenant: o.Metadata.Tenant, Kind: c.Kind, Name: c.Name})
	}
	return keys
}

// take takes an object in, as devices were given it.
func (l *Loop) take(o *api.Object, given map[api.Key]*store.Given, d dirty) {
	keys := []api.Key{o.Key()}
	switch {
	case o.Kind == api.KindRollout:
		keys = changedBy(o)
	case !api.HasRevisions(o.Kind):
		if err := l.worlds.set(o, d); err != nil {
			l.cfg.Log.Error("an object cannot be read; it is passed over", "err", err)
		}
		if o.Kind == api.KindTenant { // what it wants is in every view
			l.worlds.tenant(o.Metadata.Name).views = nil
		}
		return
	}
	for _, key := range keys {
		if err := l.worlds.give(key, given[key], d); err != nil {
			l.cfg.Log.Error("a revision cannot be read; it is passed over", "err", err)
		}
	}
}

// give takes in who has which revision of an object, and adds the devices that this concerns.
func (w *worlds) give(key api.Key, next *store.Given, d dirty) error {
	t := w.tenant(key.Tenant)
	old := t.given[key]
	if next == nil {
		next = &store.Given{}
	}
	for id, own := range next.Own {
		if e := w.byID[id]; e != nil && (old == nil || !same(old.Own[id], own, old, next)) {
			if e.own == nil {
				e.own = map[api.Key]store.OwnRevision{}
			}
			e.own[key] = own
			d[e] = true
		}
	}
	if old != nil {
		for id := range old.Own {
			if _, still := next.Own[id]; !still && w.byID[id] != nil {
				delete(w.byID[id].own, key)
				d[w.byID[id]] = true
			}
		}
	}
	t.given[key] = next
	if old != nil && digestOf(old, old.All) == digestOf(next, next.All) {
		return nil
	}
	t.views = nil
	d.where(t, func(e *entry) bool { return len(e.own) > 0 })
	r := next.Revisions[next.All]
	if r == nil { // nobody was given any yet
		w.unset(key, d)
		return nil
	}
	return w.set(r.Object(), d)
}

func same(a, b store.OwnRevision, from, to *store.Given) bool {
	if (a.Permit == nil) != (b.Permit == nil) || a.Permit != nil && *a.Permit != *b.Permit {
		return false
	}
	return a.Number == b.Number && digestOf(from, a.Number) == digestOf(to, b.Number)
}

// digestOf names a revision's content: numbers begin anew when an object is deleted and made again.
func digestOf(g *store.Given, number int64) string {
	if r := g.Revisions[number]; r != nil {
		return r.Digest
	}
	return ""
}

// ownOf is what a device that comes has of its own.
func (t *tenant) ownOf(id api.DeviceID) (own map[api.Key]store.OwnRevision) {
	for key, g := range t.given {
		if o, ok := g.Own[id]; ok {
			if own == nil {
				own = map[api.Key]store.OwnRevision{}
			}
			own[key] = o
		}
	}
	return own
}

// viewOf is the world that a device is rendered from. Devices that have the same of their own share
// one. Calls that make one must not run side by side.
func (t *tenant) viewOf(e *entry) *World {
	if len(e.own) == 0 {
		return &t.World
	}
	var names []string
	for key, own := range e.own {
		names = append(names, fmt.Sprintf("%s/%s@%d", key.Kind, key.Name, own.Number))
	}
	slices.Sort(names)
	name := strings.Join(names, "\x00")
	if v := t.views[name]; v != nil {
		return v
	}
	v := t.view(e.own)
	if t.views == nil {
		t.views = map[string]*World{}
	}
	t.views[name] = v
	return v
}

func (t *tenant) view(own map[api.Key]store.OwnRevision) *World {
	w := t.World
	w.Fleets, w.Apps, w.Configs, w.Secrets, w.Flows = maps.Clone(w.Fleets), maps.Clone(w.Apps), maps.Clone(w.Configs), maps.Clone(w.Secrets), maps.Clone(w.Flows)
	w.Releases, w.Images, w.Policies = maps.Clone(w.Releases), maps.Clone(w.Images), maps.Clone(w.Policies)
	alone := &worlds{tenants: map[string]*tenant{}, byID: map[api.DeviceID]*entry{}}
	for key, o := range own {
		alone.tenants[key.Tenant] = &tenant{World: w, given: map[api.Key]*store.Given{}} // its maps are w's
		r := t.given[key].Revisions[o.Number]
		if r == nil {
			alone.unset(key, dirty{})
		} else if err := alone.set(r.Object(), dirty{}); err != nil {
			alone.unset(key, dirty{})
		}
	}
	return &w
}

// permits are what a device may begin with by rollouts, by the keys of its manifest's items.
func (t *tenant) permits(e *entry) map[string]api.Permit {
	var out map[string]api.Permit
	for key, own := range e.own {
		item := itemOf(key)
		if own.Permit == nil || item == "" {
			continue
		}
		if out == nil {
			out = map[string]api.Permit{}
		}
		out[item] = *own.Permit
	}
	return out
}

// itemOf is the item that is interrupted where an object changes.
func itemOf(key api.Key) string {
	switch key.Kind {
	case api.KindApp:
		return manifest.PrefixApp + key.Name
	case api.KindRelease:
		return manifest.KeyRelease
	}
	return ""
}
