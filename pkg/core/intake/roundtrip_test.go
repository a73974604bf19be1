package intake

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/link/spool/disktest"
)

// world is one device's spool and the core's ledger, with a bad line between, a power
// that goes, and a core that is restored from its backups.
type world struct {
	t         *testing.T
	r         *rand.Rand
	dir       string
	disk      *disktest.Disk
	db        *bbolt.DB
	spool     *spool.Spool
	ledger    *Store
	cfg       Config
	coreEpoch uint64
	backup    string // a copy of the ledger, if there is one
	backups   int
	box       *box // id and key
	core      *box // the core's key
	want      uint64
	maybe     []uint64
	explicit  bool
}

func (w *world) openSpool() {
	s, err := spool.Open(spool.Config{Dir: "/spool", FS: w.disk, DB: w.db, MaxBytes: 1 << 20, Rand: w.r, Now: func() time.Time { return time.Unix(1764000000, 0) }})
	if err != nil {
		w.t.Fatal(err)
	}
	w.spool = s
}

func (w *world) append() {
	// Bulk, so that segments fill and those that are safe go.
	if _, err := w.spool.Append(api.RecordTelemetry, make([]byte, w.r.Intn(12000))); err != nil {
		if !errors.Is(err, disktest.ErrCut) {
			w.t.Fatal(err)
		}
		w.powerBack()
	}
	v := uint64(w.r.Intn(1000) + 1)
	p, err := record.EncodeUsage(api.Usage{From: 1, To: 2, Uses: []api.ContainerUse{{App: "a", Service: "s", CPUMicros: v}}})
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.spool.Append(api.RecordUsage, p)
	switch {
	case err == nil:
		w.want += v
	case errors.Is(err, disktest.ErrCut):
		w.maybe = append(w.maybe, v)
		w.powerBack()
	default:
		w.t.Fatal(err)
	}
}

func (w *world) powerBack() {
	w.disk = w.disk.Cut()
	w.openSpool()
	w.explicit = true
}

// exchange sends a batch or two and brings the acknowledgement back, unless lost is
// drawn on either way.
func (w *world) exchange(lossy bool) bool {
	lost := func() bool { return lossy && w.r.Intn(4) == 0 }
	_, _, acked, _ := w.spool.Range()
	var in []link.BatchIn
	for range 1 + w.r.Intn(2) {
		b, err := w.spool.Cut(acked, 1+w.r.Intn(40000))
		if errors.Is(err, spool.ErrNone) {
			break
		}
		if errors.Is(err, disktest.ErrCut) {
			w.powerBack()
			return true
		}
		if err != nil {
			w.t.Fatal(err)
		}
		b.Explicit = w.explicit
		raw, _, err := record.Seal(record.By(w.box.key), w.box.id, b)
		if err != nil {
			w.t.Fatal(err)
		}
		acked = b.Last
		for n := w.r.Intn(2); n >= 0 && !lost(); n-- {
			in = append(in, link.BatchIn{Device: w.box.id, Key: w.box.key.Public(), Raw: raw})
		}
	}
	if w.r.Intn(3) == 0 {
		w.r.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
	}
	results, err := w.ledger.AcceptBatches(in)
	if err != nil {
		w.t.Fatal(err)
	}
	odd := len(in) == 0
	for _, r := range results {
		if r.Verdict == link.Fork || r.Verdict == link.Poison || r.Verdict == link.Refused {
			w.t.Fatalf("verdict %d: %s", r.Verdict, r.Detail)
		}
		odd = odd || r.Verdict != link.Accepted
	}
	if lost() {
		w.explicit = true
		return true
	}
	return w.acknowledge(odd)
}

