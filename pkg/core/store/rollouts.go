package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// RolloutState is what is kept of a Rollout beside its object.
type RolloutState struct {
	Object *api.Object
	// Devices are how far they are, in JSON.
	Devices map[api.DeviceID]json.RawMessage
	// Slots are the devices that are interrupted now, of all rollouts of all tenants.
	Slots []Slot
	// Given is who has what of the objects that were asked for.
	Given map[api.Key]*Given
	// Busy says which other rollout has one of those objects for itself, by UID.
	Busy map[api.Key]string
}

// Slot is a place in the budget of interruptions.
type Slot struct {
	Device       api.DeviceID
	Rollout      string // UID
	Tenant, Site string
	Relay        bool
}

// RolloutStep is what becomes of a rollout by one look at it. It is written whole or not at all.
type RolloutStep struct {
	Key api.Key
	// Revision is the Rollout's that the look was at: when that is another by now, nothing is
	// written (code Conflict).
	Revision int64
	Status   any
	// Devices are states to keep, and Drop those that are kept no more.
	Devices map[api.DeviceID]json.RawMessage
	Drop    []api.DeviceID
	// Give is what devices get of their own.
	Give []Gift
	// Claim are places in the budget that are taken, and Free those that are given back. A place
	// that somebody else took since is a Conflict. Most and MostAt say how many there are, in all
	// and at a site.
	Claim  []Slot
	Free   []api.DeviceID
	Most   int
	MostAt func(tenant, site string) int
	// Take keeps objects from others until Leave; it is a Conflict when somebody has one.
	Take, Leave []api.Key
	// All gives revisions to every device that has none of its own.
	All map[api.Key]int64
}

// Gift is a revision for one device; Number 0 with Follow: it has what all have again.
type Gift struct {
	Device api.DeviceID
	Key    api.Key
	OwnRevision
	Follow bool
}

// Turn is one entry of an object's history: a revision that all devices were given.
type Turn struct {
	Seq, Revision, Before int64
	Rollout               string // name; empty: an apply
	Time                  int64  // Unix milliseconds
}

// Rollouts keeps how far rollouts are.
type Rollouts interface {
	Revisions
	// RolloutState returns what is kept of one.
	RolloutState(ctx context.Context, key api.Key, changes []api.Key) (*RolloutState, error)
	// StepRollout writes what became of it. Watchers of its kind hear of it.
	StepRollout(ctx context.Context, step *RolloutStep) error
	// Turns is an object's history, the newest first.
	Turns(ctx context.Context, key api.Key) ([]Turn, error)
	// Revisions lists an object's, the newest first; Specs are left out.
	RevisionsOf(ctx context.Context, key api.Key) ([]Revision, error)
	// Revoke takes a revision back for good: nobody is given it any more. Those that have it keep
	// it until they get another.
	Revoke(ctx context.Context, key api.Key, number int64) error
	// PinDevice gives a device a revision that no rollout overrules; Follow ends that.
	PinDevice(ctx context.Context, gift Gift) error
}

// RolloutState implements Rollouts.
func (s *SQL) RolloutState(ctx context.Context, key api.Key, changes []api.Key) (*RolloutState, error) {
	out := &RolloutState{Devices: map[api.DeviceID]json.RawMessage{}, Given: map[api.Key]*Given{}, Busy: map[api.Key]string{}}
	err := s.db.Read(ctx, func(tx *database.Tx) (err error) {
		if out.Object, err = s.get(ctx, tx, key); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, "SELECT device, state FROM rollout_devices WHERE rollout = ?", out.Object.Metadata.UID)
		if err != nil {
			return err
		}
		if err := each(rows, func() error {
			var device string
			var state []byte
			if err := rows.Scan(&device, &state); err != nil {
				return err
			}
			id, err := api.ParseDeviceID(device)
			out.Devices[id] = state
			return err
		}); err != nil {
			return err
		}
		if out.Slots, err = slots(ctx, tx); err != nil {
			return err
		}
		for _, k := range changes {
			if err := s.givenOf(ctx, tx, out.Given, " WHERE g.kind = ? AND g.tenant = ? AND g.name = ?", []any{k.Kind, k.Tenant, k.Name}); err != nil {
				return err
			}
			var by string
			err := tx.QueryRowContext(ctx, "SELECT rollout FROM busy WHERE kind = ? AND tenant = ? AND name = ?", k.Kind, k.Tenant, k.Name).Scan(&by)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if by != "" && by != out.Object.Metadata.UID {
				out.Busy[k] = by
			}
		}
		return nil
	})
	return out, err
}

