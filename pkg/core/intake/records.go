package intake

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link/record"
)

// Records lists one device's records with a number above after, oldest first, over all
// its spool epochs. A limit of 0 means 500. Usage is told record by record for as long as the
// batches are kept that brought it, and as it was summed up after that.
func (s *Store) Records(ctx context.Context, id api.DeviceID, after uint64, limit int) (out []Entry, err error) {
	if limit <= 0 {
		limit = 500
	}
	err = s.view(ctx, func(tx *database.Tx) error {
		dev, err := deviceNumber(ctx, tx, id)
		if dev == 0 {
			return err
		}
		// First the numbers, wherever they are, then what stands there.
		rows, err := tx.QueryContext(ctx, `SELECT epoch, seq, last, kind FROM (
			SELECT DISTINCT epoch, seq, last, 1 AS kind FROM usage u WHERE dev = ?1 AND seq > ?2
				AND NOT EXISTS (SELECT 1 FROM verbatim v WHERE v.dev = u.dev AND v.epoch = u.epoch AND v.last >= u.seq AND v.first <= u.seq)
			UNION ALL SELECT epoch, seq, last, 2 + audit FROM events WHERE dev = ?1 AND seq > ?2
			UNION ALL SELECT epoch, seq, last, kind FROM others WHERE dev = ?1 AND seq > ?2) AS numbers
			ORDER BY epoch, seq LIMIT ?3`, dev, int64(after), limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e := Entry{Device: id}
			if err := rows.Scan(&e.Epoch, &e.Seq, &e.Last, &e.Kind); err != nil {
				return err
			}
			out = append(out, e)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for i := range out {
			if err := fillEntry(ctx, tx, dev, &out[i]); err != nil {
				return err
			}
		}
		signed, err := usageRecords(ctx, tx, id, dev, after, limit)
		if err != nil {
			return err
		}
		out = append(out, signed...)
		slices.SortStableFunc(out, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq)) })
		out = out[:min(limit, len(out))]
		return nil
	})
	return out, err
}

// deviceNumber is a device's number in the ledger; 0 where it is not known.
func deviceNumber(ctx context.Context, tx *database.Tx, id api.DeviceID) (dev int64, err error) {
	err = tx.QueryRowContext(ctx, `SELECT dev FROM devices WHERE device = ?`, id[:]).Scan(&dev)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return dev, err
}

// usageRecords lists records of usage out of the batches that are kept.
func usageRecords(ctx context.Context, tx *database.Tx, id api.DeviceID, dev int64, after uint64, limit int) (out []Entry, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT epoch, first, last, taken, prev, raw FROM verbatim WHERE dev = ? AND last > ? ORDER BY epoch, last`, dev, int64(after))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() && len(out) < limit {
		b := Batch{Device: id}
		if err := b.scan(rows); err != nil {
			return nil, err
		}
		list, err := b.Usage()
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if e.Seq > after {
				out = append(out, e)
			}
		}
	}
	return out, rows.Err()
}

// Batch is a batch as its device signed it.
type Batch struct {
	Device api.DeviceID
	Epoch  uint64
	// First and Last are the records that were counted of it: it may begin with some that
	// had come before.
	First, Last uint64
	Taken       time.Time
	// Prev is the chain value before it, which is signed with it.
	Prev record.Hash
	Raw  []byte
}

func (b *Batch) scan(rows *sql.Rows) error {
	var taken int64
	var prev []byte
	if err := rows.Scan(&b.Epoch, &b.First, &b.Last, &taken, &prev, &b.Raw); err != nil {
		return err
	}
	b.Taken = time.UnixMilli(taken)
	copy(b.Prev[:], prev)
	return nil
}

// records opens what was verified before it was kept.
func (b *Batch) records() ([]record.Record, error) {
	kept, _, err := record.Open(func([]byte, []byte) ([]byte, error) { return nil, nil }, b.Raw, b.Device, b.Prev)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(kept.Records, func(r record.Record) bool { return r.Seq < b.First || r.Last > b.Last }), nil
}

// Usage lists the records of usage that were counted of a batch.
func (b *Batch) Usage() (out []Entry, err error) {
	records, err := b.records()
	if err != nil {
		return nil, err
	}
	for i := range records {
		r := &records[i]
		if r.Kind != api.RecordUsage {
			continue
		}
		if as := decodeRecord(r); as.usage != nil { // else it is set aside
			out = append(out, Entry{Device: b.Device, Epoch: b.Epoch, Seq: r.Seq, Last: r.Last, Kind: api.RecordUsage, Taken: b.Taken, Usage: as.usage})
		}
	}
	return out, nil
}

// BatchOf finds the batch that brought a record, or an error of code NotFound.
func (s *Store) BatchOf(ctx context.Context, id api.DeviceID, epoch, seq uint64) (*Batch, error) {
	b := &Batch{Device: id}
	err := s.view(ctx, func(tx *database.Tx) error {
		dev, err := deviceNumber(ctx, tx, id)
		if err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT epoch, first, last, taken, prev, raw FROM verbatim WHERE dev = ? AND epoch = ? AND last >= ? ORDER BY last LIMIT 1`, dev, int64(epoch), int64(seq))
		if err != nil {
			return err
		}
		defer rows.Close()
		if rows.Next() {
			if err := b.scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err == nil && (b.Raw == nil || b.First > seq) {
		err = &api.Error{Code: api.NotFound, Message: "no batch is kept that brought this record", Remedy: "see `edgectl records`; what came before the core kept batches has none"}
	}
	return b, err
}

