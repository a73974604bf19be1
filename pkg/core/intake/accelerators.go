package intake

import (
	"context"
	"math"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

const (
	acceleratorSums   = `sum(held_ms), sum(slice_ms), sum(mem_mibs), sum(busy_ms), sum(unknown_ms), sum(energy_mj)`
	acceleratorFields = `held_ms, slice_ms, mem_mibs, busy_ms, unknown_ms, energy_mj`
)

// beyond tells that a counter is more than the ledger can sum.
func beyond(u *api.AcceleratorUse) bool {
	for _, n := range u.Fields() {
		if *n > math.MaxInt64>>10 {
			return true
		}
	}
	return false
}

// putAccelerator enters what a row of usage says of cards; most say nothing.
func putAccelerator(ctx context.Context, tx *database.Tx, dev, epoch, seq, svc int64, u *api.AcceleratorUse) error {
	if *u == (api.AcceleratorUse{}) {
		return nil
	}
	args := []any{dev, epoch, seq, svc}
	for _, n := range u.Fields() {
		args = append(args, int64(*n))
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO accelerators (dev, epoch, seq, svc, `+acceleratorFields+`) VALUES (?,?,?,?,?,?,?,?,?,?)`, args...)
	return err
}

// accelerators sums up by service what rows of usage say of cards. From is the rest of a
// query on table usage, from FROM on.
func accelerators(ctx context.Context, tx *database.Tx, from string, args ...any) (map[int64]api.AcceleratorUse, error) {
	rows, err := tx.QueryContext(ctx, `SELECT svc, `+acceleratorSums+` FROM accelerators WHERE (dev, epoch, seq, svc) IN (SELECT dev, epoch, seq, svc`+from+`) GROUP BY svc`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[int64]api.AcceleratorUse{}
	for rows.Next() {
		var svc int64
		var u api.AcceleratorUse
		f := u.Fields()
		if err := rows.Scan(&svc, f[0], f[1], f[2], f[3], f[4], f[5]); err != nil {
			return nil, err
		}
		out[svc] = u
	}
	return out, rows.Err()
}