func slots(ctx context.Context, q database.Querier) (out []Slot, err error) {
	rows, err := q.QueryContext(ctx, "SELECT device, rollout, tenant, site, relay FROM slots")
	if err != nil {
		return nil, err
	}
	err = each(rows, func() error {
		var s Slot
		var device string
		var relay int64
		if err := rows.Scan(&device, &s.Rollout, &s.Tenant, &s.Site, &relay); err != nil {
			return err
		}
		id, err := api.ParseDeviceID(device)
		s.Device, s.Relay = id, relay != 0
		out = append(out, s)
		return err
	})
	return out, err
}

// overtaken is the error of a step whose look was at something older.
func overtaken(key api.Key) error {
	return &api.Error{Code: api.Conflict, Message: key.Kind + " " + key.Name + " is another by now", Remedy: "look again"}
}

// StepRollout implements Rollouts.
func (s *SQL) StepRollout(ctx context.Context, step *RolloutStep) error {
	return s.tx(ctx, func(w *writer) error {
		o, err := s.get(ctx, w, step.Key)
		if err != nil {
			return err
		}
		if o.Metadata.Revision != step.Revision {
			return overtaken(step.Key)
		}
		uid := o.Metadata.UID
		for _, f := range []func(context.Context, *writer, *api.Object, *RolloutStep) error{s.stepBusy, s.stepSlots, s.stepDevices, s.stepGifts} {
			if err := f(ctx, w, o, step); err != nil {
				return err
			}
		}
		for key, number := range step.All {
			if err := s.turn(ctx, w, key, number, o.Metadata.Name); err != nil {
				return err
			}
		}
		if err := s.stepLeave(ctx, w, uid, step.Leave); err != nil {
			return err
		}
		raw, err := json.Marshal(step.Status)
		if err != nil {
			return err
		}
		// What devices have may be another now: those hear of it that heed no status.
		rev := w.changed(change{key: step.Key})
		_, err = w.ExecContext(ctx, sqlPutStatus, raw, rev, step.Key.Kind, step.Key.Tenant, step.Key.Name)
		return err
	})
}

func (s *SQL) stepBusy(ctx context.Context, w *writer, o *api.Object, step *RolloutStep) error {
	for _, k := range step.Take {
		res, err := w.ExecContext(ctx, "INSERT INTO busy (kind, tenant, name, rollout, next) VALUES (?,?,?,?,0) ON CONFLICT (kind, tenant, name) DO NOTHING", k.Kind, k.Tenant, k.Name, o.Metadata.UID)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return overtaken(step.Key)
		}
	}
	return nil
}

// stepLeave lets others have objects. What was applied meanwhile is given to all now.
func (s *SQL) stepLeave(ctx context.Context, w *writer, uid string, keys []api.Key) error {
	for _, k := range keys {
		var next int64
		err := w.QueryRowContext(ctx, "SELECT next FROM busy WHERE kind = ? AND tenant = ? AND name = ? AND rollout = ?", k.Kind, k.Tenant, k.Name, uid).Scan(&next)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := w.ExecContext(ctx, "DELETE FROM busy WHERE kind = ? AND tenant = ? AND name = ?", k.Kind, k.Tenant, k.Name); err != nil {
			return err
		}
		if next != 0 {
			if err := s.plain(ctx, w, k, next); err != nil {
				return err
			}
		}
	}
	return nil
}

// plain gives a revision to all devices at once but those that are pinned.
func (s *SQL) plain(ctx context.Context, w *writer, k api.Key, number int64) error {
	if _, err := w.ExecContext(ctx, "DELETE FROM given WHERE kind = ? AND tenant = ? AND name = ? AND device <> '' AND rollout <> ?", k.Kind, k.Tenant, k.Name, Pinned); err != nil {
		return err
	}
	return s.turn(ctx, w, k, number, "")
}

