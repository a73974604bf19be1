package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
)

const (
	meteringDevices = 200
	meteringRecords = 100 // of each batch
	meteringRows    = 500 // of each statement of the peer
)

// benchMetering measures how many usage records a second the core verifies and counts exactly
// once in PostgreSQL, against plain inserts of a row for each of them into the same server;
// both wait for the disk. Every fifth batch comes twice, every fiftieth before the one that it
// follows, and the core is restarted half way.
func benchMetering(ctx context.Context) (_ []Figure, err error) {
	rounds := 100
	if os.Getenv("LONG") == "1" {
		rounds = 500
	}
	w, err := newMeteringWork(rounds)
	if err != nil {
		return nil, err
	}
	server, err := databasetest.Start("fsync=on", "full_page_writes=on", "synchronous_commit=on", "autovacuum=on", "shared_buffers=256MB", "max_wal_size=4GB")
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	place, err := server.Database(ctx)
	if err != nil {
		return nil, err
	}
	own, err := w.count(ctx, place)
	if err != nil {
		return nil, err
	}
	peer, err := w.insert(ctx, place)
	if err != nil {
		return nil, err
	}
	f := atLeast("metering", own, "events/s", 100_000, 300_000).against(peer)
	f.Note = fmt.Sprintf("%d signed records in batches of %d from %d devices, each fifth batch twice, some out of order, a restart; peer: inserts of %d rows a statement, %d a transaction; sums in SQL are exact",
		w.records, meteringRecords, meteringDevices, meteringRows, meteringDevices*meteringRecords)
	return []Figure{f}, nil
}

type meteringDevice struct {
	id      api.DeviceID
	key     *ecdsa.PrivateKey
	batches [][]byte
}

type meteringWork struct {
	devices []meteringDevice
	rounds  int
	records int
	cpu     uint64 // the sum that the ledger must show
}

// meteringUse is record n of device d: fifteen minutes of one service.
func meteringUse(d int, n uint64) api.Usage {
	at := 1764000000000 + int64(n)*900000
	h := (uint64(d)<<32 + n) * 0x9e3779b97f4a7c15
	return api.Usage{From: at, To: at + 900000, Cut: n%96 == 0, Uses: []api.ContainerUse{{App: fmt.Sprintf("app%d", d%7), Service: "web", RunMillis: 900000,
		CPUMicros: h >> 40, MemoryByteSeconds: h >> 28, RxBytes: h >> 44, TxBytes: h >> 45}}}
}

// newMeteringWork makes and signs all batches.
func newMeteringWork(rounds int) (*meteringWork, error) {
	w := &meteringWork{rounds: rounds, devices: make([]meteringDevice, meteringDevices)}
	for i := range w.devices {
		d := &w.devices[i]
		var err error
		if d.key, err = ecdsa.GenerateKey(elliptic.P256(), crand.Reader); err != nil {
			return nil, err
		}
		spki, err := x509.MarshalPKIXPublicKey(d.key.Public())
		if err != nil {
			return nil, err
		}
		d.id = api.NewDeviceID(spki)
		prev := record.Hash{}
		for b := range rounds {
			first := uint64(b*meteringRecords + 1)
			batch := record.Batch{Epoch: 1764000000, First: first, Last: first + meteringRecords - 1, Prev: prev}
			for n := batch.First; n <= batch.Last; n++ {
				u := meteringUse(i, n)
				payload, err := record.EncodeUsage(u)
				if err != nil {
					return nil, err
				}
				w.cpu += u.Uses[0].CPUMicros
				batch.Records = append(batch.Records, record.Record{Seq: n, Last: n, Kind: api.RecordUsage, Payload: payload})
			}
			raw, end, err := record.Seal(record.By(d.key), d.id, batch)
			if err != nil {
				return nil, err
			}
			d.batches, prev = append(d.batches, raw), end
			w.records += meteringRecords
		}
	}
	return w, nil
}

func (w *meteringWork) batch(device, n int) link.BatchIn {
	d := &w.devices[device]
	return link.BatchIn{Device: d.id, Key: d.key.Public(), Raw: d.batches[n]}
}

// call is what comes at once in a round: each device's next batch, with repeats, and with some
// that come before their turn.
func (w *meteringWork) call(r *rand.Rand, round int) (in []link.BatchIn) {
	for i := range w.devices {
		if i%50 == round%50 && round+1 < w.rounds {
			in = append(in, w.batch(i, round+1))
		}
		in = append(in, w.batch(i, round))
		if i%5 == round%5 {
			in = append(in, w.batch(i, r.Intn(round+1)))
		}
	}
	return in
}

