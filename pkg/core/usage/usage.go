// Package usage answers: what was used, by whom, and who pays for it?
//
// It joins the records that the ledger counted with what stood in objects at the time of
// use: a history, written when objects change, so that a record which comes weeks later is
// still told by its own time.
package usage

import (
	"context"
	"embed"
	"maps"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Migrate brings the room's tables in the ledger's database up to date.
func Migrate(ctx context.Context, db *database.DB) error {
	return db.Migrate(ctx, migrations, "usage_db_version")
}

// Records is what the room asks of the ledger.
type Records interface {
	// Between gives the records of usage of a device that began in [from, to).
	Between(ctx context.Context, device api.DeviceID, from, to time.Time, each func(*Record) error) error
	// Heard tells of a device when it was heard last, and which stretches of time lie at
	// records that are lost or cannot be read.
	Heard(ctx context.Context, device api.DeviceID) (last time.Time, holes []Hole, err error)
}

// Record is one record of usage that was counted.
type Record struct {
	Epoch, Seq, Last uint64
	Received         time.Time
	Usage            *api.Usage
}

// Hole is a time between two intervals of a device at which records are missing.
type Hole struct {
	From, To time.Time
	Why      string // GapLost or GapUnknown
}

// Config is what the room needs.
type Config struct {
	DB      *database.DB // the ledger's; Migrate was called
	Records Records
	Now     func() time.Time
}

// Room tells what was used. Its methods may be called from any goroutine.
type Room struct {
	cfg Config
	db  *database.DB
}

// New makes the room.
func New(cfg Config) *Room { return &Room{cfg: cfg, db: cfg.DB} }

// Entries gives the entries of a tenant (its uid) that began in [from, to). It may be asked
// again: the same records make the same entries.
func (r *Room) Entries(ctx context.Context, tenant string, from, to time.Time, each func(*api.UsageEntry) error) error {
	p, err := r.history(ctx, tenant)
	if err != nil {
		return err
	}
	for _, device := range sorted(p.devices) {
		id, err := api.ParseDeviceID(device)
		if err != nil {
			return err
		}
		err = r.cfg.Records.Between(ctx, id, from, to, func(rec *Record) error {
			for _, e := range p.entries(id, rec) {
				if err := each(&e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// entries makes those of one record. It is a pure function of the record and the history.
func (p *past) entries(device api.DeviceID, rec *Record) (out []api.UsageEntry) {
	n := 0
	for i := range rec.Usage.Uses {
		c := &rec.Usage.Uses[i]
		base, ok := p.attribution(device.String(), c.App, rec.Usage.From)
		base.Service, base.Received = c.Service, rec.Received.UTC()
		base.From, base.To = time.UnixMilli(rec.Usage.From).UTC(), time.UnixMilli(rec.Usage.To).UTC()
		base.Coarse = rec.Last > rec.Seq
		for _, q := range Quantities(c) {
			e := base
			e.ID = api.RecordEntryID(device, rec.Epoch, rec.Seq, n)
			n++
			if e.Meter, e.Class, e.Unit, e.Quantity = q.Meter, q.Class, q.Unit, q.Quantity; ok && q.Quantity > 0 {
				out = append(out, e)
			}
		}
	}
	return out
}

// Gaps gives the times in [from, to) of which is not known what a tenant used.
func (r *Room) Gaps(ctx context.Context, tenant string, from, to time.Time) (out []api.UsageGap, err error) {
	p, err := r.history(ctx, tenant)
	if err != nil {
		return nil, err
	}
	if now := r.cfg.Now(); to.After(now) {
		to = now
	}
	for _, device := range sorted(p.devices) {
		id, err := api.ParseDeviceID(device)
		if err != nil {
			return nil, err
		}
		add := func(began, ended time.Time, why string) {
			if began.Before(from) {
				began = from
			}
			if ended.After(to) {
				ended = to
			}
			if e, ok := p.attribution(device, "", began.UnixMilli()); ok && began.Before(ended) {
				out = append(out, api.UsageGap{Tenant: tenant, Device: e.Device, DeviceName: e.DeviceName, From: began.UTC(), To: ended.UTC(), Why: why})
			}
		}
		last, holes, err := r.cfg.Records.Heard(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, h := range holes {
			add(h.From, h.To, h.Why)
		}
		if first := time.UnixMilli(p.devices[device][0].since); last.Before(first) {
			last = first // it was never heard
		}
		add(last, to, api.GapAway)
		err = r.cfg.Records.Between(ctx, id, from, to, func(rec *Record) error {
			if rec.Last > rec.Seq && p.changed(device, rec.Usage.From, rec.Usage.To) {
				add(time.UnixMilli(rec.Usage.From), time.UnixMilli(rec.Usage.To), api.GapCoarse)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
