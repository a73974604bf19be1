package intake

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link/record"
)

// Reported is what a device told of itself.
type Reported struct {
	// Entries is its reported state: CBOR by key.
	Entries map[string][]byte
	// Parent is whom its attachment names; zero is the core. Attached is false before
	// it signed one.
	Parent   api.DeviceID
	Attached bool
	// Seen is when something of it was last committed or heard; zero is never.
	Seen time.Time
}

// Report gives what is known of one device; it is empty for one that never reported.
func (s *Store) Report(ctx context.Context, id api.DeviceID) (*Reported, error) {
	all, err := s.Reports(ctx, []api.DeviceID{id})
	if err != nil {
		return nil, err
	}
	return all[id], nil
}

// Reports gives what is known of many devices, as of one moment; every id is in it. What
// they are made of (report.InventoryPrefix) is left out: it is many entries, of which no
// status is made. See Parts.
func (s *Store) Reports(ctx context.Context, ids []api.DeviceID) (map[api.DeviceID]*Reported, error) {
	out := make(map[api.DeviceID]*Reported, len(ids))
	err := s.view(ctx, func(tx *database.Tx) error {
		device, err := tx.PrepareContext(ctx, `SELECT dev, parent, seen FROM devices WHERE device = ?`)
		if err != nil {
			return err
		}
		defer device.Close()
		entries, err := tx.PrepareContext(ctx, `SELECT key, value FROM entries WHERE dev = ? AND NOT (key >= 'hw/' AND key < 'hw0')`)
		if err != nil {
			return err
		}
		defer entries.Close()
		for _, id := range ids {
			if out[id], err = report(ctx, device, entries, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range out {
		if at := s.seen[id]; at.After(r.Seen) {
			r.Seen = at
		}
	}
	return out, nil
}

// Parts gives those of a device's entries whose keys begin with prefix, which is of ASCII.
func (s *Store) Parts(ctx context.Context, id api.DeviceID, prefix string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.view(ctx, func(tx *database.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT e.key, e.value FROM entries e JOIN devices d ON d.dev = e.dev WHERE d.device = ? AND e.key >= ? AND e.key < ?`, id[:], prefix, prefix+"\x7f")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key string
			var value []byte
			if err := rows.Scan(&key, &value); err != nil {
				return err
			}
			out[key] = value
		}
		return rows.Err()
	})
	return out, err
}

func report(ctx context.Context, device, entries *sql.Stmt, id api.DeviceID) (*Reported, error) {
	r := &Reported{Entries: make(map[string][]byte)}
	var dev, seen int64
	var parent []byte
	err := device.QueryRowContext(ctx, id[:]).Scan(&dev, &parent, &seen)
	if errors.Is(err, sql.ErrNoRows) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	r.Attached = copy(r.Parent[:], parent) == len(r.Parent)
	if seen > 0 {
		r.Seen = time.UnixMilli(seen)
	}
	rows, err := entries.QueryContext(ctx, dev)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var value []byte
		if err := rows.Scan(&key, &value); err != nil {
			return nil, err
		}
		r.Entries[key] = value
	}
	return r, rows.Err()
}

// Total is the use of one service.
type Total struct {
	App, Service string
	api.ContainerUse
}

// Usage is what one device's services used, and the position up to which it counts.
type Usage struct {
	SpoolEpoch, Acked, Safe uint64
	// Intervals is the number of usage records as the device sent them, Lost of records that
	// it gave up.
	Intervals, Lost uint64
	Totals          []Total
}

// Usage sums up one device's usage in a time range by the device's clock: intervals
// that end after from and not after to (zero times: no bound), as they are summed: between UTC
// midnights and cut points all is in one. Position and totals are of one moment.
func (s *Store) Usage(ctx context.Context, id api.DeviceID, from, to time.Time) (*Usage, error) {
	u := &Usage{}
	err := s.view(ctx, func(tx *database.Tx) error {
		var dev, epoch, acked, safe int64
		err := tx.QueryRowContext(ctx, `SELECT dev, epoch, acked, safe FROM devices WHERE device = ?`, id[:]).Scan(&dev, &epoch, &acked, &safe)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		u.SpoolEpoch, u.Acked, u.Safe = uint64(epoch), uint64(acked), uint64(acked)
		if s.keeping.Load() {
			u.Safe = uint64(min(safe, acked))
		}
		lo, hi := bounds(from, to)
		if err := tx.QueryRowContext(ctx, `SELECT coalesce(sum(records), 0) FROM (SELECT DISTINCT epoch, seq, records FROM usage WHERE dev = ? AND ended > ? AND ended <= ?) AS intervals`, dev, lo, hi).Scan(&u.Intervals); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, `SELECT coalesce(sum(last - seq + 1), 0) FROM others WHERE dev = ? AND kind = ?`, dev, int64(record.Lost)).Scan(&u.Lost); err != nil {
			return err
		}
		u.Totals, err = totals(ctx, tx, `usage.dev = ? AND ended > ? AND ended <= ?`, dev, lo, hi)
		return err
	})
	return u, err
}

// UsageByApp sums up all devices' usage in a time range.
func (s *Store) UsageByApp(ctx context.Context, from, to time.Time) (ts []Total, err error) {
	lo, hi := bounds(from, to)
	err = s.view(ctx, func(tx *database.Tx) error {
		ts, err = totals(ctx, tx, `ended > ? AND ended <= ?`, lo, hi)
		return err
	})
	return ts, err
}

func bounds(from, to time.Time) (lo, hi int64) {
	lo, hi = -1<<63, 1<<63-1
	if !from.IsZero() {
		lo = from.UnixMilli()
	}
	if !to.IsZero() {
		hi = to.UnixMilli()
	}
	return lo, hi
}

func totals(ctx context.Context, tx *database.Tx, where string, args ...any) (ts []Total, err error) {
	cards, err := accelerators(ctx, tx, ` FROM usage WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	more, err := moreMeters(ctx, tx, ` FROM usage WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, `SELECT svc, app, service, sum(run_ms), sum(cpu_us), sum(mem_bs), sum(rx_bytes), sum(tx_bytes)
		FROM usage JOIN services USING (svc) WHERE `+where+` GROUP BY svc, app, service ORDER BY app, service`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var t Total
		var svc int64
		if err := rows.Scan(&svc, &t.App, &t.Service, &t.RunMillis, &t.CPUMicros, &t.MemoryByteSeconds, &t.RxBytes, &t.TxBytes); err != nil {
			return nil, err
		}
		t.ContainerUse.App, t.ContainerUse.Service, t.Accelerator, t.More = t.App, t.Service, cards[svc], more[svc]
		ts = append(ts, t)
	}
	return ts, rows.Err()
}

// Entry is one record as the ledger holds it.
type Entry struct {
	Device           api.DeviceID
	Epoch, Seq, Last uint64
	Kind             api.RecordKind
	// Taken is when the core counted it, by its clock; zero when that is forgotten (Tidy).
	Taken time.Time
	// One of these, by Kind. Payload is set for telemetry and for what cannot be read,
	// which Poison explains.
	Usage   *api.Usage
	Event   *api.Event
	Payload []byte
	Poison  string
}

// manyDevices is from how many on Events goes by time rather than by device.
const manyDevices = 64

// Events lists the newest events and audits in the order they came, newest first, of
// some devices, or of all for nil. A limit of 0 means 100.
//
// The events of a few devices are found by the index; those of many by going back from
// the newest, which soon meets enough of theirs.
func (s *Store) Events(ctx context.Context, of []api.DeviceID, limit int) (out []Entry, err error) {
	if limit <= 0 {
		limit = 100
	}
	err = s.view(ctx, func(tx *database.Tx) error {
		where, args := `1 = 1`, []any{}
		if of != nil {
			hexes := make([]string, len(of))
			for i, id := range of {
				hexes[i] = hex.EncodeToString(id[:])
			}
			list, err := json.Marshal(hexes)
			if err != nil {
				return err
			}
			column := "events.dev"
			if len(of) > manyDevices {
				column = tx.Dialect().Unindexed(column)
			}
			where, args = column+` IN (SELECT dev FROM devices WHERE device IN `+tx.Dialect().Blobs()+`)`, []any{string(list)}
		}
		rows, err := tx.QueryContext(ctx, `SELECT device, events.epoch, seq, last, audit, time, name, subject, message, actor
			FROM events JOIN devices USING (dev) WHERE `+where+` ORDER BY id DESC LIMIT ?`, append(args, limit)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e := Entry{Kind: api.RecordEvent, Event: &api.Event{}}
			var device []byte
			var audit bool
			if err := rows.Scan(&device, &e.Epoch, &e.Seq, &e.Last, &audit, &e.Event.Time, &e.Event.Name, &e.Event.Subject, &e.Event.Message, &e.Event.Actor); err != nil {
				return err
			}
			copy(e.Device[:], device)
			if audit {
				e.Kind = api.RecordAudit
			}
			out = append(out, e)
		}
		return rows.Err()
	})
	return out, err
}

// EventsNamed lists the events of one name that came after a place in the order of coming, oldest
// first, and the place of the last event of any name that was looked at.
func (s *Store) EventsNamed(ctx context.Context, name string, after int64, limit int) (out []Entry, last int64, err error) {
	err = s.view(ctx, func(tx *database.Tx) error {
		out, last = nil, after
		if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM events`).Scan(&last); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT id, device, events.epoch, seq, last, time, name, subject, message
			FROM events JOIN devices USING (dev) WHERE id > ? AND name = ? AND audit = 0 ORDER BY id LIMIT ?`, after, name, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		var at int64
		for rows.Next() {
			e := Entry{Kind: api.RecordEvent, Event: &api.Event{}}
			var device []byte
			if err := rows.Scan(&at, &device, &e.Epoch, &e.Seq, &e.Last, &e.Event.Time, &e.Event.Name, &e.Event.Subject, &e.Event.Message); err != nil {
				return err
			}
			copy(e.Device[:], device)
			out = append(out, e)
		}
		if len(out) == limit {
			last = at
		}
		return rows.Err()
	})
	return out, last, err
}

// Aside is something that was set aside for operators.
type Aside struct {
	Device       api.DeviceID
	At           time.Time
	What, Detail string // What is "fork", "poison" or "state"
	Raw          []byte
}

// Quarantine lists what was set aside, newest first. A limit of 0 means 100.
func (s *Store) Quarantine(ctx context.Context, limit int) (out []Aside, err error) {
	if limit <= 0 {
		limit = 100
	}
	err = s.view(ctx, func(tx *database.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT device, at, what, detail, raw FROM quarantine JOIN devices USING (dev) ORDER BY id DESC LIMIT ?`, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var a Aside
			var device []byte
			var at int64
			if err := rows.Scan(&device, &at, &a.What, &a.Detail, &a.Raw); err != nil {
				return err
			}
			if len(a.Raw) == 0 {
				a.Raw = nil // as SQLite gives what is empty
			}
			copy(a.Device[:], device)
			a.At = time.UnixMilli(at)
			if len(a.Raw) == 0 {
				a.Raw = nil // SQLite's driver tells no empty value from none
			}
			out = append(out, a)
		}
		return rows.Err()
	})
	return out, err
}

// view runs fn on one consistent state.
func (s *Store) view(ctx context.Context, fn func(*database.Tx) error) error {
	return s.db.Read(ctx, fn)
}
