package spool_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/link/spool/disktest"
)

type box struct {
	disk *disktest.Disk
	db   *bbolt.DB
	cfg  spool.Config
}

type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func openDB(t testing.TB) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "state.db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func newBox(t testing.TB, seed int64) *box {
	b := &box{disk: disktest.New(seed), db: openDB(t)}
	clock := time.Unix(1764000000, 0)
	b.cfg = spool.Config{Dir: "/spool", FS: b.disk, DB: b.db, MaxBytes: 1 << 20, Rand: rand.New(rand.NewSource(seed)),
		Now: func() time.Time { clock = clock.Add(time.Millisecond); return clock }}
	return b
}

func (b *box) open(t fataler) *spool.Spool {
	t.Helper()
	b.cfg.FS = b.disk
	s, err := spool.Open(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func all(t fataler, s *spool.Spool) []record.Record {
	t.Helper()
	rs, err := s.Read(0, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func synced(d *disktest.Disk) spool.FS { return d }

// crash runs appenders until the power goes, and returns what is missing afterwards
// of what was acknowledged.
func crash(t *testing.T, db *bbolt.DB, seed int64, disk func(*disktest.Disk) spool.FS) (acknowledged, missing int) {
	t.Helper()
	r := rand.New(rand.NewSource(seed))
	b := newBoxWith(db, seed)
	acked := make(map[uint64]string)
	var mu sync.Mutex
	for life := range 3 {
		if life > 0 {
			b.disk = b.disk.Cut()
		}
		b.cfg.FS = disk(b.disk)
		s, err := spool.Open(b.cfg)
		if err != nil {
			t.Fatalf("seed %d, life %d: %v", seed, life, err)
		}
		kept := make(map[uint64]string)
		next := uint64(0)
		for _, rec := range all(t, s) {
			if next != 0 && rec.Seq != next && rec.Kind != record.Lost {
				t.Fatalf("seed %d: %d follows %d", seed, rec.Seq, next-1)
			}
			next = rec.Last + 1
			kept[rec.Seq] = string(rec.Payload)
		}
		for n, want := range acked {
			if kept[n] != want {
				missing++
			}
		}
		acknowledged += len(acked)
		b.disk.CutAfter(r.Intn(120))
		var wg sync.WaitGroup
		for w := range 6 {
			wg.Go(func() {
				for i := range 40 {
					payload := fmt.Sprintf("%d/%d/%d/%s", life, w, i, bytes.Repeat([]byte("x"), (w*37+i*91)%1500))
					n, err := s.Append(api.RecordUsage, []byte(payload))
					if err != nil {
						return
					}
					mu.Lock()
					if old, ok := acked[n]; ok && old != payload && b.cfg.FS == spool.FS(b.disk) {
						t.Errorf("seed %d: number %d given twice", seed, n)
					}
					acked[n] = payload
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		_ = s.Close() // the power may be gone; that is the point
	}
	return acknowledged, missing
}

func newBoxWith(db *bbolt.DB, seed int64) *box {
	clock := time.Unix(1764000000, 0)
	return &box{disk: disktest.New(seed), db: db, cfg: spool.Config{Dir: "/spool", DB: db, MaxBytes: 1 << 20,
		Rand: rand.New(rand.NewSource(seed)), Now: func() time.Time { return clock }}}
}

func forget(t testing.TB, db *bbolt.DB) {
	t.Helper()
	err := db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"spool", "spool-index"} {
			if err := tx.DeleteBucket([]byte(name)); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPowerCutLosesNothingAcknowledged(t *testing.T) {
	rounds := int64(300)
	if testing.Short() {
		rounds = 40
	}
	db := openDB(t)
	total := 0
	for seed := range rounds {
		forget(t, db)
		n, missing := crash(t, db, seed, synced)
		if missing > 0 {
			t.Fatalf("seed %d: %d of %d acknowledged records are missing", seed, missing, n)
		}
		total += n
	}
	t.Logf("%d acknowledged records survived", total)
}

// The test of the test: where nothing is synced, something must be seen to be lost.
func TestPowerCutFindsWhatIsNotSynced(t *testing.T) {
	db := openDB(t)
	for seed := range int64(20) {
		forget(t, db)
		if n, missing := crash(t, db, seed, func(d *disktest.Disk) spool.FS { return disktest.Unsynced{FS: d} }); missing > 0 {
			t.Logf("seed %d: %d of %d missing, as it should be", seed, missing, n)
			return
		}
	}
	t.Fatal("twenty cuts without a sync lost nothing: the disk does not forget")
}

// A model of the spool: a list. Any sequence of operations, with clean and unclean
// restarts, leaves the same records, cuts and chain.
func TestSpoolAgainstModel(t *testing.T) {
	db := openDB(t)
	rapid.Check(t, func(t *rapid.T) {
		if err := db.Update(func(tx *bbolt.Tx) error {
			_ = tx.DeleteBucket([]byte("spool"))
			_ = tx.DeleteBucket([]byte("spool-index"))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		b := newBoxWith(db, rapid.Int64().Draw(t, "seed"))
		s := b.open(t)
		var want []record.Record
		var acked, safe, first uint64 = 0, 0, 1
		chain := map[uint64]record.Hash{0: {}}
		steps := rapid.IntRange(5, 60).Draw(t, "steps")
		for range steps {
			switch rapid.IntRange(0, 7).Draw(t, "op") {
			case 0, 1, 2:
				payload := bytes.Repeat([]byte{byte(len(want))}, rapid.IntRange(0, 9000).Draw(t, "size"))
				kind := api.RecordKind(rapid.IntRange(1, 4).Draw(t, "kind"))
				n, err := s.Append(kind, payload)
				if err != nil || n != uint64(len(want)+1) {
					t.Fatalf("append: %d, %v; want %d", n, err, len(want)+1)
				}
				r := record.Record{Seq: n, Last: n, Kind: kind, Payload: payload}
				want = append(want, r)
				chain[n] = chain[n-1].Next(r)
			case 3:
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = b.open(t)
			case 4:
				b.disk = b.disk.Cut()
				s = b.open(t)
				_, _, a, sf := s.Range()
				if a > acked || sf > safe {
					t.Fatalf("after a cut %d, %d are acknowledged, of %d, %d", a, sf, acked, safe)
				}
				acked, safe = a, sf
			case 5:
				n := uint64(len(want))
				acked = rapid.Uint64Range(acked, n).Draw(t, "acked")
				safe = rapid.Uint64Range(safe, acked).Draw(t, "safe")
				if err := s.Ack(acked, safe); err != nil {
					t.Fatal(err)
				}
			case 6:
				got, err := s.Cut(acked, rapid.IntRange(1, 20000).Draw(t, "bytes"))
				if acked == uint64(len(want)) {
					if !errors.Is(err, spool.ErrNone) {
						t.Fatalf("cut of nothing: %v", err)
					}
					continue
				}
				if err != nil || got.First != acked+1 || got.Prev != chain[acked] || got.Check() != nil {
					t.Fatalf("cut after %d: %+v, %v; want prev %x", acked, got, err, chain[acked])
				}
				if end := record.Chain(got.Prev, got.Records); end != chain[got.Last] {
					t.Fatalf("chain after %d: %x, want %x", got.Last, end, chain[got.Last])
				}
			case 7:
				if len(want) > 0 {
					n := rapid.Uint64Range(acked, uint64(len(want))).Draw(t, "at")
					if h, ok := s.ChainAt(s.Epoch(), n); !ok || h != chain[n] {
						t.Fatalf("chain at %d: %x %v, want %x", n, h, ok, chain[n])
					}
				}
			}
		}
		first, last, _, _ := s.Range()
		if first > safe+1 || last != uint64(len(want)) {
			t.Fatalf("keeps %d..%d, safe %d, appended %d", first, last, safe, len(want))
		}
		for i, r := range all(t, s) {
			w := want[first-1+uint64(i)]
			if r.Seq != w.Seq || r.Kind != w.Kind || !bytes.Equal(r.Payload, w.Payload) {
				t.Fatalf("record %d: %d kind %d", w.Seq, r.Seq, r.Kind)
			}
		}
	})
}

func usage(t fataler, i int) []byte {
	p, err := record.EncodeUsage(api.Usage{From: int64(i) * 1000, To: int64(i+1) * 1000, Uses: []api.ContainerUse{
		{App: "a", Service: fmt.Sprintf("s%d", i%7), RunMillis: 1000, CPUMicros: uint64(i), TxBytes: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type totals struct{ run, cpu, tx uint64 }

func sum(t fataler, rs []record.Record) (s totals, next uint64) {
	for _, r := range rs {
		if next != 0 && r.Seq != next {
			t.Fatalf("record %d follows %d", r.Seq, next-1)
		}
		next = r.Last + 1
		if r.Kind != api.RecordUsage {
			continue
		}
		u, err := record.DecodeUsage(r.Payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range u.Uses {
			s.run, s.cpu, s.tx = s.run+c.RunMillis, s.cpu+c.CPUMicros, s.tx+c.TxBytes
		}
	}
	return s, next
}

// appends is how many a test makes: fewer in the short form, and still more than fit.
func appends(n int) int {
	if testing.Short() {
		return n / 2
	}
	return n
}

// fill appends far more than fits and returns the totals of the usage in it.
func fill(t *testing.T, s *spool.Spool, n int) (want totals) {
	t.Helper()
	noise := bytes.Repeat([]byte("n"), 300)
	refused := 0
	for i := range n {
		if _, err := s.Append(api.RecordUsage, usage(t, i)); err != nil {
			t.Fatalf("usage %d refused: %v", i, err)
		}
		want.run, want.cpu, want.tx = want.run+1000, want.cpu+uint64(i), want.tx+1
		kind := api.RecordTelemetry
		if i%3 == 0 {
			kind = api.RecordEvent
		}
		if _, err := s.Append(kind, noise); err != nil {
			if !errors.Is(err, spool.ErrFull) {
				t.Fatal(err)
			}
			refused++
		}
	}
	t.Logf("%d of %d events and telemetry refused", refused, n)
	return want
}

func warned(s *spool.Spool, name string) bool {
	for _, w := range s.Warnings() {
		if w.Name == name {
			return true
		}
	}
	return false
}

func TestBudgetKeepsAllUsage(t *testing.T) {
	b := newBox(t, 1)
	s := b.open(t)
	want := fill(t, s, appends(40000))
	got, next := sum(t, all(t, s))
	if got != want {
		t.Errorf("usage kept %+v, want %+v", got, want)
	}
	if _, last, _, _ := s.Range(); next != last+1 {
		t.Errorf("numbers end at %d of %d", next-1, last)
	}
	if n := s.Bytes(); n > b.cfg.MaxBytes {
		t.Errorf("takes %d bytes of %d", n, b.cfg.MaxBytes)
	}
	for _, name := range []string{"spool-dropping-telemetry", "spool-dropping-events", "spool-summing-usage"} {
		if !warned(s, name) {
			t.Errorf("no warning %s: %+v", name, s.Warnings())
		}
	}
	// The same after a restart, and what is left makes whole, chained batches.
	b.disk = b.disk.Cut()
	s = b.open(t)
	if got, _ := sum(t, all(t, s)); got != want {
		t.Errorf("usage kept after a cut %+v, want %+v", got, want)
	}
	var rs []record.Record
	prev, at := record.Hash{}, uint64(0)
	for {
		batch, err := s.Cut(at, 0)
		if errors.Is(err, spool.ErrNone) {
			break
		}
		if err != nil || batch.Prev != prev || batch.Check() != nil {
			t.Fatalf("batch after %d: prev %x, want %x: %v %v", at, batch.Prev, prev, err, batch.Check())
		}
		rs = append(rs, batch.Records...)
		prev, at = record.Chain(prev, batch.Records), batch.Last
	}
	if got, _ := sum(t, rs); got != want {
		t.Errorf("usage sent %+v, want %+v", got, want)
	}
	if err := s.Ack(at, at); err != nil {
		t.Fatal(err)
	}
	if ws := s.Warnings(); len(ws) != 0 {
		t.Errorf("all is counted, and still %+v", ws)
	}
}

// What was cut once may have been counted and is never summed.
func TestSentRecordsStayAsTheyAre(t *testing.T) {
	b := newBox(t, 1)
	s := b.open(t)
	for i := range 50 {
		if _, err := s.Append(api.RecordUsage, usage(t, i)); err != nil {
			t.Fatal(err)
		}
	}
	sent, err := s.Cut(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.disk = b.disk.Cut() // the note must outlive a cut
	s = b.open(t)
	fill(t, s, appends(40000))
	again, err := s.Cut(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range sent.Records {
		if a := again.Records[i]; a.Seq != r.Seq || a.Last != r.Last || !bytes.Equal(a.Payload, r.Payload) {
			t.Fatalf("record %d was altered after it was sent", r.Seq)
		}
	}
}

func TestDiskFullKeepsUsageAndRecovers(t *testing.T) {
	b := newBox(t, 1)
	s := b.open(t)
	if _, err := s.Append(api.RecordUsage, usage(t, 0)); err != nil {
		t.Fatal(err)
	}
	b.disk.Limit(b.disk.Used()) // others took all the rest
	want := fill(t, s, appends(20000))
	want.run, want.tx = want.run+1000, want.tx+1
	if got, _ := sum(t, all(t, s)); got != want {
		t.Errorf("usage kept %+v, want %+v", got, want)
	}
	if !warned(s, "disk-full") {
		t.Errorf("no warning disk-full: %+v", s.Warnings())
	}
	b.disk = b.disk.Cut()
	s = b.open(t)
	if got, _ := sum(t, all(t, s)); got != want {
		t.Errorf("usage kept after a cut %+v, want %+v", got, want)
	}
	b.disk.Limit(0)
	_, last, _, _ := s.Range()
	if err := s.Ack(last, last); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(api.RecordTelemetry, []byte("again")); err != nil {
		t.Errorf("telemetry with room: %v", err)
	}
	if warned(s, "disk-full") {
		t.Errorf("still warned: %+v", s.Warnings())
	}
}

func appendN(t fataler, s *spool.Spool, n int, text string) {
	for i := range n {
		if _, err := s.Append(api.RecordEvent, []byte(fmt.Sprintf("%s%d", text, i))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCopyStartsANewEpoch(t *testing.T) {
	for name, tamper := range map[string]func(t *testing.T, b *box){
		"spool-copied":         func(_ *testing.T, b *box) { b.disk = b.disk.Copy(9) },
		"spool-cursor-lost":    func(t *testing.T, b *box) { forget(t, b.db) },
		"spool-recreated":      func(_ *testing.T, b *box) { b.disk = disktest.New(3) },
		"spool-rolled-back":    nil, // below
		"":                     func(*testing.T, *box) {},
		"spool-other-cut-same": nil,
	} {
		if tamper == nil {
			continue
		}
		t.Run("same"+name, func(t *testing.T) {
			b := newBox(t, 2)
			s := b.open(t)
			appendN(t, s, 5, "old")
			if err := s.Ack(3, 1); err != nil {
				t.Fatal(err)
			}
			epoch := s.Epoch()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			tamper(t, b)
			s = b.open(t)
			if (s.Epoch() == epoch) != (name == "") || (name != "" && !warned(s, name)) {
				t.Fatalf("epoch %d after %d, warnings %+v", s.Epoch(), epoch, s.Warnings())
			}
			n, err := s.Append(api.RecordEvent, []byte("new"))
			if err != nil || n < 6 {
				t.Fatalf("append: %d, %v; numbers are never used twice", n, err)
			}
			if name == "" || name == "spool-recreated" {
				return
			}
			// The old epoch is drained under its own numbers first.
			batch, err := s.Cut(3, 0)
			if err != nil || batch.Epoch != epoch || batch.Last != 5 {
				t.Fatalf("cut: %+v, %v", batch, err)
			}
			batch, err = s.Cut(5, 0)
			if err != nil || batch.Epoch != s.Epoch() || !batch.Prev.IsZero() || batch.First != n {
				t.Fatalf("cut: %+v, %v", batch, err)
			}
		})
	}
}

// An old backup of the log beside the present cursor is no past of ours.
func TestRolledBackLogStartsANewEpoch(t *testing.T) {
	b := newBox(t, 2)
	s := b.open(t)
	appendN(t, s, 5, "old")
	epoch := s.Epoch()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old := b.disk.Cut() // same inodes: as a snapshot of the volume
	b.disk = old.Cut()
	s = b.open(t)
	appendN(t, s, 5, "more")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b.disk = old.Cut()
	s = b.open(t)
	if s.Epoch() <= epoch || !warned(s, "spool-rolled-back") {
		t.Fatalf("epoch %d after %d, warnings %+v", s.Epoch(), epoch, s.Warnings())
	}
}

func TestConfirm(t *testing.T) {
	b := newBox(t, 4)
	s := b.open(t)
	appendN(t, s, 10, "r")
	epoch := s.Epoch()
	at := func(n uint64) record.Hash { h, _ := s.ChainAt(epoch, n); return h }
	confirm := func(a record.Ack, want spool.Outcome, acked uint64) {
		t.Helper()
		got, err := s.Confirm(a)
		if _, _, n, _ := s.Range(); err != nil || got != want || n != acked {
			t.Fatalf("%+v: %v, %v, acked %d; want %v, %d", a, got, err, n, want, acked)
		}
	}
	confirm(record.Ack{CoreEpoch: 1, SpoolEpoch: epoch, Acked: 4, Hash: at(4)}, spool.Advanced, 4)
	confirm(record.Ack{CoreEpoch: 1, SpoolEpoch: epoch, Acked: 3, Hash: at(3)}, spool.Ignored, 4)
	confirm(record.Ack{CoreEpoch: 1, SpoolEpoch: epoch, Acked: 8, Hash: at(8), Safe: 2}, spool.Advanced, 8)
	confirm(record.Ack{CoreEpoch: 2, SpoolEpoch: epoch, Acked: 2, Hash: at(2), Safe: 2}, spool.Rewound, 2)
	confirm(record.Ack{CoreEpoch: 1, SpoolEpoch: epoch, Acked: 9, Hash: at(9)}, spool.Ignored, 2)
	batch, err := s.Cut(2, 0)
	if err != nil || batch.First != 3 || batch.Last != 10 {
		t.Fatalf("after the rewind: %+v, %v", batch, err)
	}
	confirm(record.Ack{CoreEpoch: 2, SpoolEpoch: epoch, Acked: 10, Hash: at(10)}, spool.Advanced, 10)

	// Another device with our key wrote number 11 as well.
	appendN(t, s, 2, "mine")
	confirm(record.Ack{CoreEpoch: 2, SpoolEpoch: epoch, Acked: 11, Hash: record.Hash{66}, Explicit: true}, spool.Restarted, 12)
	if s.Epoch() <= epoch || !warned(s, "spool-forked") {
		t.Fatalf("epoch %d, warnings %+v", s.Epoch(), s.Warnings())
	}
	check := func() {
		t.Helper()
		batch, err = s.Cut(12, 0)
		if err != nil || batch.Epoch != s.Epoch() || batch.First != 13 || batch.Last != 14 || string(batch.Records[1].Payload) != "mine1" || !batch.Prev.IsZero() {
			t.Fatalf("carried over: %+v, %v", batch, err)
		}
	}
	check()
	b.disk = b.disk.Cut()
	s = b.open(t)
	check()
}

// Whatever a core says, and whatever was lost, the cut that follows never leaves a
// hole untold: the core can always go on from its position.
func TestRewindPastWhatIsKeptTellsTheLoss(t *testing.T) {
	b := newBox(t, 5)
	s := b.open(t)
	big := bytes.Repeat([]byte("b"), 30000)
	for range 10 {
		if _, err := s.Append(api.RecordEvent, big); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Ack(8, 8); err != nil {
		t.Fatal(err)
	}
	first, _, _, _ := s.Range()
	if first < 3 {
		t.Fatalf("first kept is %d", first)
	}
	if err := s.Rewind(1); err != nil {
		t.Fatal(err)
	}
	batch, err := s.Cut(1, 0)
	if err != nil || batch.Check() != nil || batch.First != 2 || batch.Records[0].Kind != record.Lost || batch.Records[0].Last != first-1 {
		t.Fatalf("%+v, %v", batch, err)
	}
}

func FuzzSegment(f *testing.F) {
	d := disktest.New(1)
	s, err := spool.Open(spool.Config{Dir: "/s", FS: d, MaxBytes: 1 << 20, Now: time.Now, Rand: rand.New(rand.NewSource(1))})
	if err != nil {
		f.Fatal(err)
	}
	appendN(f, s, 3, "seed")
	file, err := d.Open("/s/0000000000000001.seg")
	if err != nil {
		f.Fatal(err)
	}
	b := make([]byte, 200)
	if _, err := file.ReadAt(b, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(binary.BigEndian.AppendUint64(nil, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := disktest.New(1)
		file, err := d.Create("/s/0000000000000001.seg")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		s, err := spool.Open(spool.Config{Dir: "/s", FS: d, MaxBytes: 1 << 20, Now: time.Now, Rand: rand.New(rand.NewSource(1))})
		if err != nil {
			return
		}
		n, err := s.Append(api.RecordUsage, []byte("x"))
		if err != nil {
			return
		}
		rs := all(t, s)
		if last := rs[len(rs)-1]; last.Seq != n || string(last.Payload) != "x" {
			t.Fatalf("appended %d, read %+v", n, last)
		}
	})
}

// The power may go at any moment of anything: while the spool is opened, while a
// segment is rewritten for room, while a new epoch begins. What was acknowledged as
// usage is there afterwards, once, in its own record or in a sum.
func TestPowerCutWhileMakingRoom(t *testing.T) {
	rounds := int64(60)
	if testing.Short() {
		rounds = 3
	}
	db := openDB(t)
	for seed := range rounds {
		forget(t, db)
		r := rand.New(rand.NewSource(seed))
		b := newBoxWith(db, seed)
		var want totals // of what was acknowledged
		var maybe []uint64
		for life := range 6 {
			if life > 0 {
				b.disk = b.disk.Cut()
				b.disk.CutAfter(r.Intn(300)) // at times while it is opened
			}
			if life > 0 && r.Intn(3) == 0 {
				b.disk.Limit(b.disk.Used() + int64(r.Intn(200<<10)))
			} else {
				b.disk.Limit(0)
			}
			b.cfg.FS = b.disk
			s, err := spool.Open(b.cfg)
			if err != nil {
				if !errors.Is(err, disktest.ErrCut) {
					t.Fatalf("seed %d, life %d: %v", seed, life, err)
				}
				continue
			}
			checkTotals(t, seed, s, want, maybe)
			noise := bytes.Repeat([]byte("n"), 700)
			for i := 0; ; i++ {
				if _, err := s.Append(api.RecordTelemetry, noise); errors.Is(err, disktest.ErrCut) {
					break
				}
				_, err := s.Append(api.RecordUsage, usage(t, i))
				if errors.Is(err, disktest.ErrCut) {
					maybe = append(maybe, uint64(i)) // written perhaps, and not acknowledged
					break
				}
				if err == nil {
					want.run, want.cpu, want.tx = want.run+1000, want.cpu+uint64(i), want.tx+1
				}
				if i%400 == 399 {
					if _, err := s.Cut(0, 0); errors.Is(err, disktest.ErrCut) {
						break
					}
				}
				if i == 4000 {
					b.disk.CutAfter(r.Intn(200))
				}
			}
			_ = s.Close() // the power is gone
		}
		b.disk = b.disk.Cut()
		checkTotals(t, seed, b.open(t), want, maybe)
	}
}

// checkTotals compares all usage with what was acknowledged; what was cut off in the
// act may be there or not.
func checkTotals(t *testing.T, seed int64, s *spool.Spool, want totals, maybe []uint64) {
	t.Helper()
	got, _ := sum(t, all(t, s))
	extra := got.tx - want.tx
	if got.tx < want.tx || extra > uint64(len(maybe)) || got.run != want.run+extra*1000 {
		t.Fatalf("seed %d: usage kept %+v, acknowledged %+v and perhaps %d more", seed, got, want, len(maybe))
	}
}

// While the core takes records, a full disk costs nothing: the segment that is written
// to is cleared of what is safe.
func TestDiskFullWhileOnline(t *testing.T) {
	b := newBox(t, 1)
	s := b.open(t)
	b.disk.Limit(b.disk.Used())
	acked := uint64(0)
	for i := range 20000 {
		n, err := s.Append(api.RecordUsage, usage(t, i))
		if err != nil {
			t.Fatalf("usage %d: %v", i, err)
		}
		if i%50 < 49 {
			continue
		}
		batch, err := s.Cut(acked, 0)
		if err != nil || batch.First != acked+1 || batch.Last != n || len(batch.Records) != 50 {
			t.Fatalf("cut after %d: %d..%d, %d records, %v", acked, batch.First, batch.Last, len(batch.Records), err)
		}
		if acked = n; i%100 == 99 {
			err = s.Ack(acked, acked)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
