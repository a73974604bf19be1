package usage

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// kept is what of an object decides who pays.
type kept struct {
	UID      string            `json:"uid,omitempty"`
	Site     string            `json:"site,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Selector *api.Selector     `json:"selector,omitempty"`
	Apps     []string          `json:"apps,omitempty"`
}

// version is what stood in an object from a time on.
type version struct {
	kind, id, tenant, name string
	since                  int64 // Unix milliseconds
	gone                   bool
	kept
}

// Kinds are those whose history is kept.
var Kinds = []string{api.KindTenant, api.KindApp, api.KindFleet, api.KindDevice}

// versionOf reads an object; ok is false for one that decides nothing.
func versionOf(o *api.Object) (v version, ok bool, err error) {
	v = version{kind: o.Kind, id: o.Metadata.UID, tenant: o.Metadata.Tenant, name: o.Metadata.Name, kept: kept{UID: o.Metadata.UID}}
	if at := cmp.Or(o.Metadata.Updated, o.Metadata.Created); at != nil {
		v.since = at.UnixMilli()
	}
	switch o.Kind {
	case api.KindTenant, api.KindApp:
	case api.KindFleet:
		var spec api.FleetSpec
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			return v, false, err
		}
		v.Selector, v.Apps = &spec.Selector, slices.Clone(spec.Apps)
		for _, p := range spec.Placed {
			v.Apps = append(v.Apps, p.App)
		}
	case api.KindDevice:
		var spec api.DeviceSpec
		var status api.DeviceStatus
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			return v, false, err
		}
		if len(o.Status) > 0 {
			if err := json.Unmarshal(o.Status, &status); err != nil {
				return v, false, err
			}
		}
		if status.ID.IsZero() {
			return v, false, nil
		}
		v.id, v.Site, v.Labels = status.ID.String(), spec.Site, o.Metadata.Labels
	default:
		return v, false, nil
	}
	return v, true, nil
}

// Note remembers what stands in an object from its last change on. It may be repeated.
func (r *Room) Note(ctx context.Context, o *api.Object) error {
	v, ok, err := versionOf(o)
	if !ok {
		return err
	}
	body, err := json.Marshal(v.kept)
	if err != nil {
		return err
	}
	return r.db.Write(ctx, func(tx *database.Tx) error {
		var same int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM history h WHERE kind = ? AND id = ? AND gone = 0 AND tenant = ? AND name = ? AND body = ?
			AND since = (SELECT max(since) FROM history l WHERE l.kind = h.kind AND l.id = h.id)`, v.kind, v.id, v.tenant, v.name, string(body)).Scan(&same)
		if err != nil || same > 0 {
			return err
		}
		return put(ctx, tx, v, string(body))
	})
}

