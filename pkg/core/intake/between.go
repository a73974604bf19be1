package intake

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Used is one service's row of a usage record.
type Used struct {
	Epoch, Seq, Last uint64
	// N is its place among the rows of its record.
	N int
	// From and To are Unix milliseconds, by the device's clock.
	From, To int64
	// Taken is when the core counted it; zero when that is forgotten (Tidy).
	Taken time.Time
	Use   api.ContainerUse
}

// UsedBetween gives what a device's services used in intervals that began in [from, to),
// in the order of the records.
func (s *Store) UsedBetween(ctx context.Context, id api.DeviceID, from, to time.Time, each func(*Used) error) error {
	return s.view(ctx, func(tx *database.Tx) error {
		var dev int64
		err := tx.QueryRowContext(ctx, `SELECT dev FROM devices WHERE device = ?`, id[:]).Scan(&dev)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT u.epoch, u.seq, u.last, u.began, u.ended, coalesce(app, ''), coalesce(service, ''), run_ms, cpu_us, mem_bs, rx_bytes, tx_bytes,
			coalesce(held_ms, 0), coalesce(slice_ms, 0), coalesce(mem_mibs, 0), coalesce(busy_ms, 0), coalesce(energy_mj, 0),
			coalesce((SELECT taken FROM batches b WHERE b.dev = u.dev AND b.epoch = u.epoch AND b.last >= u.seq AND b.first <= u.seq ORDER BY b.last LIMIT 1), 0)
			FROM usage u LEFT JOIN services v ON v.svc = u.svc LEFT JOIN accelerators a ON a.dev = u.dev AND a.epoch = u.epoch AND a.seq = u.seq AND a.svc = u.svc
			WHERE u.dev = ? AND u.began >= ? AND u.began < ? AND u.svc <> 0 ORDER BY u.epoch, u.seq, u.svc`, dev, from.UnixMilli(), to.UnixMilli())
		if err != nil {
			return err
		}
		defer rows.Close()
		var x Used
		for rows.Next() {
			was, taken := x, int64(0)
			c := &x.Use
			a := &c.Accelerator
			if err := rows.Scan(&x.Epoch, &x.Seq, &x.Last, &x.From, &x.To, &c.App, &c.Service, &c.RunMillis, &c.CPUMicros, &c.MemoryByteSeconds, &c.RxBytes, &c.TxBytes,
				&a.HeldMillis, &a.SliceMillis, &a.MemoryMiBSeconds, &a.BusyMillis, &a.EnergyMillijoules, &taken); err != nil {
				return err
			}
			if x.N = 0; was.Seq == x.Seq && was.Epoch == x.Epoch {
				x.N = was.N + 1
			}
			if x.Taken = (time.Time{}); taken > 0 {
				x.Taken = time.UnixMilli(taken).UTC()
			}
			if err := each(&x); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}
