package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver named "sqlite"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

const (
	intakeDevices = 100
	intakeBatches = 20  // of each device
	intakeRecords = 100 // of each batch: a backlog that drains
	intakeAtOnce  = 64  // batches that share a transaction, on both sides
	intakeRounds  = 3
)

// benchIntake measures how many usage records a second the core verifies and counts
// exactly once, a fifth of the batches coming twice, against bare inserts of the same
// rows into the same tables with the same keys and synchronous=FULL, turn by turn.
func benchIntake(ctx context.Context) ([]Figure, error) {
	load, err := intakeLoad()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(".", ".bench-intake-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var own, raw best
	for round := range intakeRounds {
		if err := errors.Join(
			own.try(func() (float64, error) {
				return load.count(ctx, filepath.Join(dir, fmt.Sprintf("own%d.db", round)))
			}),
			raw.try(func() (float64, error) {
				return load.insert(ctx, filepath.Join(dir, fmt.Sprintf("raw%d.db", round)))
			})); err != nil {
			return nil, err
		}
	}
	ratio := atLeast("intake", own.value(), "records/s", 0.5*raw.value(), 0.5*raw.value()).against(raw.value())
	ratio.Note = fmt.Sprintf("peer: bare inserts; medians of %d turns; %d records in signed batches of %d, each fifth batch twice", intakeRounds, load.records, intakeRecords)
	return []Figure{ratio, atLeast("intake-floor", own.value(), "records/s", 50000, 50000)}, nil
}

type intakeWork struct {
	records int
	calls   [][]link.BatchIn // with repeats
	bare    [][]bareBatch    // the same without
	cpu     uint64           // the sum that the ledger must show
}

type bareBatch struct {
	dev, first, last int64
	end              record.Hash
	uses             []api.Usage
}

// intakeLoad makes and signs all batches.
func intakeLoad() (*intakeWork, error) {
	w := &intakeWork{}
	r := rand.New(rand.NewSource(1))
	type device struct {
		id   api.DeviceID
		key  *ecdsa.PrivateKey
		prev record.Hash
	}
	devices := make([]device, intakeDevices)
	for i := range devices {
		key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		if err != nil {
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		devices[i] = device{id: api.NewDeviceID(spki), key: key}
	}
	var ins []link.BatchIn
	var bares []bareBatch
	n := 0
	for b := range intakeBatches {
		for i := range devices {
			d := &devices[i]
			first := uint64(b*intakeRecords + 1)
			batch := record.Batch{Epoch: 1764000000, First: first, Last: first + intakeRecords - 1, Prev: d.prev}
			bare := bareBatch{dev: int64(i + 1), first: int64(batch.First), last: int64(batch.Last)}
			for seq := batch.First; seq <= batch.Last; seq++ {
				at := 1764000000000 + int64(seq)*900000
				u := api.Usage{From: at, To: at + 900000, Uses: []api.ContainerUse{{App: fmt.Sprintf("app%d", i%7), Service: fmt.Sprintf("s%d", seq%3),
					RunMillis: 900000, CPUMicros: uint64(r.Int63n(20e6)), MemoryByteSeconds: uint64(r.Int63n(200e6)) * 900,
					RxBytes: uint64(r.Int63n(1e6)), TxBytes: uint64(r.Int63n(1e6))}}}
				payload, err := record.EncodeUsage(u)
				if err != nil {
					return nil, err
				}
				w.cpu += u.Uses[0].CPUMicros
				bare.uses = append(bare.uses, u)
				batch.Records = append(batch.Records, record.Record{Seq: seq, Last: seq, Kind: api.RecordUsage, Payload: payload})
			}
			raw, end, err := record.Seal(record.By(d.key), d.id, batch)
			if err != nil {
				return nil, err
			}
			d.prev, bare.end = end, end
			w.records += intakeRecords
			in := link.BatchIn{Device: d.id, Key: d.key.Public(), Raw: raw}
			ins, bares = append(ins, in), append(bares, bare)
			if n++; n%5 == 0 {
				again := ins[r.Intn(len(ins))]
				if n%2 == 0 {
					again = in
				}
				ins = append(ins, again)
			}
			if len(bares) == intakeAtOnce {
				w.calls, w.bare = append(w.calls, ins), append(w.bare, bares)
				ins, bares = nil, nil
			}
		}
	}
	w.calls, w.bare = append(w.calls, ins), append(w.bare, bares)
	return w, nil
}

// count is the core's way.
func (w *intakeWork) count(ctx context.Context, path string) (rate float64, err error) {
	s, err := intake.Open(ctx, intake.Config{Place: path, Now: time.Now})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close(), os.Remove(path)) }()
	began := time.Now()
	accepted, repeated := 0, 0
	for _, in := range w.calls {
		results, err := s.AcceptBatches(in)
		if err != nil {
			return 0, err
		}
		for _, r := range results {
			switch r.Verdict {
			case link.Accepted:
				accepted++
			case link.Duplicate:
				repeated++
			default:
				return 0, fmt.Errorf("verdict %d: %s", r.Verdict, r.Detail)
			}
		}
	}
	rate = float64(w.records) / time.Since(began).Seconds()
	totals, err := s.UsageByApp(ctx, time.Time{}, time.Time{})
	if err != nil {
		return 0, err
	}
	var cpu uint64
	for _, t := range totals {
		cpu += t.CPUMicros
	}
	if cpu != w.cpu || accepted*intakeRecords != w.records || repeated*5 < accepted-5 {
		return 0, fmt.Errorf("counted %d of %d microseconds in %d batches, %d repeated", cpu, w.cpu, accepted, repeated)
	}
	return rate, nil
}

