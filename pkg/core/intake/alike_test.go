package intake

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

// pair is two ledgers that are told and asked the same.
type pair struct {
	stores [2]*Store
	cfgs   [2]Config
	now    time.Time
	boxes  [2]*box // of this round
	made   uint32  // boxes of all rounds
}

// Whatever is told and asked of them, SQLite and PostgreSQL answer alike.
func TestLedgersAnswerAlike(t *testing.T) {
	p := &pair{now: time.UnixMilli(100 * dayMillis)}
	for i, place := range []string{t.TempDir() + "/ledger.db", databasetest.Postgres(t)} {
		p.cfgs[i] = Config{Place: place, Now: func() time.Time { return p.now }, KeepUnbacked: true}
		p.stores[i] = open(t, p.cfgs[i])
	}
	defer func() {
		for _, s := range p.stores {
			s.Close()
		}
	}()
	key := newKey(t)
	databasetest.Checks(t, 12)
	rapid.Check(t, func(rt *rapid.T) {
		for i := range p.boxes { // of which nobody heard before
			p.made++
			p.boxes[i] = newBox(rt, 1, key)
			binary.BigEndian.PutUint32(p.boxes[i].id[4:], p.made)
		}
		for step := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			kind := rapid.SampledFrom([]string{"batches", "batches", "batches", "state", "tidy", "restart", "seen"}).Draw(rt, "step")
			do := map[string]func(*rapid.T) func(*Store) (any, error){"batches": p.batches, "state": p.state, "tidy": p.tidy, "seen": p.seen,
				"restart": func(*rapid.T) func(*Store) (any, error) { return p.restart }}[kind](rt)
			alike(rt, p, step, kind, do)
			alike(rt, p, step, "asked after "+kind, p.ask)
		}
	})
}

func alike(rt *rapid.T, p *pair, step int, kind string, do func(*Store) (any, error)) {
	var out [2]string
	for i := range p.stores {
		v, err := do(p.stores[i])
		b, failed := json.Marshal(v)
		if failed != nil {
			rt.Fatal(failed)
		}
		out[i] = fmt.Sprintf("%s %v", b, err)
	}
	if out[0] != out[1] {
		rt.Fatalf("step %d, %s: SQLite answers\n%s\nPostgreSQL\n%s", step, kind, out[0], out[1])
	}
}

var drawText = rapid.SampledFrom([]string{"", "shop", "Shop", "\u00e4", "a\x00b", "it's ?"})

// batches records something on a box and sends some of what it has, perhaps again.
func (p *pair) batches(rt *rapid.T) func(*Store) (any, error) {
	var in []link.BatchIn
	for range rapid.IntRange(1, 3).Draw(rt, "batches") {
		b := p.boxes[rapid.IntRange(0, 1).Draw(rt, "box")]
		for range rapid.IntRange(1, 6).Draw(rt, "records") {
			drawRecord(rt, b)
		}
		from := rapid.IntRange(1, len(b.recs)).Draw(rt, "from")
		if got, err := p.stores[0].Position(b.id); err == nil && rapid.IntRange(0, 3).Draw(rt, "next") > 0 {
			from = min(int(got.Acked)+1, len(b.recs))
		}
		in = append(in, b.cut(rt, from, rapid.IntRange(from, len(b.recs)).Draw(rt, "to"), rapid.Bool().Draw(rt, "explicit")))
	}
	return func(s *Store) (any, error) { return s.AcceptBatches(in) }
}

func drawRecord(rt *rapid.T, b *box) {
	var payload []byte
	var err error
	kind := rapid.SampledFrom([]api.RecordKind{api.RecordUsage, api.RecordUsage, api.RecordEvent, api.RecordAudit, api.RecordTelemetry, 77}).Draw(rt, "kind")
	at := rapid.Int64Range(90, 99).Draw(rt, "day")*dayMillis + int64(len(b.recs))
	switch kind {
	case api.RecordUsage:
		u := api.Usage{From: at, To: at + 1, Cut: rapid.IntRange(0, 3).Draw(rt, "cut") == 0}
		for range rapid.IntRange(0, 2).Draw(rt, "services") {
			u.Uses = append(u.Uses, api.ContainerUse{App: drawText.Draw(rt, "app"), Service: drawText.Draw(rt, "service"), CPUMicros: rapid.Uint64Range(0, 1<<53).Draw(rt, "cpu"),
				Accelerator: api.AcceleratorUse{HeldMillis: rapid.Uint64Range(0, 3).Draw(rt, "held")}, More: map[string]uint64{drawText.Draw(rt, "meter"): 2}})
		}
		payload, err = record.EncodeUsage(u)
	case api.RecordEvent, api.RecordAudit:
		payload, err = record.EncodeEvent(api.Event{Time: at, Name: drawText.Draw(rt, "name"), Message: drawText.Draw(rt, "message")})
	default:
		payload = []byte{0, 0xff}
	}
	if err != nil {
		rt.Fatal(err)
	}
	b.append(kind, payload)
}

