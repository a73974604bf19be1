package intake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link"
)

// Devices implements link.CoreStore.
func (s *Store) Devices(fn func(link.DeviceRow) error) error {
	s.mu.Lock()
	if err := s.fresh(context.Background()); err != nil {
		s.mu.Unlock()
		return err
	}
	live, err := s.liveKeys(context.Background())
	rows := make([]link.DeviceRow, 0, len(s.devices))
	for id, d := range s.devices {
		rows = append(rows, link.DeviceRow{Device: id, Attachment: d.attachment, Epoch: d.stateEpoch, Seq: d.stateSeq, Live: live[d.dev]})
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read which keys are reported: %w", err)
	}
	for _, r := range rows {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// liveKeys lists what every device reports, by its number in the file.
func (s *Store) liveKeys(ctx context.Context) (map[int64][]link.LiveKey, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT dev, key, seq FROM entries ORDER BY dev, key`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	live := map[int64][]link.LiveKey{}
	names := map[string]string{} // thousands of devices report keys of the same names
	for rows.Next() {
		var dev, seq int64
		var key string
		if err := rows.Scan(&dev, &key, &seq); err != nil {
			return nil, err
		}
		if one, ok := names[key]; ok {
			key = one
		} else {
			names[key] = key
		}
		live[dev] = append(live[dev], link.LiveKey{Key: key, Seq: uint64(seq)})
	}
	return live, rows.Err()
}

// ApplyState implements link.CoreStore.
func (s *Store) ApplyState(changes []link.StateChange) error {
	ctx := s.work()
	s.mu.Lock()
	defer s.mu.Unlock()
	touched := make(map[api.DeviceID]*device)
	ids := make([]api.DeviceID, 0, len(changes))
	for i := range changes {
		ids = append(ids, changes[i].Device)
	}
	now := s.cfg.Now()
	err := s.settled(ctx, func() error {
		return s.inTx(ctx, func(tx *database.Tx) error {
			clear(touched)
			if err := s.confirm(ctx, tx, ids); err != nil {
				return err
			}
			for i := range changes {
				c := &changes[i]
				d, err := s.touch(ctx, tx, touched, c.Device)
				if err != nil {
					return err
				}
				if err := s.applyOne(ctx, tx, d, c, now); err != nil {
					return fmt.Errorf("state of device %s: %w", c.Device, err)
				}
			}
			return s.say(ctx, tx, slices.Collect(maps.Keys(touched)))
		})
	})
	if err != nil {
		return err
	}
	s.keep(touched)
	for id := range touched {
		delete(s.seen, id)
		if s.cfg.Changed != nil {
			s.cfg.Changed(id)
		}
	}
	return nil
}

func (s *Store) applyOne(ctx context.Context, tx *database.Tx, d *device, c *link.StateChange, now time.Time) error {
	switch {
	case c.Epoch < d.stateEpoch:
		return nil // overtaken
	case c.Full || c.Epoch > d.stateEpoch:
		if _, err := tx.ExecContext(ctx, sqlClearEntries, d.dev); err != nil {
			return err
		}
		d.stateEpoch, d.stateSeq = c.Epoch, 0
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		if !nameable(e.Key) {
			if err := s.setAside(ctx, tx, d.dev, "state", fmt.Sprintf("the ledger cannot hold the key %.100q", e.Key), e.Value); err != nil {
				return err
			}
			continue
		}
		var err error
		if e.Deleted {
			_, err = tx.ExecContext(ctx, sqlDropEntry, d.dev, e.Key, int64(e.Seq))
		} else {
			_, err = tx.ExecContext(ctx, sqlPutEntry, d.dev, e.Key, blob(e.Value), int64(e.Seq), e.MAC[:], e.Extra)
		}
		if err != nil {
			return err
		}
	}
	for _, e := range c.Quarantined {
		if err := s.setAside(ctx, tx, d.dev, "state", fmt.Sprintf("the check value of key %q is wrong", e.Key), e.Value); err != nil {
			return err
		}
	}
	d.stateSeq = max(d.stateSeq, c.Seq)
	if c.Attachment != nil && !s.outdone(d.attachment, c.Attachment) {
		d.attachment = append([]byte(nil), c.Attachment...)
		if _, err := tx.ExecContext(ctx, sqlPutAttachment, d.dev, d.attachment, c.Parent[:]); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, sqlPutVector, d.dev, int64(d.stateEpoch), int64(d.stateSeq), now.UnixMilli())
	return err
}

// blob keeps an empty value apart from none.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// touch gives the copy of a device that this transaction changes, and writes its row
// if it has none.
func (s *Store) touch(ctx context.Context, tx *database.Tx, touched map[api.DeviceID]*device, id api.DeviceID) (*device, error) {
	if d, ok := touched[id]; ok && d.dev != 0 {
		return d, nil
	}
	d := touched[id]
	if d == nil {
		if old, ok := s.devices[id]; ok {
			d = old.clone()
		} else {
			d = &device{id: id}
		}
		touched[id] = d
	}
	if d.dev == 0 {
		var known int64
		if err := tx.QueryRowContext(ctx, sqlNewDevice, id[:]).Scan(&d.dev, &known); err != nil {
			return nil, fmt.Errorf("enter device %s: %w", id, err)
		}
		if known != 0 { // another core entered it at the same moment
			s.stale = true
			return nil, errMoved
		}
	}
	return d, nil
}

// keep makes what a committed transaction changed the truth in memory.
func (s *Store) keep(touched map[api.DeviceID]*device) {
	for id, d := range touched {
		s.devices[id] = d
	}
}

// setAside keeps something for operators, the newest hundred of a device and cause.
func (s *Store) setAside(ctx context.Context, tx *database.Tx, dev int64, what, detail string, raw []byte) error {
	s.cfg.Log.Warn("set aside", "dev", dev, "what", what, "detail", detail, "bytes", len(raw))
	if _, err := tx.ExecContext(ctx, sqlSetAside, dev, s.cfg.Now().UnixMilli(), what, database.Legible(detail), raw); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, sqlPruneAside, dev, what)
	return err
}

// Seen notes that a device was heard of. It is written with the next commit of
// something else, or by Close.
func (s *Store) Seen(id api.DeviceID, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.After(s.seen[id]) {
		s.seen[id] = at
	}
}

func (s *Store) flushSeen(ctx context.Context) error {
	if len(s.seen) == 0 {
		return nil
	}
	err := s.inTx(ctx, func(tx *database.Tx) error {
		for id, at := range s.seen {
			d, ok := s.devices[id]
			if !ok {
				continue
			}
			if _, err := tx.ExecContext(ctx, sqlPutSeen, d.dev, at.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		clear(s.seen)
	}
	return err
}