func fillEntry(ctx context.Context, tx *database.Tx, dev int64, e *Entry) error {
	var first, taken int64
	err := tx.QueryRowContext(ctx, `SELECT first, taken FROM batches WHERE dev = ? AND epoch = ? AND last >= ? ORDER BY last LIMIT 1`, dev, int64(e.Epoch), int64(e.Seq)).Scan(&first, &taken)
	if err == nil && uint64(first) <= e.Seq { // else its batch is forgotten
		e.Taken = time.UnixMilli(taken)
	} else if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var poison sql.NullString
	err = tx.QueryRowContext(ctx, `SELECT poison, payload FROM others WHERE dev = ? AND epoch = ? AND seq = ?`, dev, int64(e.Epoch), int64(e.Seq)).Scan(&poison, &e.Payload)
	if err == nil {
		e.Poison = poison.String
		return nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if e.Kind != api.RecordUsage {
		e.Event = &api.Event{}
		return tx.QueryRowContext(ctx, `SELECT time, name, subject, message, actor FROM events WHERE dev = ? AND epoch = ? AND seq = ?`, dev, int64(e.Epoch), int64(e.Seq)).
			Scan(&e.Event.Time, &e.Event.Name, &e.Event.Subject, &e.Event.Message, &e.Event.Actor)
	}
	e.Usage = &api.Usage{}
	cards, err := accelerators(ctx, tx, ` FROM usage WHERE dev = ? AND epoch = ? AND seq = ?`, dev, int64(e.Epoch), int64(e.Seq))
	if err != nil {
		return err
	}
	more, err := moreMeters(ctx, tx, ` FROM usage WHERE dev = ? AND epoch = ? AND seq = ?`, dev, int64(e.Epoch), int64(e.Seq))
	if err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, `SELECT began, ended, cut, usage.svc, coalesce(app, ''), coalesce(service, ''), run_ms, cpu_us, mem_bs, rx_bytes, tx_bytes
		FROM usage LEFT JOIN services USING (svc) WHERE dev = ? AND epoch = ? AND seq = ? ORDER BY usage.svc`, dev, int64(e.Epoch), int64(e.Seq))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var svc int64
		var c api.ContainerUse
		if err := rows.Scan(&e.Usage.From, &e.Usage.To, &e.Usage.Cut, &svc, &c.App, &c.Service, &c.RunMillis, &c.CPUMicros, &c.MemoryByteSeconds, &c.RxBytes, &c.TxBytes); err != nil {
			return err
		}
		if c.Accelerator, c.More = cards[svc], more[svc]; svc != 0 {
			e.Usage.Uses = append(e.Usage.Uses, c)
		}
	}
	return rows.Err()
}