func (s *SQL) stepSlots(ctx context.Context, w *writer, o *api.Object, step *RolloutStep) error {
	for _, id := range step.Free {
		if _, err := w.ExecContext(ctx, "DELETE FROM slots WHERE device = ? AND rollout = ?", id.String(), o.Metadata.UID); err != nil {
			return err
		}
	}
	if len(step.Claim) == 0 {
		return nil
	}
	for _, c := range step.Claim {
		relay := 0
		if c.Relay {
			relay = 1
		}
		res, err := w.ExecContext(ctx, "INSERT INTO slots (device, rollout, tenant, site, relay) VALUES (?,?,?,?,?) ON CONFLICT (device) DO NOTHING", c.Device.String(), o.Metadata.UID, c.Tenant, c.Site, relay)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 { // check: another rollout has the device under way
			return overtaken(step.Key)
		}
	}
	all, err := slots(ctx, w)
	if err != nil {
		return err
	}
	if len(all) > step.Most { // check: the budget of all
		return overtaken(step.Key)
	}
	type place struct{ tenant, site string }
	at, relays := map[place]int{}, map[place]int{}
	for _, slot := range all {
		p := place{slot.Tenant, slot.Site}
		if at[p]++; slot.Relay {
			relays[p]++
		}
	}
	for _, c := range step.Claim {
		p := place{c.Tenant, c.Site}
		if c.Site != "" && (at[p] > step.MostAt(c.Tenant, c.Site) || relays[p] > 1) { // check: the budget of a site
			return overtaken(step.Key)
		}
	}
	return nil
}

func (s *SQL) stepDevices(ctx context.Context, w *writer, o *api.Object, step *RolloutStep) error {
	for _, id := range step.Drop {
		if _, err := w.ExecContext(ctx, "DELETE FROM rollout_devices WHERE rollout = ? AND device = ?", o.Metadata.UID, id.String()); err != nil {
			return err
		}
	}
	if len(step.Devices) == 0 {
		return nil
	}
	put, err := w.PrepareContext(ctx, "INSERT INTO rollout_devices (rollout, device, state) VALUES (?,?,?) ON CONFLICT (rollout, device) DO UPDATE SET state = excluded.state")
	if err != nil {
		return err
	}
	defer put.Close()
	for id, state := range step.Devices {
		if _, err := put.ExecContext(ctx, o.Metadata.UID, id.String(), []byte(state)); err != nil {
			return err
		}
	}
	return nil
}

