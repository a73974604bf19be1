package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// kept is what stays of a Device between two looks.
type kept struct {
	Name    string    `json:"name"`
	Site    string    `json:"site,omitempty"`
	Relay   bool      `json:"relay,omitempty"`
	Wave    int       `json:"wave"`
	State   State     `json:"state"`
	Touched bool      `json:"touched,omitempty"`
	Since   time.Time `json:"since"`
	WellAt  time.Time `json:"wellAt,omitzero"`
	Until   time.Time `json:"until,omitzero"`
	Slot    bool      `json:"slot,omitempty"`
	Why     string    `json:"why,omitempty"`
	// Before is what it had of its own of each object that changes, by place in the list: a
	// number, or follows for what all have.
	Before []int64 `json:"before,omitempty"`
}

const follows = -1

// look is one look at one rollout: what was read, and what comes of it.
type look struct {
	spec   api.RolloutSpec
	status api.RolloutStatus
	state  *store.RolloutState
	tenant string
	uid    string
	keys   []api.Key // of status.Change, in its order
	rows   map[api.DeviceID]kept
	facts  map[api.DeviceID]*fact
	maxAt  func(tenant, site string) int
	most   int
	now    time.Time
	settle time.Duration
}

func keysOf(tenant string, list []api.RolloutChange) []api.Key {
	out := make([]api.Key, len(list))
	for i, c := range list {
		out[i] = api.Key{Tenant: tenant, Kind: c.Kind, Name: c.Name}
	}
	return out
}

func readLook(s *store.RolloutState, facts map[api.DeviceID]*fact, now time.Time) (*look, error) {
	o := s.Object
	l := &look{state: s, tenant: o.Metadata.Tenant, uid: o.Metadata.UID, rows: make(map[api.DeviceID]kept, len(s.Devices)), facts: facts, now: now.UTC().Truncate(time.Second)}
	if err := json.Unmarshal(o.Spec, &l.spec); err != nil {
		return nil, err
	}
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &l.status); err != nil {
			return nil, err
		}
	}
	l.keys = keysOf(l.tenant, l.status.Change)
	for id, raw := range s.Devices {
		var k kept
		if err := json.Unmarshal(raw, &k); err != nil {
			return nil, fmt.Errorf("device %s: %w", id, err)
		}
		l.rows[id] = k
	}
	// What counts is what it gives: what a revision pins came along.
	l.spec.Change = nil
	for _, c := range l.status.Change {
		l.spec.Change = append(l.spec.Change, c.RevisionRef)
	}
	return l, nil
}

// progress is how far it is, as Decide wants it.
func (l *look) progress() Progress {
	p := Progress{Phase: l.status.Phase, Wave: l.status.Wave - 1, Approved: l.status.Approved, Message: l.status.Message}
	if l.status.WaveSince != nil {
		p.WaveSince = *l.status.WaveSince
	}
	return p
}

// given is who has what of a change.
func (l *look) given(i int) *store.Given {
	if g := l.state.Given[l.keys[i]]; g != nil {
		return g
	}
	return &store.Given{}
}

// has is what a device has of its own of a change; follows when it has what all have.
func (l *look) has(i int, id api.DeviceID) int64 {
	if own, ok := l.given(i).Own[id]; ok {
		return own.Number
	}
	return follows
}

// before is the revision that a device goes back to; nil when it had none, or it is no more.
func (l *look) before(i int, k *kept) *store.Revision {
	number := l.status.Change[i].Before
	if i < len(k.Before) && k.Before[i] != follows {
		number = k.Before[i]
	}
	return l.given(i).Revisions[number]
}

// devices are the rollout's, as they were kept and as they are now, in the order of their names.
func (l *look) devices() ([]Device, []api.DeviceID) {
	ids := make([]api.DeviceID, 0, len(l.rows))
	for id := range l.rows {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b api.DeviceID) int { return strings.Compare(l.rows[a].Name, l.rows[b].Name) })
	out := make([]Device, len(ids))
	for i, id := range ids {
		k := l.rows[id]
		d := Device{ID: id.String(), Name: k.Name, Site: k.Site, Relay: k.Relay, Wave: k.Wave, State: k.State, Touched: k.Touched, Since: k.Since, WellAt: k.WellAt, Until: k.Until, Slot: k.Slot, Why: k.Why}
		f := l.facts[id]
		if f == nil || !f.active {
			d.Changed = "it is no device of the tenant any more"
			out[i] = d
			continue
		}
		if d.Name = f.key.Name; !d.Slot {
			d.Site, d.Relay = f.site, f.relay
		}
		d.Online = f.online
		d.Changed = l.changed(id, &k)
		d.Barred = l.barred(&k, f)
		d.Health, d.Told = healthOf(f, &l.spec, l.wanted(&k), k.Since, l.now, l.settle)
		out[i] = d
	}
	return out, ids
}