// count is the core's way.
func (w *meteringWork) count(ctx context.Context, place string) (rate float64, err error) {
	cfg := intake.Config{Place: place, Now: time.Now}
	s, err := intake.Open(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r := rand.New(rand.NewSource(1))
	verdicts := map[link.Verdict]int{}
	began := time.Now()
	for round := range w.rounds {
		calls := [][]link.BatchIn{w.call(r, round)}
		if round == w.rounds/2 {
			if err := s.Close(); err != nil {
				return 0, err
			}
			if s, err = intake.Open(ctx, cfg); err != nil {
				return 0, err
			}
			calls = append(calls, calls[0])
		}
		for _, in := range calls {
			results, err := s.AcceptBatches(in)
			if err != nil {
				return 0, err
			}
			for _, r := range results {
				verdicts[r.Verdict]++
			}
		}
	}
	rate = float64(w.records) / time.Since(began).Seconds()
	if n := verdicts[link.Accepted]; n*meteringRecords != w.records || verdicts[link.Duplicate] < n/5 || verdicts[link.Gap] == 0 || verdicts[link.Fork]+verdicts[link.Poison]+verdicts[link.Refused] > 0 {
		return 0, fmt.Errorf("verdicts %v of %d batches", verdicts, w.records/meteringRecords)
	}
	return rate, w.check(ctx, s, r)
}

// check holds the sums in SQL against what was signed, and leads some records back to their
// batches.
func (w *meteringWork) check(ctx context.Context, s *intake.Store, r *rand.Rand) error {
	var cpu, records uint64
	if err := s.Database().QueryRowContext(ctx, `SELECT sum(cpu_us), sum(records) FROM usage`).Scan(&cpu, &records); err != nil {
		return err
	}
	if cpu != w.cpu || records != uint64(w.records) {
		return fmt.Errorf("counted %d µs in %d records, want %d in %d", cpu, records, w.cpu, w.records)
	}
	for range 100 {
		i, n := r.Intn(len(w.devices)), uint64(r.Intn(w.rounds*meteringRecords)+1)
		d := &w.devices[i]
		b, err := s.BatchOf(ctx, d.id, 1764000000, n)
		if err != nil {
			return err
		}
		signed, _, err := record.Open(record.Of(d.key.Public()), b.Raw, d.id, b.Prev)
		if err != nil {
			return err
		}
		u, err := signed.Records[n-signed.First].Usage()
		if err != nil {
			return err
		}
		if got, want := u.Uses[0].CPUMicros, meteringUse(i, n).Uses[0].CPUMicros; got != want {
			return fmt.Errorf("record %d of device %d says %d in its batch, was %d", n, i, got, want)
		}
	}
	return nil
}

// insert is the bare way: a row for each record, nothing decoded, verified or compared.
func (w *meteringWork) insert(ctx context.Context, place string) (rate float64, err error) {
	db, err := database.Open(ctx, database.Config{Place: place, Schema: "bare"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `CREATE TABLE usage (dev BIGINT NOT NULL, epoch BIGINT NOT NULL, seq BIGINT NOT NULL, svc BIGINT NOT NULL, last BIGINT NOT NULL, began BIGINT NOT NULL,
		ended BIGINT NOT NULL, run_ms BIGINT NOT NULL, cpu_us BIGINT NOT NULL, mem_bs BIGINT NOT NULL, rx_bytes BIGINT NOT NULL, tx_bytes BIGINT NOT NULL, PRIMARY KEY (dev, epoch, seq, svc))`); err != nil {
		return 0, err
	}
	const row = `(?,?,?,?,?,?,?,?,?,?,?,?)`
	many := `INSERT INTO usage VALUES ` + strings.Repeat(row+",", meteringRows-1) + row
	began := time.Now()
	for round := range w.rounds {
		err := db.Write(ctx, func(tx *database.Tx) error {
			args := make([]any, 0, meteringRows*12)
			for i := range w.devices {
				for n := uint64(round*meteringRecords + 1); n <= uint64((round+1)*meteringRecords); n++ {
					u := meteringUse(i, n)
					c := &u.Uses[0]
					args = append(args, int64(i), int64(1764000000), int64(n), int64(1+i%7), int64(n), u.From, u.To, int64(c.RunMillis), int64(c.CPUMicros), int64(c.MemoryByteSeconds), int64(c.RxBytes), int64(c.TxBytes))
					if len(args) == meteringRows*12 {
						if _, err := tx.ExecContext(ctx, many, args...); err != nil {
							return err
						}
						args = args[:0]
					}
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return float64(w.records) / time.Since(began).Seconds(), nil
}
