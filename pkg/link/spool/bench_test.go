package spool_test

import (
	"crypto/rand"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/spool"
)

// BenchmarkAppend keeps 1,024 appends of 256 bytes in flight on the real disk.
func BenchmarkAppend(b *testing.B) {
	s, err := spool.Open(spool.Config{Dir: b.TempDir(), MaxBytes: 4 << 30, Now: time.Now, Rand: rand.Reader})
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 256)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range 1024 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := s.Append(api.RecordUsage, payload); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