func (s *SQL) stepGifts(ctx context.Context, w *writer, _ *api.Object, step *RolloutStep) error {
	for i := range step.Give {
		if err := s.give(ctx, w, &step.Give[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *SQL) give(ctx context.Context, w *writer, g *Gift) error {
	k := g.Key
	if g.Follow {
		_, err := w.ExecContext(ctx, "DELETE FROM given WHERE kind = ? AND tenant = ? AND name = ? AND device = ?", k.Kind, k.Tenant, k.Name, g.Device.String())
		return err
	}
	var permit []byte
	if g.Permit != nil {
		var err error
		if permit, err = json.Marshal(g.Permit); err != nil {
			return err
		}
	}
	_, err := w.ExecContext(ctx, "INSERT INTO given (kind, tenant, name, device, revision, rollout, permit) VALUES (?,?,?,?,?,?,?)"+
		" ON CONFLICT (kind, tenant, name, device) DO UPDATE SET revision = excluded.revision, rollout = excluded.rollout, permit = excluded.permit",
		k.Kind, k.Tenant, k.Name, g.Device.String(), g.Number, g.Rollout, permit)
	return err
}

// Turns implements Rollouts.
func (s *SQL) Turns(ctx context.Context, k api.Key) (out []Turn, err error) {
	if !storable(k) {
		return nil, nil
	}
	rows, err := s.db.QueryContext(ctx, "SELECT seq, revision, before, rollout, time FROM turns WHERE kind = ? AND tenant = ? AND name = ? ORDER BY seq DESC LIMIT 200", k.Kind, k.Tenant, k.Name)
	if err != nil {
		return nil, err
	}
	err = each(rows, func() error {
		var t Turn
		if err := rows.Scan(&t.Seq, &t.Revision, &t.Before, &t.Rollout, &t.Time); err != nil {
			return err
		}
		out = append(out, t)
		return nil
	})
	return out, err
}

// RevisionsOf implements Rollouts.
func (s *SQL) RevisionsOf(ctx context.Context, k api.Key) (out []Revision, err error) {
	if !storable(k) {
		return nil, nil
	}
	rows, err := s.db.QueryContext(ctx, "SELECT number, digest, pins, status, created, revoked FROM revisions WHERE kind = ? AND tenant = ? AND name = ? ORDER BY number DESC", k.Kind, k.Tenant, k.Name)
	if err != nil {
		return nil, err
	}
	err = each(rows, func() error {
		r := Revision{Key: k}
		var pins string
		var status []byte
		if err := rows.Scan(&r.Number, &r.Digest, &pins, &status, &r.Created, &r.Revoked); err != nil {
			return err
		}
		r.Status = status
		out = append(out, r)
		return json.Unmarshal([]byte(pins), &out[len(out)-1].Pins)
	})
	return out, err
}

// Revoke implements Rollouts.
func (s *SQL) Revoke(ctx context.Context, key api.Key, number int64) error {
	return s.tx(ctx, func(w *writer) error {
		r, err := s.revision(ctx, w, key, number)
		if err != nil || r.Revoked != 0 {
			return err
		}
		var users int
		if err := w.QueryRowContext(ctx, "SELECT count(*) FROM given WHERE kind = ? AND tenant = ? AND name = ? AND revision = ?", key.Kind, key.Tenant, key.Name, r.Number).Scan(&users); err != nil {
			return err
		}
		if users > 0 {
			return &api.Error{Code: api.Conflict, Message: "devices have this revision", Remedy: "apply another first, or roll it out to the end; then revoke this one"}
		}
		_, err = w.ExecContext(ctx, "UPDATE revisions SET revoked = ?, spec = NULL, status = NULL WHERE kind = ? AND tenant = ? AND name = ? AND number = ?",
			s.cfg.Now().UnixMilli(), key.Kind, key.Tenant, key.Name, r.Number)
		return err
	})
}

// PinDevice implements Rollouts.
func (s *SQL) PinDevice(ctx context.Context, g Gift) error {
	return s.tx(ctx, func(w *writer) error {
		g.Rollout, g.Permit = Pinned, nil
		if !g.Follow {
			r, err := s.revision(ctx, w, g.Key, g.Number)
			if err != nil {
				return err
			}
			if r.Revoked != 0 {
				return &api.Error{Code: api.Conflict, Message: "the revision was revoked", Remedy: "pin another"}
			}
			g.Number = r.Number
		}
		if err := s.give(ctx, w, &g); err != nil {
			return err
		}
		w.changed(change{key: g.Key})
		return nil
	})
}

// forgetRollout drops what is kept of a Rollout. What it had for itself is others' again; devices
// keep what they were given until something else is.
func (s *SQL) forgetRollout(ctx context.Context, w *writer, o *api.Object) error {
	rows, err := w.QueryContext(ctx, "SELECT kind, tenant, name FROM busy WHERE rollout = ?", o.Metadata.UID)
	if err != nil {
		return err
	}
	var keys []api.Key
	if err := each(rows, func() error {
		var k api.Key
		err := rows.Scan(&k.Kind, &k.Tenant, &k.Name)
		keys = append(keys, k)
		return err
	}); err != nil {
		return err
	}
	if err := s.stepLeave(ctx, w, o.Metadata.UID, keys); err != nil {
		return err
	}
	for _, k := range keys { // who reads what devices have hears of it
		w.changed(change{key: k})
	}
	for _, table := range []string{"rollout_devices", "slots"} {
		if _, err := w.ExecContext(ctx, "DELETE FROM "+table+" WHERE rollout = ?", o.Metadata.UID); err != nil {
			return err
		}
	}
	return nil
}