// wanted are the revisions that a device shall have by now.
func (l *look) wanted(k *kept) (out []*store.Revision) {
	for i, c := range l.status.Change {
		if k.State == Restoring || k.State == Restored {
			if l.barredOne(i, k, nil) == "" {
				out = append(out, l.before(i, k))
			}
		} else {
			out = append(out, l.given(i).Revisions[c.Revision])
		}
	}
	return out
}

// changed says who else gave a device something since.
func (l *look) changed(id api.DeviceID, k *kept) string {
	for i, c := range l.status.Change {
		own, has := l.given(i).Own[id]
		switch {
		case has && own.Rollout == store.Pinned:
			return fmt.Sprintf("a person pinned %s %s at revision %d", c.Kind, c.Name, own.Number)
		case l.status.Phase == api.RolloutComplete && (k.State == Waiting || k.State == Given) && (!has || own.Rollout != l.uid):
			return c.Kind + " " + c.Name + " was given to it by somebody else since"
		case l.status.Phase != api.RolloutComplete && k.Touched && k.State != Restoring && k.State != Restored && k.State != Kept && (!has || own.Rollout != l.uid):
			return c.Kind + " " + c.Name + " was given to it by somebody else since"
		}
	}
	return ""
}

// barred says why nothing of what a device had can be given back.
func (l *look) barred(k *kept, f *fact) string {
	var all []string
	for i := range l.keys {
		why := l.barredOne(i, k, f)
		if why == "" {
			return ""
		}
		all = append(all, why)
	}
	return strings.Join(all, "; ")
}

// barredOne says why one change is not taken back: a secret that was revoked, or a release below
// the security floor that the device has by now. f may be nil where that does not matter.
func (l *look) barredOne(i int, k *kept, f *fact) string {
	c, r := l.status.Change[i], l.before(i, k)
	if r != nil && r.Revoked != 0 { // check: revoked
		return fmt.Sprintf("%s %s stays: revision %d was revoked", c.Kind, c.Name, r.Number)
	}
	if c.Kind == api.KindRelease && f != nil && r != nil {
		now := l.given(i).Revisions[c.Revision]
		if floor, was := counterFor(now, f.labels), counterFor(r, f.labels); was < floor && now != nil && releaseFor(now, f.labels) == f.release { // check: the floor
			return fmt.Sprintf("Release %s stays: revision %d has the security counter %d, and the device accepts none below %d", c.Name, r.Number, was, floor)
		}
	}
	return ""
}

// budget is what may be interrupted, as it is now.
func (l *look) budget() Budget {
	b := Budget{Left: l.most - len(l.state.Slots), Sites: map[string]Site{}, Others: map[string]bool{}}
	for _, f := range l.facts {
		if f.key.Tenant == l.tenant && f.site != "" {
			if _, known := b.Sites[f.site]; !known {
				b.Sites[f.site] = Site{Max: l.maxAt(l.tenant, f.site)}
			}
		}
	}
	for _, s := range l.state.Slots {
		if s.Rollout != l.uid {
			b.Others[s.Device.String()] = true
		}
		if s.Tenant != l.tenant || s.Site == "" {
			continue
		}
		site := b.Sites[s.Site]
		if site.Max == 0 {
			site.Max = l.maxAt(l.tenant, s.Site)
		}
		if site.Taken++; s.Relay {
			site.Relays++
		}
		b.Sites[s.Site] = site
	}
	return b
}

// targets are the devices that a rollout is for.
func targets(tenant string, spec *api.RolloutSpec, fleet *api.FleetSpec, facts map[api.DeviceID]*fact) map[api.DeviceID]*fact {
	out := map[api.DeviceID]*fact{}
	for id, f := range facts {
		if f.key.Tenant != tenant || !f.active || spec.Target.Fleet != "" && (fleet == nil || !fleet.Selector.Matches(f.labels)) || spec.Target.Selector != nil && !spec.Target.Selector.Matches(f.labels) {
			continue
		}
		out[id] = f
	}
	return out
}