func (p *pair) state(rt *rapid.T) func(*Store) (any, error) {
	b := p.boxes[rapid.IntRange(0, 1).Draw(rt, "box")]
	c := link.StateChange{Device: b.id, Epoch: rapid.Uint64Range(1, 3).Draw(rt, "epoch"), Seq: rapid.Uint64Range(1, 9).Draw(rt, "seq"), Full: rapid.Bool().Draw(rt, "full")}
	for range rapid.IntRange(0, 3).Draw(rt, "entries") {
		e := link.Entry{Key: drawText.Draw(rt, "key"), Value: []byte(drawText.Draw(rt, "value")), Seq: rapid.Uint64Range(1, 9).Draw(rt, "seq"), Deleted: rapid.Bool().Draw(rt, "deleted")}
		c.Entries = append(c.Entries, e)
	}
	if rapid.Bool().Draw(rt, "forged") {
		c.Quarantined = []link.Entry{{Key: drawText.Draw(rt, "key"), Value: []byte{0}}}
	}
	if rapid.Bool().Draw(rt, "attached") {
		c.Attachment, c.Parent = []byte{0, 1}, api.DeviceID{7}
	}
	return func(s *Store) (any, error) { return nil, s.ApplyState([]link.StateChange{c}) }
}

func (p *pair) seen(rt *rapid.T) func(*Store) (any, error) {
	b, at := p.boxes[0], p.now.Add(time.Duration(rapid.IntRange(-5, 5).Draw(rt, "ago"))*time.Second)
	return func(s *Store) (any, error) { s.Seen(b.id, at); return nil, nil }
}

func (p *pair) tidy(rt *rapid.T) func(*Store) (any, error) {
	p.now = p.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(rt, "hours")) * time.Hour)
	r := Retention{Intervals: time.Duration(rapid.IntRange(0, 200).Draw(rt, "intervals")) * time.Hour, Events: time.Duration(rapid.IntRange(0, 100).Draw(rt, "events")) * time.Hour}
	return func(s *Store) (any, error) { return nil, s.Tidy(context.Background(), r) }
}

func (p *pair) restart(s *Store) (any, error) {
	for i := range p.stores {
		if p.stores[i] == s {
			if err := s.Close(); err != nil {
				return nil, err
			}
			var err error
			p.stores[i], err = Open(context.Background(), p.cfgs[i])
			return nil, err
		}
	}
	return nil, nil
}

// ask asks everything that can be asked of this round's boxes, and of all.
func (p *pair) ask(s *Store) (any, error) {
	ctx := context.Background()
	var out []any
	var failed error
	add := func(v any, err error) {
		if out = append(out, v); err != nil {
			failed = err
		}
	}
	byDevice := map[api.DeviceID]link.DeviceRow{}
	ids := []api.DeviceID{p.boxes[0].id, p.boxes[1].id}
	for _, id := range ids {
		r, err := s.Report(ctx, id)
		add(fmt.Sprint(r), err)
		parts, err := s.Parts(ctx, id, "S")
		add(fmt.Sprint(parts), err)
		add(s.Usage(ctx, id, time.Time{}, time.Time{}))
		add(s.Usage(ctx, id, time.UnixMilli(93*dayMillis), time.UnixMilli(97*dayMillis)))
		add(s.Records(ctx, id, 0, 0))
		add(s.Records(ctx, id, 3, 2))
		add(s.BatchOf(ctx, id, 100, 3))
		add(s.Holes(ctx, id))
		var between []Entry
		err = s.Between(ctx, id, time.UnixMilli(92*dayMillis), time.UnixMilli(97*dayMillis), func(e *Entry) error { between = append(between, *e); return nil })
		add(between, err)
		add(s.Position(id))
	}
	err := s.Devices(func(r link.DeviceRow) error {
		if slices.Contains(ids, r.Device) {
			byDevice[r.Device] = r
		}
		return nil
	})
	add(fmt.Sprint(byDevice), err)
	add(s.Events(ctx, ids, 5))
	add(s.Events(ctx, append(make([]api.DeviceID, 100), ids...), 5))
	add(s.Events(ctx, nil, 5))
	named, _, err := s.EventsNamed(ctx, "a", 0, 3) // the places are each ledger's own
	add(named, err)
	add(s.Quarantine(ctx, 5))
	add(s.UsageByApp(ctx, time.Time{}, time.Time{}))
	return out, failed
}
