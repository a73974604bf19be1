package intake

import (
	"context"
	"maps"
	"math"
	"slices"

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

func beyondMore(more map[string]uint64) bool {
	for _, n := range more {
		if n > math.MaxInt64>>10 {
			return true
		}
	}
	return false
}

// maxMeter bounds the key of a meter in bytes.
const maxMeter = 128

// putDetail enters what a row of usage says of cards, and by further meters; most say nothing.
func putDetail(ctx context.Context, tx *database.Tx, dev, epoch, seq, svc int64, c *api.ContainerUse) error {
	for _, meter := range slices.Sorted(maps.Keys(c.More)) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO meters (dev, epoch, seq, svc, meter, quantity) VALUES (?,?,?,?,?,?)`, dev, epoch, seq, svc, meter, int64(c.More[meter])); err != nil {
			return err
		}
	}
	u := &c.Accelerator
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

// moreMeters sums up by service what rows of usage say by further meters. From is as for
// accelerators.
func moreMeters(ctx context.Context, tx *database.Tx, from string, args ...any) (map[int64]map[string]uint64, error) {
	rows, err := tx.QueryContext(ctx, `SELECT svc, meter, sum(quantity) FROM meters WHERE (dev, epoch, seq, svc) IN (SELECT dev, epoch, seq, svc`+from+`) GROUP BY svc, meter`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[int64]map[string]uint64{}
	for rows.Next() {
		var svc int64
		var meter string
		var n uint64
		if err := rows.Scan(&svc, &meter, &n); err != nil {
			return nil, err
		}
		if out[svc] == nil {
			out[svc] = map[string]uint64{}
		}
		out[svc][meter] = n
	}
	return out, rows.Err()
}