func (w *world) acknowledge(explicit bool) bool {
	p, err := w.ledger.Position(w.box.id)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := record.SealAck(record.By(w.core.key), w.box.id, record.Ack{CoreEpoch: w.coreEpoch, SpoolEpoch: p.SpoolEpoch, Acked: p.Acked, Hash: p.Hash, Safe: p.Safe, Explicit: explicit})
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := record.OpenAck(record.Of(w.core.key.Public()), raw, w.box.id, w.spool.ChainAt)
	if err != nil {
		w.explicit = true
		return true
	}
	out, err := w.spool.Confirm(*a)
	if errors.Is(err, disktest.ErrCut) {
		w.powerBack()
		return true
	}
	if err != nil || out == spool.Restarted {
		w.t.Fatalf("confirm %+v: %v, %v", a, out, err)
	}
	w.explicit = out != spool.Advanced
	_, last, acked, _ := w.spool.Range()
	return acked < last
}

func (w *world) makeBackup() {
	w.backups++
	path := filepath.Join(w.dir, fmt.Sprintf("backup%d.db", w.backups))
	mark, err := w.ledger.BackupTo(context.Background(), path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.backup = path
	if _, err := w.ledger.MarkSafe(context.Background(), mark); err != nil {
		w.t.Fatal(err)
	}
}

// restore loses the core and opens a copy of the newest backup under a higher epoch.
func (w *world) restore() {
	if err := w.ledger.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.coreEpoch++
	w.cfg.Place = filepath.Join(w.dir, fmt.Sprintf("restored%d.db", w.coreEpoch))
	if w.backup != "" {
		from := open(w.t, config(w.backup))
		if _, err := from.BackupTo(context.Background(), w.cfg.Place); err != nil {
			w.t.Fatal(err)
		}
		if err := from.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	w.ledger = open(w.t, w.cfg)
}

// Whatever the line, the power and the core's disk do: what a device was told is
// recorded is counted exactly once in the end.
func TestFromSpoolToLedgerExactlyOnce(t *testing.T) {
	seeds := int64(40)
	if testing.Short() {
		seeds = 8
	}
	key, core := newKey(t), newKey(t)
	for seed := range seeds {
		dir := t.TempDir()
		db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, r: rand.New(rand.NewSource(seed)), dir: dir, disk: disktest.New(seed), db: db, coreEpoch: 1,
			box: newBox(t, 5, key), core: newBox(t, 0, core), cfg: config(filepath.Join(dir, "ledger.db"))}
		w.cfg.KeepUnbacked = true
		w.ledger = open(t, w.cfg)
		w.openSpool()
		for range 80 {
			switch n := w.r.Intn(40); {
			case n < 20:
				w.append()
			case n < 34:
				w.exchange(true)
			case n == 34:
				w.disk.CutAfter(w.r.Intn(20))
			case n == 35:
				w.powerBack()
			case n == 36:
				w.makeBackup()
			case n == 37:
				w.restore()
			case n == 38:
				if err := w.ledger.Close(); err != nil {
					t.Fatal(err)
				}
				w.ledger = open(t, w.cfg)
			}
		}
		w.disk.CutAfter(-1)
		w.acknowledge(true) // what a new session begins with
		for n := 0; w.exchange(false); n++ {
			if n > 1000 {
				t.Fatalf("seed %d: does not drain", seed)
			}
		}
		got := cpu(t, w.ledger, w.box.id)
		if !reachable(got-w.want, w.maybe) || got < w.want {
			t.Fatalf("seed %d: counted %d, recorded %d, perhaps %v more", seed, got, w.want, w.maybe)
		}
		u, err := w.ledger.Usage(context.Background(), w.box.id, time.Time{}, time.Time{})
		if err != nil || u.Lost != 0 {
			t.Fatalf("seed %d: %d lost, %v", seed, u.Lost, err)
		}
		if err := errors.Join(w.ledger.Close(), w.spool.Close(), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// reachable reports whether some of vs add up to n: what was cut off in the act may
// have been written or not.
func reachable(n uint64, vs []uint64) bool {
	if n == 0 {
		return true
	}
	for i, v := range vs {
		if v <= n && reachable(n-v, vs[i+1:]) {
			return true
		}
	}
	return false
}
