package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Settle turns what people name into revisions: the newest where they gave no number, and along
// with each what it pins, where devices have another one of that. coming are revisions that the
// same request would make; it may be nil.
func Settle(ctx context.Context, s store.Revisions, tenant string, refs []api.RevisionRef, coming map[api.Key]*store.Revision) ([]api.RolloutChange, error) {
	get := func(key api.Key, number int64) (*store.Revision, error) {
		if r := coming[key]; r != nil && (number == 0 || number == r.Number) {
			return r, nil
		}
		return s.Revision(ctx, key, number)
	}
	named := map[api.Key]bool{}
	for _, ref := range refs {
		named[api.Key{Tenant: tenant, Kind: ref.Kind, Name: ref.Name}] = true
	}
	var out []api.RolloutChange
	for i, ref := range refs {
		field := fmt.Sprintf("spec.change[%d]", i)
		r, err := get(api.Key{Tenant: tenant, Kind: ref.Kind, Name: ref.Name}, ref.Revision)
		if api.CodeOf(err) == api.NotFound && err != nil {
			return nil, &api.Error{Code: api.Invalid, Field: field, Message: err.Error(), Remedy: "apply it with the Rollout or before, with --hold; see `edgectl rollout history " + strings.ToLower(ref.Kind) + "/" + ref.Name + "`"}
		}
		if err != nil {
			return nil, err
		}
		if r.Revoked != 0 {
			return nil, &api.Error{Code: api.Conflict, Field: field, Message: fmt.Sprintf("revision %d of %s %s was revoked", r.Number, ref.Kind, ref.Name), Remedy: "name another"}
		}
		out = append(out, api.RolloutChange{RevisionRef: api.RevisionRef{Kind: ref.Kind, Name: ref.Name, Revision: r.Number}, Digest: r.Digest})
		for _, pin := range r.Pins {
			key := api.Key{Tenant: tenant, Kind: pin.Kind, Name: pin.Name}
			if named[key] {
				continue
			}
			c, err := pinned(ctx, s, key, pin, get)
			if err != nil {
				return nil, err
			}
			if c != nil {
				named[key] = true
				c.PinnedBy = ref.Kind + "/" + ref.Name
				out = append(out, *c)
			}
		}
	}
	return out, nil
}

// pinned is what comes along by a pin; nil when devices have it, or it must not come back.
func pinned(ctx context.Context, s store.Revisions, key api.Key, pin api.Pin, get func(api.Key, int64) (*store.Revision, error)) (*api.RolloutChange, error) {
	given, err := s.GivenOf(ctx, []api.Key{key})
	if err != nil {
		return nil, err
	}
	if g := given[key]; g != nil && g.All == pin.Revision {
		return nil, nil
	}
	r, err := get(key, pin.Revision)
	if api.CodeOf(err) == api.NotFound && err != nil {
		return nil, nil // it is no more: devices keep what they have
	}
	if err != nil || r.Revoked != 0 || pin.Digest != "" && r.Digest != pin.Digest {
		return nil, err
	}
	return &api.RolloutChange{RevisionRef: api.RevisionRef{Kind: pin.Kind, Name: pin.Name, Revision: pin.Revision}, Digest: r.Digest}, nil
}

// Room is the loop as the hall asks it.
type Room struct {
	*Loop
	Blobs Blobs // nil: plans tell nothing of links
}

// Settle is the function of that name, of revisions that are there.
func (r Room) Settle(ctx context.Context, tenant string, refs []api.RevisionRef) ([]api.RolloutChange, error) {
	return Settle(ctx, r.cfg.Store, tenant, refs, nil)
}

// Plan says what a rollout would do.
func (r Room) Plan(ctx context.Context, tenant, name string, spec *api.RolloutSpec, coming map[api.Key]*store.Revision) (*api.RolloutPlan, error) {
	return r.plan(ctx, tenant, name, spec, coming, r.Blobs)
}

// Revision reads one from the store.
func (r Room) Revision(ctx context.Context, key api.Key, number int64) (*store.Revision, error) {
	return r.cfg.Store.Revision(ctx, key, number)
}

// Revoke takes a revision back for good.
func (r Room) Revoke(ctx context.Context, key api.Key, number int64) error {
	return r.cfg.Store.Revoke(ctx, key, number)
}

