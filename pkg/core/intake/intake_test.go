package intake

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

type testing_ interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

// onBoth runs a test on a new ledger in a file, and on one in PostgreSQL.
func onBoth(t *testing.T, test func(t *testing.T, place string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), "ledger.db")) })
	t.Run("postgres", func(t *testing.T) { test(t, databasetest.Postgres(t)) })
}

func newKey(t testing_) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func config(path string) Config {
	clock := time.Unix(1764000000, 0)
	return Config{Place: path, Now: func() time.Time { clock = clock.Add(time.Second); return clock }}
}

func open(t testing_, cfg Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// box is a device's side: the records it ever made, and the chain.
type box struct {
	id    api.DeviceID
	key   *ecdsa.PrivateKey
	epoch uint64
	base  uint64 // number before the first
	recs  []record.Record
	chain []record.Hash
}

func newBox(t testing_, n byte, key *ecdsa.PrivateKey) *box {
	return &box{id: api.DeviceID{n, 1}, key: key, epoch: 100, chain: []record.Hash{{}}}
}

func (b *box) append(kind api.RecordKind, payload []byte) {
	n := b.base + uint64(len(b.recs)) + 1
	r := record.Record{Seq: n, Last: n, Kind: kind, Payload: payload}
	b.recs = append(b.recs, r)
	b.chain = append(b.chain, b.chain[len(b.chain)-1].Next(r))
}

func (b *box) use(t testing_, cpu uint64) {
	i := int64(len(b.recs))
	p, err := record.EncodeUsage(api.Usage{From: i * 1000, To: (i + 1) * 1000, Uses: []api.ContainerUse{
		{App: "shop", Service: fmt.Sprintf("s%d", i%3), RunMillis: 1000, CPUMicros: cpu, MemoryByteSeconds: 5, RxBytes: 2, TxBytes: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	b.append(api.RecordUsage, p)
}

// cut makes the batch of the records from..to, counted from 1 within the epoch.
func (b *box) cut(t testing_, from, to int, explicit bool) link.BatchIn {
	t.Helper()
	batch := record.Batch{Epoch: b.epoch, First: b.base + uint64(from), Last: b.base + uint64(to), Prev: b.chain[from-1], Records: b.recs[from-1 : to], Explicit: explicit}
	raw, _, err := record.Seal(record.By(b.key), b.id, batch)
	if err != nil {
		t.Fatal(err)
	}
	return link.BatchIn{Device: b.id, Key: b.key.Public(), Raw: raw}
}

func want(t testing_, s *Store, verdict link.Verdict, acked uint64, in ...link.BatchIn) {
	t.Helper()
	results, err := s.AcceptBatches(in)
	if err != nil {
		t.Fatal(err)
	}
	last := results[len(results)-1]
	if last.Verdict != verdict || last.Position.Acked != acked {
		t.Fatalf("verdict %d (%s) at %d, want %d at %d", last.Verdict, last.Detail, last.Position.Acked, verdict, acked)
	}
}

func cpu(t testing_, s *Store, id api.DeviceID) (n uint64) {
	t.Helper()
	u, err := s.Usage(context.Background(), id, time.Time{}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, total := range u.Totals {
		n += total.CPUMicros
	}
	return n
}

func TestVerdicts(t *testing.T) { onBoth(t, verdicts) }

func verdicts(t *testing.T, place string) {
	s := open(t, config(place))
	defer s.Close()
	b := newBox(t, 1, newKey(t))
	for range 30 {
		b.use(t, 10)
	}
	want(t, s, link.Accepted, 5, b.cut(t, 1, 5, false))
	want(t, s, link.Duplicate, 5, b.cut(t, 1, 5, false))
	want(t, s, link.Duplicate, 5, b.cut(t, 1, 5, true))
	want(t, s, link.Duplicate, 5, b.cut(t, 2, 4, true))
	want(t, s, link.Gap, 5, b.cut(t, 7, 9, true))
	want(t, s, link.Accepted, 9, b.cut(t, 6, 9, true))
	want(t, s, link.Accepted, 12, b.cut(t, 4, 12, true)) // cut at other borders: the rest counts
	want(t, s, link.Duplicate, 12, b.cut(t, 3, 10, false), b.cut(t, 3, 10, true))
	if got := cpu(t, s, b.id); got != 120 {
		t.Errorf("counted %d, want 120", got)
	}

	forged := b.cut(t, 13, 14, true)
	forged.Key = newKey(t).Public()
	want(t, s, link.Refused, 12, forged)
	want(t, s, link.Refused, 12, link.BatchIn{Device: b.id, Key: b.key.Public(), Raw: []byte("junk")})
	other := b.cut(t, 13, 14, true)
	other.Device = api.DeviceID{9}
	want(t, s, link.Refused, 0, other)

	clone := newBox(t, 1, b.key)
	for i := range 30 {
		if i < 12 {
			clone.use(t, 10)
		} else {
			clone.use(t, 99)
		}
	}
	want(t, s, link.Accepted, 15, b.cut(t, 13, 15, false))
	want(t, s, link.Fork, 15, clone.cut(t, 13, 15, false)) // the chain before is still remembered
	want(t, s, link.Fork, 15, clone.cut(t, 13, 17, true))
	want(t, s, link.Fork, 15, clone.cut(t, 16, 18, true))
	want(t, s, link.Gap, 15, clone.cut(t, 16, 18, false))
	want(t, s, link.Fork, 15, clone.cut(t, 10, 15, true))
	if got := cpu(t, s, b.id); got != 150 {
		t.Errorf("counted %d, want 150", got)
	}
	aside, err := s.Quarantine(context.Background(), 0)
	if err != nil || len(aside) != 4 || aside[0].What != "fork" {
		t.Errorf("set aside: %d, %v", len(aside), err)
	}

	// A new spool epoch begins with its own chain; the old one is over.
	next := newBox(t, 1, b.key)
	next.epoch, next.base = 101, 40
	next.use(t, 1000)
	next.use(t, 1000)
	want(t, s, link.Gap, 15, next.cut(t, 2, 2, true))
	want(t, s, link.Gap, 15, next.cut(t, 2, 2, false)) // not the first of its epoch, or forged
	want(t, s, link.Accepted, 42, next.cut(t, 1, 2, false))
	want(t, s, link.Gap, 42, b.cut(t, 16, 17, true))
	if got := cpu(t, s, b.id); got != 2150 {
		t.Errorf("counted %d, want 2150", got)
	}
}

func TestPoisonIsSetAsideAndCountedAsSeen(t *testing.T) { onBoth(t, poisonIsSetAsideAndCountedAsSeen) }

func poisonIsSetAsideAndCountedAsSeen(t *testing.T, place string) {
	s := open(t, config(place))
	defer s.Close()
	b := newBox(t, 1, newKey(t))
	b.use(t, 10)
	b.append(api.RecordUsage, []byte("no usage"))
	b.append(api.RecordEvent, []byte{0xff})
	b.append(77, []byte("a kind of later"))
	b.use(t, 10)
	want(t, s, link.Accepted, 5, b.cut(t, 1, 5, false))
	recs, err := s.Records(context.Background(), b.id, 0, 0)
	if err != nil || len(recs) != 5 || recs[1].Poison == "" || string(recs[1].Payload) != "no usage" || recs[2].Poison == "" || recs[3].Poison != "" || recs[3].Kind != 77 {
		t.Fatalf("%+v, %v", recs, err)
	}
	// A batch that is signed but unreadable as a whole: packing 200.
	payload := []byte{0x87, 1, 0x18, 100, 6, 1, 0x40, 0x18, 200, 0x40}
	aad := append([]byte("tributary/batch/1"), b.id[:]...)
	aad = append(aad, b.chain[5][:]...)
	raw, err := record.By(b.key)(aad, payload)
	if err != nil {
		t.Fatal(err)
	}
	want(t, s, link.Poison, 7, link.BatchIn{Device: b.id, Key: b.key.Public(), Raw: raw})
	want(t, s, link.Duplicate, 7, link.BatchIn{Device: b.id, Key: b.key.Public(), Raw: raw})
	b.use(t, 10)
	b.use(t, 10)
	b.use(t, 10)
	want(t, s, link.Gap, 7, b.cut(t, 8, 8, false))
	want(t, s, link.Accepted, 8, b.cut(t, 8, 8, true))
	if got := cpu(t, s, b.id); got != 30 {
		t.Errorf("counted %d, want 30", got)
	}
}

// Whatever order and cuts batches come in, repeated however often, with the core
// restarted at any time: every record is counted exactly once.
func TestExactlyOnce(t *testing.T) {
	key := newKey(t)
	dir := t.TempDir()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		cfg := config(filepath.Join(dir, fmt.Sprintf("%d.db", round)))
		s := open(t, cfg)
		defer func() { _ = s.Close() }()
		boxes := []*box{newBox(t, 1, key), newBox(t, 2, key)}
		total := []uint64{0, 0}
		for i, b := range boxes {
			for range 12 {
				v := rapid.Uint64Range(1, 1000).Draw(t, "cpu")
				b.use(t, v)
				total[i] += v
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "calls") {
			var in []link.BatchIn
			for range rapid.IntRange(1, 4).Draw(t, "batches") {
				b := boxes[rapid.IntRange(0, 1).Draw(t, "box")]
				from := rapid.IntRange(1, 12).Draw(t, "from")
				to := rapid.IntRange(from, 12).Draw(t, "to")
				in = append(in, b.cut(t, from, to, rapid.Bool().Draw(t, "explicit")))
			}
			results, err := s.AcceptBatches(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range results {
				if r.Verdict == link.Fork || r.Verdict == link.Refused || r.Verdict == link.Poison {
					t.Fatalf("verdict %d: %s", r.Verdict, r.Detail)
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "restart") == 0 {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, cfg)
			}
		}
		for i, b := range boxes {
			p, err := s.Position(b.id)
			if err != nil {
				t.Fatal(err)
			}
			if p.Hash != b.chain[p.Acked] {
				t.Fatalf("chain at %d: %x", p.Acked, p.Hash)
			}
			if p.Acked < 12 {
				want(t, s, link.Accepted, 12, b.cut(t, int(p.Acked)+1, 12, true))
			}
			if got := cpu(t, s, b.id); got != total[i] {
				t.Fatalf("counted %d, want %d", got, total[i])
			}
		}
	})
}

func TestStateIsLastWriterWins(t *testing.T) { onBoth(t, stateIsLastWriterWins) }

func stateIsLastWriterWins(t *testing.T, place string) {
	changed := 0
	cfg := config(place)
	cfg.Changed = func(api.DeviceID) { changed++ }
	s := open(t, cfg)
	id := api.DeviceID{3}
	apply := func(c link.StateChange) {
		t.Helper()
		c.Device = id
		if err := s.ApplyState([]link.StateChange{c}); err != nil {
			t.Fatal(err)
		}
	}
	entry := func(key, value string, seq uint64) link.Entry {
		return link.Entry{Key: key, Value: []byte(value), Seq: seq}
	}
	apply(link.StateChange{Epoch: 1, Seq: 3, Entries: []link.Entry{entry("a", "1", 1), entry("b", "2", 2), entry("c", "", 3)}})
	apply(link.StateChange{Epoch: 1, Seq: 5, Entries: []link.Entry{entry("a", "new", 5), {Key: "b", Seq: 4, Deleted: true}}})
	apply(link.StateChange{Epoch: 1, Seq: 5, Entries: []link.Entry{entry("a", "old", 2)}, Quarantined: []link.Entry{entry("x", "forged", 9)}})
	apply(link.StateChange{Attachment: []byte("signed"), Parent: api.DeviceID{7}, Epoch: 1, Seq: 5})
	check := func(want string) {
		t.Helper()
		r, err := s.Report(context.Background(), id)
		if err != nil || fmt.Sprintf("%s %v %v", r.Entries, r.Parent == api.DeviceID{7}, r.Seen.IsZero()) != want {
			t.Fatalf("%s %v %v, %v; want %s", r.Entries, r.Parent, r.Seen, err, want)
		}
	}
	check("map[a:new c:] true false")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	defer s.Close()
	check("map[a:new c:] true false")
	var row link.DeviceRow
	if err := s.Devices(func(r link.DeviceRow) error { row = r; return nil }); err != nil || row.Seq != 5 || row.Epoch != 1 || string(row.Attachment) != "signed" ||
		!slices.Equal(row.Live, []link.LiveKey{{Key: "a", Seq: 5}, {Key: "c", Seq: 3}}) {
		t.Fatalf("%+v, %v", row, err)
	}
	apply(link.StateChange{Epoch: 2, Seq: 1, Full: true, Entries: []link.Entry{entry("z", "1", 1)}})
	apply(link.StateChange{Epoch: 1, Seq: 9, Entries: []link.Entry{entry("a", "of before", 9)}})
	check("map[z:1] true false")
	if changed != 6 {
		t.Errorf("told of %d changes, want 6", changed)
	}
	r, err := s.Report(context.Background(), api.DeviceID{99})
	if err != nil || len(r.Entries) != 0 || !r.Seen.IsZero() {
		t.Errorf("stranger: %+v, %v", r, err)
	}
}

func TestQueries(t *testing.T) { onBoth(t, queries) }

func queries(t *testing.T, place string) {
	s := open(t, config(place))
	defer s.Close()
	ctx := context.Background()
	b := newBox(t, 1, newKey(t))
	b.use(t, 7)
	ev, err := record.EncodeEvent(api.Event{Time: 5, Name: "app.started", Subject: "shop", Message: "m", Actor: "a"})
	if err != nil {
		t.Fatal(err)
	}
	b.append(api.RecordEvent, ev)
	b.append(api.RecordAudit, ev)
	b.append(api.RecordTelemetry, []byte("t"))
	b.use(t, 8)
	empty, err := record.EncodeUsage(api.Usage{From: 1, To: 2})
	if err != nil {
		t.Fatal(err)
	}
	b.append(api.RecordUsage, empty)
	want(t, s, link.Accepted, 6, b.cut(t, 1, 1, false), b.cut(t, 2, 5, false), b.cut(t, 6, 6, false))
	recs, err := s.Records(ctx, b.id, 0, 0)
	if err != nil || len(recs) != 6 {
		t.Fatalf("%+v, %v", recs, err)
	}
	for i, k := range []api.RecordKind{1, 2, 3, 4, 1, 1} {
		if recs[i].Kind != k || recs[i].Seq != uint64(i+1) || recs[i].Taken.IsZero() {
			t.Errorf("record %d: %+v", i+1, recs[i])
		}
	}
	if u := recs[4].Usage; u == nil || len(u.Uses) != 1 || u.Uses[0].CPUMicros != 8 || u.From != 4000 {
		t.Errorf("%+v", recs[4].Usage)
	}
	if page, err := s.Records(ctx, b.id, 4, 1); err != nil || len(page) != 1 || page[0].Seq != 5 {
		t.Errorf("page: %+v, %v", page, err)
	}
	evs, err := s.Events(ctx, nil, 0)
	if err != nil || len(evs) != 2 || evs[0].Seq != 3 || evs[0].Kind != api.RecordAudit || evs[1].Event.Name != "app.started" || evs[1].Device != b.id {
		t.Errorf("%+v, %v", evs, err)
	}
	named, last, err := s.EventsNamed(ctx, "app.started", 0, 10)
	if err != nil || len(named) != 1 || named[0].Seq != 2 || named[0].Device != b.id || named[0].Event.Name != "app.started" || last == 0 {
		t.Errorf("events of a name: %+v, %d, %v", named, last, err)
	}
	if named, again, err := s.EventsNamed(ctx, "app.started", last, 10); err != nil || len(named) != 0 || again != last {
		t.Errorf("events of a name after the last: %+v, %d, %v", named, again, err)
	}
	for n, of := range map[int][]api.DeviceID{2: {b.id, {9}}, 0: {{9}}} {
		for _, of := range [][]api.DeviceID{of, append(of, make([]api.DeviceID, 100)...)} {
			if evs, err := s.Events(ctx, of, 0); err != nil || len(evs) != n {
				t.Errorf("of %d: %+v, %v", len(of), evs, err)
			}
		}
	}
	u, err := s.Usage(ctx, b.id, time.UnixMilli(1000), time.UnixMilli(5000))
	if err != nil || len(u.Totals) != 1 || u.Totals[0].CPUMicros != 8 || u.Acked != 6 {
		t.Errorf("%+v, %v", u, err)
	}
	if ts, err := s.UsageByApp(ctx, time.Time{}, time.Time{}); err != nil || len(ts) != 2 {
		t.Errorf("%+v, %v", ts, err)
	}
}

// A core restored from a backup goes on from there, and devices that kept what was not
// safe fill in the rest.
func TestBackupAndRestore(t *testing.T) { onBoth(t, backupAndRestore) }

func backupAndRestore(t *testing.T, place string) {
	dir := t.TempDir()
	ctx := context.Background()
	cfg := config(place)
	cfg.KeepUnbacked = true
	s := open(t, cfg)
	b := newBox(t, 1, newKey(t))
	for range 20 {
		b.use(t, 10)
	}
	want(t, s, link.Accepted, 8, b.cut(t, 1, 8, false))
	copyPath := filepath.Join(dir, "copy.db")
	mark, err := s.BackupTo(ctx, copyPath)
	if err != nil {
		t.Fatal(err)
	}
	want(t, s, link.Accepted, 15, b.cut(t, 9, 15, false))
	if p, _ := s.Position(b.id); p.Safe != 0 {
		t.Errorf("safe %d before the backup is", p.Safe)
	}
	if moved, err := s.MarkSafe(ctx, mark); err != nil || len(moved) != 1 {
		t.Errorf("%v, %v", moved, err)
	}
	if p, _ := s.Position(b.id); p.Safe != 8 || p.Acked != 15 {
		t.Errorf("safe %d of %d", p.Safe, p.Acked)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Place = copyPath
	s = open(t, cfg)
	defer s.Close()
	if p, _ := s.Position(b.id); p.Acked != 8 || p.Hash != b.chain[8] {
		t.Fatalf("restored at %+v", p)
	}
	want(t, s, link.Accepted, 20, b.cut(t, 9, 20, true))
	if got := cpu(t, s, b.id); got != 200 {
		t.Errorf("counted %d, want 200", got)
	}
}