func put(ctx context.Context, tx *database.Tx, v version, body string) error {
	gone := 0
	if v.gone {
		gone = 1
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO history (kind, id, since, gone, tenant, name, body) VALUES (?,?,?,?,?,?,?)
		ON CONFLICT (kind, id, since) DO UPDATE SET gone = excluded.gone, tenant = excluded.tenant, name = excluded.name, body = excluded.body`,
		v.kind, v.id, v.since, gone, v.tenant, v.name, body)
	return err
}

// Gone remembers that an object is not there any more from a time on.
func (r *Room) Gone(ctx context.Context, key api.Key, at time.Time) error {
	return r.db.Write(ctx, func(tx *database.Tx) error {
		all, err := versions(ctx, tx, `kind = ? AND tenant = ? AND name = ? ORDER BY since`, key.Kind, key.Tenant, key.Name)
		if err != nil || len(all) == 0 || all[len(all)-1].gone {
			return err
		}
		v := all[len(all)-1]
		v.since, v.gone = max(at.UnixMilli(), v.since+1), true
		body, err := json.Marshal(v.kept)
		if err != nil {
			return err
		}
		return put(ctx, tx, v, string(body))
	})
}

// Settle brings the history up to a list of all objects of its kinds: changes that nobody
// told of, for the core did not run. The list is asked for after the history is read: what is
// made meanwhile is not taken for gone.
func (r *Room) Settle(ctx context.Context, list func() ([]*api.Object, error)) error {
	var all []version
	err := r.db.Read(ctx, func(tx *database.Tx) (err error) {
		all, err = versions(ctx, tx, `1 = 1 ORDER BY kind, id, since`)
		return err
	})
	if err != nil {
		return err
	}
	objects, err := list()
	if err != nil {
		return err
	}
	newest := map[[2]string]version{}
	for _, v := range all {
		newest[[2]string{v.kind, v.id}] = v
	}
	there := map[api.Key]bool{}
	for _, o := range objects {
		there[o.Key()] = true
		v, ok, err := versionOf(o)
		if err != nil {
			return err
		}
		if ok && newest[[2]string{v.kind, v.id}].same(v) {
			continue
		}
		if err := r.Note(ctx, o); err != nil {
			return err
		}
	}
	for _, v := range newest {
		if key := (api.Key{Tenant: v.tenant, Kind: v.kind, Name: v.name}); !v.gone && !there[key] {
			if err := r.Gone(ctx, key, r.cfg.Now()); err != nil {
				return err
			}
		}
	}
	return nil
}

// same tells whether two versions say the same.
func (v version) same(o version) bool {
	a, err := json.Marshal(v.kept)
	b, err2 := json.Marshal(o.kept)
	return err == nil && err2 == nil && bytes.Equal(a, b) && v.tenant == o.tenant && v.name == o.name && v.gone == o.gone
}

func versions(ctx context.Context, tx *database.Tx, where string, args ...any) (out []version, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT kind, id, since, gone, tenant, name, body FROM history WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v version
		var body string
		if err := rows.Scan(&v.kind, &v.id, &v.since, &v.gone, &v.tenant, &v.name, &body); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(body), &v.kept); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// past is the history of one tenant.
type past struct {
	tenant  string // the uid
	lives   []life // while a tenant of a name had this uid
	devices map[string][]version
	fleets  map[string][]version
	apps    map[string][]version // by uid
	changes []int64              // of anything but devices, in order
}

// life is a time in which a tenant was there.
type life struct {
	name     string
	from, to int64
}

// history reads what is known of a tenant.
func (r *Room) history(ctx context.Context, tenant string) (*past, error) {
	p := &past{tenant: tenant, devices: map[string][]version{}, fleets: map[string][]version{}, apps: map[string][]version{}}
	err := r.db.Read(ctx, func(tx *database.Tx) error {
		if tenant == api.DefaultTenant || tenant == api.PlatformTenant {
			p.lives = []life{{tenant, minTime, maxTime}}
		} else if err := p.findLives(ctx, tx); err != nil {
			return err
		}
		for _, l := range p.lives {
			all, err := versions(ctx, tx, `id IN (SELECT id FROM history WHERE tenant = ?) AND kind <> ? ORDER BY kind, id, since`, l.name, api.KindTenant)
			if err != nil {
				return err
			}
			p.take(all)
		}
		return nil
	})
	slices.Sort(p.changes)
	return p, err
}

func (p *past) findLives(ctx context.Context, tx *database.Tx) error {
	all, err := versions(ctx, tx, `kind = ? AND id = ? ORDER BY since`, api.KindTenant, p.tenant)
	if err != nil || len(all) == 0 {
		return err
	}
	l := life{all[0].name, all[0].since, maxTime}
	if last := all[len(all)-1]; last.gone {
		l.to = last.since
	}
	p.lives = []life{l}
	return nil
}

func (p *past) take(all []version) {
	for _, v := range all {
		into := map[string]map[string][]version{api.KindDevice: p.devices, api.KindFleet: p.fleets, api.KindApp: p.apps}[v.kind]
		into[v.id] = append(into[v.id], v)
		if v.kind != api.KindDevice {
			p.changes = append(p.changes, v.since)
		}
	}
}

const (
	minTime = -1 << 62
	maxTime = 1 << 62
)

// at is what stood at a time. What was used before anything is known of an object is told as
// if the first that is known had stood then.
func at(vs []version, millis int64) *version {
	if len(vs) == 0 {
		return nil
	}
	i, _ := slices.BinarySearchFunc(vs, millis, func(v version, t int64) int {
		if v.since <= t {
			return -1
		}
		return 1
	})
	v := &vs[max(i-1, 0)]
	if v.gone {
		return nil
	}
	return v
}

// within tells whether a tenant of a name had the uid at a time.
func (p *past) within(tenant string, millis int64) bool {
	return slices.ContainsFunc(p.lives, func(l life) bool { return l.name == tenant && millis < l.to })
}

// attribution is who pays for what an app used on a device at a time, and by what.
func (p *past) attribution(device, app string, millis int64) (e api.UsageEntry, ok bool) {
	d := at(p.devices[device], millis)
	if d == nil || !p.within(d.tenant, millis) {
		return e, false
	}
	e = api.UsageEntry{Tenant: p.tenant, TenantName: d.tenant, Device: d.UID, DeviceName: d.name, Site: d.Site, Labels: d.Labels, AppName: app}
	for _, id := range sorted(p.apps) {
		if v := at(p.apps[id], millis); v != nil && v.name == app && v.tenant == d.tenant {
			e.App = v.UID
		}
	}
	var fleets []string
	for _, id := range sorted(p.fleets) {
		if v := at(p.fleets[id], millis); v != nil && v.tenant == d.tenant && v.Selector.Matches(d.Labels) && slices.Contains(v.Apps, app) {
			fleets = append(fleets, v.name)
		}
	}
	if len(fleets) > 0 {
		e.Fleet = slices.Min(fleets) // of several, one: an entry is paid once
	}
	return e, true
}

// changed tells whether anything that decides who pays changed within a time.
func (p *past) changed(device string, from, to int64) bool {
	i, _ := slices.BinarySearch(p.changes, from+1)
	if i < len(p.changes) && p.changes[i] < to {
		return true
	}
	return slices.ContainsFunc(p.devices[device], func(v version) bool { return from < v.since && v.since < to })
}
