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

	tx   *database.Tx
	rows []any // of usage, not yet inserted
}

const usageColumns = 12

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
	if f.Verdict != link.Accepted {
		return nil
	}
	_, err := w.tx.ExecContext(w.ctx, sqlPutBatch, dev, int64(f.epoch), int64(f.last), int64(f.first), f.end[:], now)
	return err
}

// record enters one record. One that cannot be read is kept as it is, with the reason;
// it counts as seen and is never asked for again.
func (w *ledgerWriter) record(dev int64, epoch uint64, r *record.Record, as *decoded) error {
	if as.usage != nil {
		return w.usage(dev, epoch, r, as.usage)
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
		if max(c.RunMillis, c.CPUMicros, c.MemoryByteSeconds, c.RxBytes, c.TxBytes) > math.MaxInt64>>10 || beyond(&c.Accelerator) {
			return fmt.Errorf("usage of %s/%s is beyond measure", c.App, c.Service)
		}
	}
	return nil
}

// maxName bounds names in bytes: the indexes of PostgreSQL hold keys of 2,704 bytes.
const maxName = 1024

// nameable tells whether the ledger can hold something by a name that a device chose.
func nameable(s string) bool { return len(s) <= maxName && database.Text(s) }

func (w *ledgerWriter) usage(dev int64, epoch uint64, r *record.Record, u *api.Usage) error {
	if len(u.Uses) == 0 {
		return w.row(dev, epoch, r, u, 0, &api.ContainerUse{})
	}
	for i := range u.Uses {
		c := &u.Uses[i]
		svc, err := w.service(c.App, c.Service)
		if err != nil {
			return err
		}
		if err := w.row(dev, epoch, r, u, svc, c); err != nil {
			return err
		}
	}
	return nil
}

func (w *ledgerWriter) row(dev int64, epoch uint64, r *record.Record, u *api.Usage, svc int64, c *api.ContainerUse) error {
	if err := putAccelerator(w.ctx, w.tx, dev, int64(epoch), int64(r.Seq), svc, &c.Accelerator); err != nil {
		return err
	}
	w.rows = append(w.rows, dev, int64(epoch), int64(r.Seq), svc, int64(r.Last), u.From, u.To,
		int64(c.RunMillis), int64(c.CPUMicros), int64(c.MemoryByteSeconds), int64(c.RxBytes), int64(c.TxBytes))
	if len(w.rows) < usageRows*usageColumns {
		return nil
	}
	_, err := w.tx.ExecContext(w.ctx, sqlPutUsages, w.rows...)
	w.rows = w.rows[:0]
	return err
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
	for i := 0; i < len(w.rows); i += usageColumns {
		if _, err := w.tx.ExecContext(w.ctx, sqlPutUsage, w.rows[i:i+usageColumns]...); err != nil {
			return err
		}
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