// PinDevice gives a device a revision that no rollout overrules.
func (r Room) PinDevice(ctx context.Context, gift store.Gift) error {
	return r.cfg.Store.PinDevice(ctx, gift)
}

// Order does what a person says of a rollout.
func (l *Loop) Order(ctx context.Context, key api.Key, order string) error {
	for try := 0; ; try++ {
		err := l.orderOnce(ctx, key, order)
		if overtaken := api.CodeOf(err) == api.Conflict && err != nil && err.Error() == looked(key).Error(); !overtaken || try == 10 {
			return err
		}
	}
}

// looked is the store's word that somebody was faster.
func looked(key api.Key) error {
	return &api.Error{Code: api.Conflict, Message: key.Kind + " " + key.Name + " is another by now", Remedy: "look again"}
}

func (l *Loop) orderOnce(ctx context.Context, key api.Key, order string) error {
	v, err := l.readNow(ctx, key)
	if err != nil {
		return err
	}
	devices, _ := v.devices()
	p, steps, err := Order(&v.spec, v.progress(), devices, order, v.now)
	if err != nil {
		return err
	}
	step, err := v.step(p, steps)
	if err != nil || step == nil {
		return err
	}
	return l.cfg.Store.StepRollout(ctx, step)
}

// readNow reads a rollout and the devices of its tenant from the store.
func (l *Loop) readNow(ctx context.Context, key api.Key) (*look, error) {
	known, err := l.factsOf(ctx, key.Tenant)
	if err != nil {
		return nil, err
	}
	sites, err := l.sitesOf(ctx, key.Tenant)
	if err != nil {
		return nil, err
	}
	return readWith(ctx, l.cfg, key, known, sites)
}

func (l *Loop) factsOf(ctx context.Context, tenant string) (map[api.DeviceID]*fact, error) {
	list, _, _, err := l.cfg.Store.List(ctx, store.Query{Tenant: tenant, Kind: api.KindDevice})
	if err != nil {
		return nil, err
	}
	out := make(map[api.DeviceID]*fact, len(list))
	for _, o := range list {
		if id, f, err := factOf(o); err == nil && !id.IsZero() {
			out[id] = f
		}
	}
	return out, nil
}

func (l *Loop) sitesOf(ctx context.Context, tenant string) (map[api.Key]int, error) {
	list, _, _, err := l.cfg.Store.List(ctx, store.Query{Tenant: tenant, Kind: api.KindSite})
	if err != nil {
		return nil, err
	}
	out := map[api.Key]int{}
	for _, o := range list {
		var spec api.SiteSpec
		if json.Unmarshal(o.Spec, &spec) == nil {
			out[o.Key()] = spec.MaxDisrupted
		}
	}
	return out, nil
}

