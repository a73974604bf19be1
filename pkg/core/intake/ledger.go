package intake

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

// ledgerWriter writes counted records within one transaction.
type ledgerWriter struct {
	ctx     context.Context
	s       *Store
	written map[service]int64 // services named for the first time

	tx       *database.Tx
	usages   bulk
	verbatim bulk
	batches  bulk
}

func newLedgerWriter(ctx context.Context, s *Store, tx *database.Tx, written map[service]int64) *ledgerWriter {
	return &ledgerWriter{ctx: ctx, s: s, tx: tx, written: written, usages: putUsage, verbatim: putVerbatim, batches: putBatch}
}

// decoded is a record as the ledger enters it: one of the three.
type decoded struct {
	usage  *api.Usage
	event  *api.Event
	poison error // why it is neither
}

// decode reads the payloads, so that the writer need not.
func (f *finding) decode() {
	f.rows = make([]decoded, len(f.records))
	for i := range f.records {
		f.rows[i] = decodeRecord(&f.records[i])
	}
	f.runs = runs(f.records, f.rows)
}

func decodeRecord(r *record.Record) decoded {
	switch r.Kind {
	case api.RecordUsage:
		u, err := r.Usage()
		if err == nil {
			err = checkUsage(&u)
		}
		if err == nil && len(u.Uses) > 1 {
			u, err = record.SumUsage(u) // one row for each service, though it may be named twice
		}
		if err != nil {
			return decoded{poison: err}
		}
		return decoded{usage: &u}
	case api.RecordEvent, api.RecordAudit:
		e, err := record.DecodeEvent(r.Payload)
		if err == nil && !(database.Text(e.Name) && database.Text(e.Subject) && database.Text(e.Message) && database.Text(e.Actor)) {
			err = errors.New("an event with a byte 0 or what is not UTF-8 in its text")
		}
		if err != nil {
			return decoded{poison: err}
		}
		return decoded{event: &e}
	}
	return decoded{}
}

// write enters what one batch brings.
func (w *ledgerWriter) write(dev int64, f *finding, now int64) error {
	if f.aside != nil {
		what := "fork"
		if f.Verdict == link.Poison {
			what = "poison"
		}
		if err := w.s.setAside(w.ctx, w.tx, dev, what, f.Detail, f.aside); err != nil {
			return err
		}
	}
	for i := range f.records {
		if err := w.record(dev, f.epoch, &f.records[i], &f.rows[i]); err != nil {
			return err
		}
	}
	for i := range f.runs {
		if err := w.usage(dev, f.epoch, &f.runs[i]); err != nil {
			return err
		}
	}
	if f.Verdict != link.Accepted {
		return nil
	}
	return errors.Join(
		w.batches.add(w.ctx, w.tx, dev, int64(f.epoch), int64(f.last), int64(f.first), f.end[:], now),
		w.verbatim.add(w.ctx, w.tx, dev, int64(f.epoch), int64(f.last), int64(f.first), now, f.prev[:], f.raw))
}

// record enters one record. One that cannot be read is kept as it is, with the reason;
// it counts as seen and is never asked for again.
func (w *ledgerWriter) record(dev int64, epoch uint64, r *record.Record, as *decoded) error {
	if as.usage != nil {
		return nil // a run has it
	}
	if e := as.event; e != nil {
		audit := 0
		if r.Kind == api.RecordAudit {
			audit = 1
		}
		_, err := w.tx.ExecContext(w.ctx, sqlPutEvent, dev, int64(epoch), int64(r.Seq), int64(r.Last), audit, e.Time, e.Name, e.Subject, e.Message, e.Actor)
		return err
	}
	var why any
	if as.poison != nil {
		why = database.Legible(as.poison.Error())
		w.s.cfg.Log.Warn("record set aside", "dev", dev, "seq", r.Seq, "err", as.poison)
	}
	_, err := w.tx.ExecContext(w.ctx, sqlPutOther, dev, int64(epoch), int64(r.Seq), int64(r.Last), int64(r.Kind), why, r.Payload)
	return err
}

// checkUsage refuses what the ledger cannot sum, for its integers are signed, or cannot name.
func checkUsage(u *api.Usage) error {
	if u.To < u.From {
		return errors.New("usage ends before it begins")
	}
	for i := range u.Uses {
		c := &u.Uses[i]
		if !nameable(c.App) || !nameable(c.Service) {
			return errors.New("usage of a service whose name the ledger cannot hold")
		}
		if max(c.RunMillis, c.CPUMicros, c.MemoryByteSeconds, c.RxBytes, c.TxBytes) > math.MaxInt64>>10 || beyond(&c.Accelerator) || beyondMore(c.More) {
			return fmt.Errorf("usage of %s/%s is beyond measure", c.App, c.Service)
		}
		for meter := range c.More {
			if len(meter) > maxMeter || !database.Text(meter) {
				return fmt.Errorf("usage of %s/%s by a meter whose name the ledger cannot hold", c.App, c.Service)
			}
		}
	}
	return nil
}

// maxName bounds names in bytes: the indexes of PostgreSQL hold keys of 2,704 bytes.
const maxName = 1024

// nameable tells whether the ledger can hold something by a name that a device chose.
func nameable(s string) bool { return len(s) <= maxName && database.Text(s) }

func (w *ledgerWriter) usage(dev int64, epoch uint64, r *run) error {
	if len(r.Uses) == 0 {
		return w.row(dev, epoch, r, 0, &api.ContainerUse{})
	}
	for i := range r.Uses {
		c := &r.Uses[i]
		svc, err := w.service(c.App, c.Service)
		if err != nil {
			return err
		}
		if err := w.row(dev, epoch, r, svc, c); err != nil {
			return err
		}
	}
	return nil
}

func (w *ledgerWriter) row(dev int64, epoch uint64, r *run, svc int64, c *api.ContainerUse) error {
	if err := putDetail(w.ctx, w.tx, dev, int64(epoch), int64(r.seq), svc, c); err != nil {
		return err
	}
	return w.usages.add(w.ctx, w.tx, dev, int64(epoch), int64(r.seq), svc, int64(r.last), r.From, r.To,
		int64(c.RunMillis), int64(c.CPUMicros), int64(c.MemoryByteSeconds), int64(c.RxBytes), int64(c.TxBytes), flag(r.Cut), r.records)
}

func flag(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// service interns a name.
func (w *ledgerWriter) service(app, name string) (int64, error) {
	k := service{app, name}
	if id, ok := w.s.services[k]; ok {
		return id, nil
	}
	if id, ok := w.written[k]; ok {
		return id, nil
	}
	var id int64
	err := w.tx.QueryRowContext(w.ctx, sqlFindService, app, name).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = w.tx.QueryRowContext(w.ctx, sqlNewService, app, name).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("name service %s/%s: %w", app, name, err)
	}
	w.written[k] = id
	return id, nil
}

// finish inserts the rows left over and the devices' new positions.
func (w *ledgerWriter) finish(touched map[api.DeviceID]*device, now int64) error {
	if err := errors.Join(w.usages.flush(w.ctx, w.tx), w.batches.flush(w.ctx, w.tx), w.verbatim.flush(w.ctx, w.tx)); err != nil {
		return err
	}
	for _, d := range touched {
		var hash []byte
		if d.known {
			hash = d.hash[:]
		}
		if _, err := w.tx.ExecContext(w.ctx, sqlPutPosition, d.dev, int64(d.epoch), int64(d.acked), now, hash); err != nil {
			return err
		}
	}
	return nil
}
