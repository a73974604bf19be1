package intake

import (
	"context"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Watermark tells up to which record of each device a copy of the ledger counts.
type Watermark map[api.DeviceID]struct{ Epoch, Acked uint64 }

// BackupTo writes a consistent copy of the ledger to a new file, while others write,
// and tells what it counts. When the whole backup is safe, pass that to MarkSafe.
func (s *Store) BackupTo(ctx context.Context, path string) (Watermark, error) {
	if err := s.db.BackupTo(ctx, path); err != nil {
		return nil, fmt.Errorf("copy the ledger: %w", err)
	}
	return ReadWatermark(ctx, path)
}

// ReadWatermark reads what a copy of the ledger counts.
func ReadWatermark(ctx context.Context, path string) (_ Watermark, err error) {
	db, err := database.Open(ctx, database.Config{Place: path, Schema: Schema})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, `SELECT device, epoch, acked FROM devices`)
	if err != nil {
		return nil, fmt.Errorf("read the copy of the ledger: %w", err)
	}
	defer rows.Close()
	w := make(Watermark)
	for rows.Next() {
		var id []byte
		var epoch, acked int64
		if err := rows.Scan(&id, &epoch, &acked); err != nil {
			return nil, err
		}
		var device api.DeviceID
		copy(device[:], id)
		w[device] = struct{ Epoch, Acked uint64 }{uint64(epoch), uint64(acked)}
	}
	return w, rows.Err()
}

// Keep turns Config.KeepUnbacked on from now: there is a backup, and what it does not
// hold is to be kept. It may be repeated.
func (s *Store) Keep() { s.keeping.Store(true) }

// MarkSafe notes that a backup holds what w counts: devices may forget it. It may be
// called again, and with an older watermark. It returns the devices whose position
// moved; they should be told.
func (s *Store) MarkSafe(ctx context.Context, w Watermark) (moved []api.DeviceID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = s.stale || s.cfg.Shared
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	touched := make(map[api.DeviceID]*device)
	err = s.inTx(ctx, func(tx *database.Tx) error {
		clear(touched)
		moved = nil
		for id, at := range w {
			old := s.devices[id]
			if old == nil || at.Acked > old.acked || at.Acked <= old.safe {
				continue
			}
			d := old.clone()
			d.safe = at.Acked
			if _, err := tx.ExecContext(ctx, `UPDATE devices SET safe = ?1 WHERE dev = ?2 AND safe < ?1`, int64(d.safe), d.dev); err != nil {
				return err
			}
			touched[id] = d
			moved = append(moved, id)
		}
		if !s.cfg.Shared || len(moved) == 0 {
			return nil
		}
		return tx.Say(ctx, SaidSafe, moved)
	})
	if err != nil {
		return nil, err
	}
	s.keep(touched)
	return moved, nil
}