// insert is the bare way: the same rows, nothing decoded, verified or compared.
func (w *intakeWork) insert(ctx context.Context, path string) (rate float64, err error) {
	s, err := intake.Open(ctx, intake.Config{Place: path, Now: time.Now}) // for its schema
	if err != nil {
		return 0, err
	}
	if err := s.Close(); err != nil {
		return 0, err
	}
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=cache_size(-16384)")
	if err != nil {
		return 0, err
	}
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close(), os.Remove(path)) }()
	const rows = 32
	const insertUsage = `INSERT INTO usage (dev, epoch, seq, svc, last, began, ended, run_ms, cpu_us, mem_bs, rx_bytes, tx_bytes) VALUES `
	const values = `(?,?,?,?,?,?,?,?,?,?,?,?)`
	many, err := db.PrepareContext(ctx, insertUsage+strings.Repeat(values+",", rows-1)+values)
	if err != nil {
		return 0, err
	}
	one, err := db.PrepareContext(ctx, insertUsage+values)
	if err != nil {
		return 0, err
	}
	batch, err := db.PrepareContext(ctx, `INSERT INTO batches (dev, epoch, last, first, hash, taken) VALUES (?,?,?,?,?,?)`)
	if err != nil {
		return 0, err
	}
	position, err := db.PrepareContext(ctx, `INSERT INTO devices (dev, device, epoch, acked, hash) VALUES (?1,?1,?2,?3,?4) ON CONFLICT (dev) DO UPDATE SET epoch = ?2, acked = ?3, hash = ?4`)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	args := make([]any, 0, rows*12)
	for _, call := range w.bare {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return 0, err
		}
		manyTx, oneTx, batchTx, positionTx := tx.StmtContext(ctx, many), tx.StmtContext(ctx, one), tx.StmtContext(ctx, batch), tx.StmtContext(ctx, position)
		for i := range call {
			b := &call[i]
			for k := range b.uses {
				u, c := &b.uses[k], &b.uses[k].Uses[0]
				seq := b.first + int64(k)
				args = append(args, b.dev, int64(1764000000), seq, int64(1+k%3), seq, u.From, u.To, int64(c.RunMillis), int64(c.CPUMicros), int64(c.MemoryByteSeconds), int64(c.RxBytes), int64(c.TxBytes))
				if len(args) == rows*12 {
					if _, err := manyTx.ExecContext(ctx, args...); err != nil {
						return 0, errors.Join(err, tx.Rollback())
					}
					args = args[:0]
				}
			}
			_, err := batchTx.ExecContext(ctx, b.dev, int64(1764000000), b.last, b.first, b.end[:], began.UnixMilli())
			if err == nil {
				_, err = positionTx.ExecContext(ctx, b.dev, int64(1764000000), b.last, b.end[:])
			}
			if err != nil {
				return 0, errors.Join(err, tx.Rollback())
			}
		}
		for ; len(args) > 0; args = args[:len(args)-12] {
			if _, err := oneTx.ExecContext(ctx, args[len(args)-12:]...); err != nil {
				return 0, errors.Join(err, tx.Rollback())
			}
		}
		if err := tx.Commit(); err != nil {
			return 0, err
		}
	}
	return float64(w.records) / time.Since(began).Seconds(), nil
}