// Devices lists how far each device of a rollout is, by name.
func (l *Loop) Devices(ctx context.Context, key api.Key) ([]api.RolloutDevice, error) {
	state, err := l.cfg.Store.RolloutState(ctx, key, nil)
	if err != nil {
		return nil, err
	}
	v, err := readLook(state, nil, l.cfg.Now())
	if err != nil {
		return nil, err
	}
	out := make([]api.RolloutDevice, 0, len(v.rows))
	for _, k := range v.rows {
		out = append(out, k.device())
	}
	slices.SortFunc(out, func(a, b api.RolloutDevice) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// History tells what became of an object.
func (l *Loop) History(ctx context.Context, key api.Key) (*api.RevisionHistory, error) {
	list, err := l.cfg.Store.RevisionsOf(ctx, key)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		_, err := l.cfg.Store.Revision(ctx, key, 0)
		return nil, err
	}
	given, err := l.cfg.Store.GivenOf(ctx, []api.Key{key})
	if err != nil {
		return nil, err
	}
	turns, err := l.cfg.Store.Turns(ctx, key)
	if err != nil {
		return nil, err
	}
	h := &api.RevisionHistory{Kind: key.Kind, Name: key.Name, Newest: list[0].Number}
	own := map[int64]int{}
	if g := given[key]; g != nil {
		h.Given = g.All
		for _, o := range g.Own {
			own[o.Number]++
		}
	}
	for _, r := range list {
		e := api.RevisionEntry{Revision: r.Number, Digest: r.Digest, Pins: r.Pins, Created: time.UnixMilli(r.Created).UTC(), Devices: own[r.Number]}
		if r.Revoked != 0 {
			at := time.UnixMilli(r.Revoked).UTC()
			e.Revoked = &at
		}
		h.Revisions = append(h.Revisions, e)
	}
	for _, t := range turns {
		h.Turns = append(h.Turns, api.RevisionTurn{Revision: t.Revision, Before: t.Before, Rollout: t.Rollout, Time: time.UnixMilli(t.Time).UTC()})
	}
	return h, nil
}

// Behind says why devices do not have an object's newest revision; empty when they do.
func (l *Loop) Behind(ctx context.Context, key api.Key) (string, error) {
	newest, err := l.cfg.Store.Revision(ctx, key, 0)
	if err != nil {
		if api.CodeOf(err) == api.NotFound {
			err = nil
		}
		return "", err
	}
	given, err := l.cfg.Store.GivenOf(ctx, []api.Key{key})
	if err != nil {
		return "", err
	}
	g := given[key]
	if g != nil && g.All == newest.Number {
		return "", nil
	}
	by, err := l.changing(ctx, key.Tenant, "", []api.Key{key})
	if err != nil {
		return "", err
	}
	if by != "" {
		return fmt.Sprintf("rollout %s is under way: what is newer than it gives waits for its end (`edgectl rollout status %s`)", by, by), nil
	}
	return fmt.Sprintf("revision %d is held back from devices, or was rolled back: give it by a Rollout, or change it (`edgectl rollout history %s/%s`)", newest.Number, strings.ToLower(key.Kind), key.Name), nil
}

// changing names a rollout, but one, that is on its way and changes any of some objects.
func (l *Loop) changing(ctx context.Context, tenant, but string, keys []api.Key) (string, error) {
	list, _, _, err := l.cfg.Store.List(ctx, store.Query{Tenant: tenant, Kind: api.KindRollout})
	for _, o := range list {
		var s api.RolloutStatus
		if o.Metadata.Name == but || len(o.Status) > 0 && json.Unmarshal(o.Status, &s) != nil || s.Phase.Ended() {
			continue
		}
		if slices.ContainsFunc(keysOf(tenant, s.Change), func(k api.Key) bool { return slices.Contains(keys, k) }) {
			return o.Metadata.Name, nil
		}
	}
	return "", err
}

// Back is the revision that an object goes back to: the one that all had before, or that of a
// number. A revoked one, or a release below the security floor, is refused.
func (l *Loop) Back(ctx context.Context, key api.Key, number int64) (*store.Revision, error) {
	given, err := l.cfg.Store.GivenOf(ctx, []api.Key{key})
	if err != nil {
		return nil, err
	}
	if number == 0 {
		turns, err := l.cfg.Store.Turns(ctx, key)
		if err != nil {
			return nil, err
		}
		if len(turns) == 0 || turns[0].Before == 0 {
			return nil, &api.Error{Code: api.Conflict, Message: "nothing stood before of " + key.Kind + " " + key.Name, Remedy: "see `edgectl rollout history " + strings.ToLower(key.Kind) + "/" + key.Name + "`"}
		}
		number = turns[0].Before
	}
	r, err := l.cfg.Store.Revision(ctx, key, number)
	if err != nil {
		return nil, err
	}
	if r.Revoked != 0 { // check: a revoked revision
		return nil, &api.Error{Code: api.Conflict, Message: fmt.Sprintf("revision %d of %s %s was revoked", number, key.Kind, key.Name), Remedy: "name another by --to, or apply a new one"}
	}
	if g := given[key]; g != nil && key.Kind == api.KindRelease {
		return r, aboveFloor(g.Revisions[g.All], r)
	}
	return r, nil
}

// aboveFloor refuses a release whose security counter lies below that of the one that devices have.
func aboveFloor(now, back *store.Revision) error {
	var is, was api.ReleaseSpec
	if now == nil || json.Unmarshal(now.Spec, &is) != nil || json.Unmarshal(back.Spec, &was) != nil {
		return nil
	}
	for _, s := range is.Systems {
		for _, b := range was.Systems {
			if s.Family() == b.Family() && b.Counter < s.Counter { // check: the floor of an undo
				return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("revision %d of Release %s has the security counter %d for %s; devices that run revision %d accept none below %d", back.Number, back.Key.Name, b.Counter, b.Family(), now.Number, s.Counter),
					Remedy: "build the old system anew with the counter of today, and roll that out"}
			}
		}
	}
	return nil
}
