package intake

import (
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/link"
)

// BenchmarkAccept counts batches of a hundred usage records, 64 to a transaction. The tests'
// PostgreSQL does not wait for its disk.
func BenchmarkAccept(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		benchmarkAccept(b, func() string { return filepath.Join(b.TempDir(), "ledger.db") })
	})
	b.Run("postgres", func(b *testing.B) { benchmarkAccept(b, func() string { return databasetest.Postgres(b) }) })
}

func benchmarkAccept(b *testing.B, place func() string) {
	s := open(b, config(place()))
	defer func() { _ = s.Close() }()
	key := newKey(b)
	boxes := make([]*box, 64)
	var ins []link.BatchIn
	for i := range boxes {
		boxes[i] = newBox(b, byte(i), key)
	}
	const calls = 16
	for call := range calls {
		for _, box := range boxes {
			for range 100 {
				box.use(b, uint64(call))
			}
			ins = append(ins, box.cut(b, call*100+1, call*100+100, false))
		}
	}
	b.ResetTimer()
	for n := 0; b.Loop(); n++ {
		if n > 0 {
			// Everything is counted: a new ledger, outside the measurement.
			b.StopTimer()
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			s = open(b, config(place()))
			b.StartTimer()
		}
		for call := range calls {
			if _, err := s.AcceptBatches(ins[call*64 : call*64+64]); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*calls*6400), "ns/record")
}