// Between gives the records of usage of a device that began in [from, to), as its batches
// hold them, and as they were summed up where those are not kept any more.
func (s *Store) Between(ctx context.Context, id api.DeviceID, from, to time.Time, each func(*Entry) error) error {
	return s.view(ctx, func(tx *database.Tx) error {
		dev, err := deviceNumber(ctx, tx, id)
		if dev == 0 {
			return err
		}
		lo, hi := from.UnixMilli(), to.UnixMilli()
		if err := summedBetween(ctx, tx, id, dev, lo, hi, each); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT epoch, first, last, taken, prev, raw FROM verbatim v WHERE dev = ?1 AND EXISTS (
			SELECT 1 FROM usage u WHERE u.dev = v.dev AND u.epoch = v.epoch AND u.seq <= v.last AND u.last >= v.first AND u.ended >= ?2 AND u.began < ?3)
			ORDER BY epoch, last`, dev, lo, hi)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			b := Batch{Device: id}
			if err := b.scan(rows); err != nil {
				return err
			}
			list, err := b.Usage()
			if err != nil {
				return err
			}
			for i := range list {
				if e := &list[i]; e.Usage.From >= lo && e.Usage.From < hi {
					if err := each(e); err != nil {
						return err
					}
				}
			}
		}
		return rows.Err()
	})
}

// summedBetween gives the rows of usage whose batches are not kept.
func summedBetween(ctx context.Context, tx *database.Tx, id api.DeviceID, dev, lo, hi int64, each func(*Entry) error) error {
	rows, err := tx.QueryContext(ctx, `SELECT DISTINCT epoch, seq, last FROM usage u WHERE dev = ?1 AND began >= ?2 AND began < ?3
		AND NOT EXISTS (SELECT 1 FROM verbatim v WHERE v.dev = u.dev AND v.epoch = u.epoch AND v.last >= u.seq AND v.first <= u.seq) ORDER BY epoch, seq`, dev, lo, hi)
	if err != nil {
		return err
	}
	defer rows.Close()
	var list []Entry
	for rows.Next() {
		e := Entry{Device: id, Kind: api.RecordUsage}
		if err := rows.Scan(&e.Epoch, &e.Seq, &e.Last); err != nil {
			return err
		}
		list = append(list, e)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for i := range list {
		if err := fillEntry(ctx, tx, dev, &list[i]); err != nil {
			return err
		}
		if err := each(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// Hole is a time between two intervals of usage of a device where records are missing.
type Hole struct {
	From, To time.Time
	// Unread says that a record of usage was set aside there; else the device gave records up.
	Unread bool
}

// Holes tells where usage of a device may be missing. Records that were given up between two
// intervals that follow each other were of other kinds.
func (s *Store) Holes(ctx context.Context, id api.DeviceID) (out []Hole, err error) {
	err = s.view(ctx, func(tx *database.Tx) error {
		dev, err := deviceNumber(ctx, tx, id)
		if dev == 0 {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT kind, (SELECT max(ended) FROM usage u WHERE u.dev = o.dev AND u.epoch = o.epoch AND u.seq < o.seq) AS before,
			(SELECT min(began) FROM usage u WHERE u.dev = o.dev AND u.epoch = o.epoch AND u.seq > o.last) AS behind
			FROM others o WHERE dev = ? AND (kind = ? OR kind = ? AND poison IS NOT NULL) ORDER BY epoch, seq`, dev, int64(record.Lost), int64(api.RecordUsage))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var kind int64
			var before, behind sql.NullInt64
			if err := rows.Scan(&kind, &before, &behind); err != nil {
				return err
			}
			if before.Valid && behind.Valid && before.Int64 < behind.Int64 {
				out = append(out, Hole{From: time.UnixMilli(before.Int64), To: time.UnixMilli(behind.Int64), Unread: kind == int64(api.RecordUsage)})
			}
		}
		return rows.Err()
	})
	return out, err
}
