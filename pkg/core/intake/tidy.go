package intake

import (
	"context"
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Retention is how long the ledger keeps detail. Zero is for ever. Totals stay exact
// whatever it says, audits stay, and so does what a device lost or what could not be read.
type Retention struct {
	// Intervals is how long each interval of usage stands by itself; older ones are summed
	// by UTC day of their end, never across a cut point. The chain values of old batches and old telemetry go too.
	Intervals time.Duration
	// Events is how long events stay.
	Events time.Duration
}

// dayMillis is a day of Unix milliseconds.
const dayMillis = 24 * 60 * 60 * 1000

// tidyDays bounds the days that one transaction sums up, so that records need not wait.
const tidyDays = 16

// Tidy applies a retention to all devices, in many small transactions. It may be stopped
// and repeated at any time.
func (s *Store) Tidy(ctx context.Context, r Retention) error {
	s.mu.Lock()
	s.stale = s.stale || s.cfg.Shared
	if err := s.fresh(ctx); err != nil {
		s.mu.Unlock()
		return err
	}
	ids := make([]api.DeviceID, 0, len(s.devices))
	for id := range s.devices {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		// Most devices have nothing to tidy: they must not cost a transaction each, for
		// which others wait.
		more, err := s.untidy(ctx, r, id)
		if err != nil {
			return fmt.Errorf("look through the ledger of device %s: %w", id, err)
		}
		for more {
			if err := ctx.Err(); err != nil {
				return err
			}
			if more, err = s.tidyDevice(ctx, r, id); err != nil {
				return fmt.Errorf("tidy the ledger of device %s: %w", id, err)
			}
		}
	}
	return nil
}

// untidyQuery tells whether tidyDevice would find anything. Its parameters are the device,
// the oldest event, the oldest interval, the kind of telemetry, a day, and the first day
// that is not summed up.
const untidyQuery = `SELECT EXISTS (SELECT 1 FROM events WHERE dev = ?1 AND audit = 0 AND time < ?2)
	OR EXISTS (SELECT 1 FROM batches b JOIN devices d ON d.dev = b.dev WHERE b.dev = ?1 AND b.taken < ?3 AND (NOT (b.epoch = d.epoch AND b.last = d.acked)
		OR EXISTS (SELECT 1 FROM others o WHERE o.dev = ?1 AND o.kind = ?4 AND o.poison IS NULL AND o.epoch = b.epoch AND o.seq >= b.first AND o.last <= b.last)))
	OR EXISTS (SELECT 1 FROM (SELECT epoch, seq, ended / ?5 AS day, ` + cutsBefore + ` AS piece, ` + signed + ` AS signed FROM usage WHERE dev = ?1 AND ended < ?6) AS pieces
		GROUP BY epoch, day, piece, signed HAVING min(seq) < max(seq))`

// cutsBefore counts the cut points among a device's rows of usage before one: rows of the same
// count have none between them.
const cutsBefore = `coalesce(sum(cut) OVER (PARTITION BY epoch ORDER BY seq RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)`

// signed tells whether the batch is kept that a row of usage came with. What is told from
// batches and what is told from rows must not become one row.
const signed = `EXISTS (SELECT 1 FROM verbatim v WHERE v.dev = usage.dev AND v.epoch = usage.epoch AND v.last >= usage.seq AND v.first <= usage.seq)`

// untidy tells whether there is anything to do for a device, without a transaction that
// writes.
func (s *Store) untidy(ctx context.Context, r Retention, id api.DeviceID) (is bool, err error) {
	s.mu.Lock()
	var dev int64
	if d := s.devices[id]; d != nil {
		dev = d.dev
	}
	s.mu.Unlock()
	if dev == 0 {
		return false, nil
	}
	now := s.cfg.Now()
	var events, intervals int64 // nothing is from before 1970
	if r.Events > 0 {
		events = now.Add(-r.Events).UnixMilli()
	}
	if r.Intervals > 0 {
		intervals = now.Add(-r.Intervals).UnixMilli()
	}
	err = s.db.QueryRowContext(ctx, untidyQuery, dev, events, intervals, int64(api.RecordTelemetry), dayMillis, intervals-intervals%dayMillis).Scan(&is)
	return is, err
}

// tidyDevice does one step for one device, and tells whether there is more to do.
func (s *Store) tidyDevice(ctx context.Context, r Retention, id api.DeviceID) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(ctx); err != nil {
		return false, err
	}
	if err := s.reread(ctx, id); err != nil {
		return false, err
	}
	d, now := s.devices[id], s.cfg.Now()
	if d == nil || d.dev == 0 {
		return false, nil
	}
	err = s.inTx(ctx, func(tx *database.Tx) error {
		if r.Events > 0 {
			if _, err := tx.ExecContext(ctx, `DELETE FROM events WHERE dev = ? AND audit = 0 AND time < ?`, d.dev, now.Add(-r.Events).UnixMilli()); err != nil {
				return err
			}
		}
		if r.Intervals <= 0 {
			return nil
		}
		before := now.Add(-r.Intervals).UnixMilli()
		if err := dropBatches(ctx, tx, d, before); err != nil {
			return err
		}
		days, err := daysToSum(ctx, tx, d.dev, before-before%dayMillis)
		if err != nil {
			return err
		}
		more = len(days) == tidyDays
		for i := range days {
			if err := days[i].sum(ctx, tx, d.dev); err != nil {
				return err
			}
		}
		return nil
	})
	return more, err
}

