package main

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/link/spool/disktest"
)

const (
	spoolInFlight = 1024
	spoolRecord   = 256
	spoolTurn     = 2 * time.Second
	spoolRounds   = 3
)

// benchSpool measures durable records a second, 1,024 in flight, against a bare append
// log with group commit and against bbolt's Batch on the same disk, turn by turn; then
// it cuts the power of a disk that forgets, of a right build and of one without sync.
func benchSpool(ctx context.Context) ([]Figure, error) {
	dir, err := os.MkdirTemp(".", ".bench-spool-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var own, bare, bolt best
	for round := range spoolRounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		at := func(name string) string { return filepath.Join(dir, fmt.Sprintf("%s%d", name, round)) }
		if err := errors.Join(own.try(func() (float64, error) { return runSpool(at("spool")) }),
			bare.try(func() (float64, error) { return runBareLog(at("bare")) }),
			bolt.try(func() (float64, error) { return runBolt(at("bolt")) })); err != nil {
			return nil, err
		}
	}
	acknowledged, lost, err := spoolCuts(200, true)
	if err != nil {
		return nil, err
	}
	broken, lostBroken, err := spoolCuts(20, false)
	if err != nil {
		return nil, err
	}
	rate := atLeast("spool", own.value(), "records/s", 0.5*bare.value(), 0.5*bare.value()).against(bare.value())
	rate.Note = fmt.Sprintf("peer: bare append log with group commit; medians of %d turns", spoolRounds)
	cut := atMost("spool-cut-lost", float64(lost), "records", 0, 0)
	cut.Note = fmt.Sprintf("of %d acknowledged over 200 seeded power cuts", acknowledged)
	check := atLeast("spool-cut-lost-without-sync", float64(lostBroken), "records", 1, 1)
	check.Note = fmt.Sprintf("of %d acknowledged; where nothing is synced some must be lost, or the disk does not forget", broken)
	return []Figure{rate, plain("spool-bbolt-batch", bolt.value(), "records/s").against(own.value()), cut, check}, nil
}

// best collects turns and tells their median.
type best []float64

func (b *best) try(fn func() (float64, error)) error {
	v, err := fn()
	*b = append(*b, v)
	return err
}

func (b best) value() float64 { return median(b) }

func median(vs []float64) float64 {
	sorted := append([]float64(nil), vs...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

// inFlight keeps spoolInFlight appends going for a while and tells how many a second
// came back.
func inFlight(add func(payload []byte) error) (float64, error) {
	payload := make([]byte, spoolRecord)
	rand.New(rand.NewSource(1)).Read(payload)
	var done atomic.Int64
	var stop atomic.Bool
	var first error
	var once sync.Once
	var wg sync.WaitGroup
	began := time.Now()
	timer := time.AfterFunc(spoolTurn, func() { stop.Store(true) })
	defer timer.Stop()
	for range spoolInFlight {
		wg.Go(func() {
			for !stop.Load() {
				if err := add(payload); err != nil {
					once.Do(func() { first = err })
					stop.Store(true)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), first
}

func runSpool(dir string) (_ float64, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		return 0, err
	}
	s, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), DB: db, MaxBytes: 4 << 30, Now: time.Now, Rand: crand.Reader})
	if err != nil {
		return 0, errors.Join(err, db.Close())
	}
	defer func() { err = errors.Join(err, s.Close(), db.Close(), os.RemoveAll(dir)) }()
	return inFlight(func(p []byte) error {
		_, err := s.Append(api.RecordUsage, p)
		return err
	})
}

// bareLog is the least that is durable: one file, one write and one sync a group, and
// nothing to read it by.
type bareLog struct {
	f    *os.File
	mu   sync.Mutex
	more *sync.Cond
	buf  []byte
	done chan struct{} // closed when the group that gathers is on the disk
	end  bool
	err  error
}

func (l *bareLog) add(p []byte) error {
	l.mu.Lock()
	l.buf = append(l.buf, p...)
	done := l.done
	l.mu.Unlock()
	l.more.Signal()
	<-done
	return l.err
}

func (l *bareLog) write() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for len(l.buf) == 0 && !l.end {
			l.more.Wait()
		}
		if len(l.buf) == 0 {
			return
		}
		// Let those that the last sync released join, as the spool does.
		for n := -1; n != len(l.buf); {
			n = len(l.buf)
			l.mu.Unlock()
			runtime.Gosched()
			l.mu.Lock()
		}
		buf, done := l.buf, l.done
		l.buf, l.done = make([]byte, 0, cap(buf)), make(chan struct{})
		l.mu.Unlock()
		_, err := l.f.Write(buf)
		if err == nil {
			err = syscall.Fdatasync(int(l.f.Fd()))
		}
		l.mu.Lock()
		l.err = errors.Join(l.err, err)
		close(done)
	}
}

func runBareLog(path string) (_ float64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	l := &bareLog{f: f, done: make(chan struct{})}
	l.more = sync.NewCond(&l.mu)
	var writer sync.WaitGroup
	writer.Go(l.write)
	defer func() {
		l.mu.Lock()
		l.end = true
		l.mu.Unlock()
		l.more.Signal()
		writer.Wait()
		err = errors.Join(err, f.Close(), os.Remove(path))
	}()
	return inFlight(l.add)
}

func runBolt(path string) (_ float64, err error) {
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close(), os.Remove(path)) }()
	bucket := []byte("records")
	if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket(bucket); return err }); err != nil {
		return 0, err
	}
	db.MaxBatchSize = spoolInFlight
	return inFlight(func(p []byte) error {
		return db.Batch(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucket)
			n, err := b.NextSequence()
			if err != nil {
				return err
			}
			return b.Put(binary.BigEndian.AppendUint64(nil, n), p)
		})
	})
}

// spoolCuts takes the power away at random moments of eight appenders at work, and
// counts what was acknowledged and what of that is missing after the next start.
func spoolCuts(cuts int, synced bool) (acknowledged, lost int, err error) {
	for seed := range cuts {
		r := rand.New(rand.NewSource(int64(seed)))
		disk := disktest.New(int64(seed))
		cfg := spool.Config{Dir: "/spool", FS: disk, MaxBytes: 4 << 20, Now: time.Now, Rand: crand.Reader}
		if !synced {
			cfg.FS = disktest.Unsynced{FS: disk}
		}
		s, err := spool.Open(cfg)
		if err != nil {
			return 0, 0, err
		}
		disk.CutAfter(20 + r.Intn(400))
		var mu sync.Mutex
		acked := make(map[uint64]string)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					payload := fmt.Sprintf("%d/%d/%0*d", w, i, (w*31+i*17)%700, 0)
					n, err := s.Append(api.RecordUsage, []byte(payload))
					if err != nil {
						return // the power is gone
					}
					mu.Lock()
					acked[n] = payload
					mu.Unlock()
					if !synced && i > 300 {
						return // writes alone do not bring the cut on
					}
				}
			})
		}
		wg.Wait()
		cfg.FS = disk.Cut()
		if s, err = spool.Open(cfg); err != nil {
			return 0, 0, fmt.Errorf("seed %d: %w", seed, err)
		}
		first, _, _, _ := s.Range()
		kept, err := s.Read(first, 1<<30)
		if err != nil {
			return 0, 0, err
		}
		found := make(map[uint64]string, len(kept))
		for _, rec := range kept {
			found[rec.Seq] = string(rec.Payload)
		}
		for n, payload := range acked {
			acknowledged++
			if found[n] != payload {
				lost++
			}
		}
		if err := s.Close(); err != nil {
			return 0, 0, err
		}
	}
	return acknowledged, lost, nil
}