// dropBatches forgets telemetry and chain values of old batches, but for the last one. An
// old batch that comes again is then a repeat without a second look.
func dropBatches(ctx context.Context, tx *database.Tx, d *device, before int64) error {
	// Telemetry has no time of its own here: it goes with the batch that brought it.
	if _, err := tx.ExecContext(ctx, `DELETE FROM others WHERE dev = ?1 AND kind = ?2 AND poison IS NULL AND EXISTS (
		SELECT 1 FROM batches b WHERE b.dev = ?1 AND b.epoch = others.epoch AND b.first <= others.seq AND b.last >= others.last AND b.taken < ?3)`,
		d.dev, int64(api.RecordTelemetry), before); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `DELETE FROM batches WHERE dev = ? AND taken < ? AND NOT (epoch = ? AND last = ?)`, d.dev, before, int64(d.epoch), int64(d.acked))
	return err
}

// usageDay is the usage of a device in a UTC day between two cut points, of one spool epoch.
type usageDay struct {
	epoch, day                            int64
	seq, newest, last, began, ended, cuts int64
}

func daysToSum(ctx context.Context, tx *database.Tx, dev, before int64) (days []usageDay, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT epoch, day, min(seq), max(seq), max(last), min(began), max(ended), max(cut) FROM (
		SELECT epoch, seq, last, began, ended, cut, ended / ?2 AS day, `+cutsBefore+` AS piece, `+signed+` AS signed FROM usage WHERE dev = ?1 AND ended < ?3) AS pieces
		GROUP BY epoch, day, piece, signed HAVING min(seq) < max(seq) ORDER BY epoch, min(seq) LIMIT ?4`, dev, dayMillis, before, tidyDays)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var d usageDay
		if err := rows.Scan(&d.epoch, &d.day, &d.seq, &d.newest, &d.last, &d.began, &d.ended, &d.cuts); err != nil {
			return nil, err
		}
		days = append(days, d)
	}
	return days, rows.Err()
}

// sum puts one record in the place of a day's, as a device does that runs out of room: its
// numbers go from the first to the last.
func (u *usageDay) sum(ctx context.Context, tx *database.Tx, dev int64) error {
	const where = ` FROM usage WHERE dev = ? AND epoch = ? AND ended / ? = ? AND seq BETWEEN ? AND ?`
	args := []any{dev, u.epoch, dayMillis, u.day, u.seq, u.newest}
	var records int64
	if err := tx.QueryRowContext(ctx, `SELECT sum(records) FROM (SELECT DISTINCT seq, records`+where+`) AS intervals`, args...).Scan(&records); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, `SELECT svc, sum(run_ms), sum(cpu_us), sum(mem_bs), sum(rx_bytes), sum(tx_bytes)`+where+` GROUP BY svc ORDER BY svc DESC`, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var sums [][6]int64
	for rows.Next() {
		var v [6]int64
		if err := rows.Scan(&v[0], &v[1], &v[2], &v[3], &v[4], &v[5]); err != nil {
			return err
		}
		if v[0] == 0 && len(sums) > 0 {
			continue // says only that an interval held no container
		}
		sums = append(sums, v)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	cards, err := accelerators(ctx, tx, where, args...)
	if err != nil {
		return err
	}
	more, err := moreMeters(ctx, tx, where, args...)
	if err != nil {
		return err
	}
	for _, table := range []string{"accelerators", "meters"} {
		if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE (dev, epoch, seq, svc) IN (SELECT dev, epoch, seq, svc`+where+`)`, args...); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `DELETE`+where, args...); err != nil {
		return err
	}
	for _, v := range sums {
		if _, err := tx.ExecContext(ctx, putUsage.one, dev, u.epoch, u.seq, v[0], u.last, u.began, u.ended, v[1], v[2], v[3], v[4], v[5], u.cuts, records); err != nil {
			return err
		}
		if err := putDetail(ctx, tx, dev, u.epoch, u.seq, v[0], &api.ContainerUse{Accelerator: cards[v[0]], More: more[v[0]]}); err != nil {
			return err
		}
	}
	return nil
}
