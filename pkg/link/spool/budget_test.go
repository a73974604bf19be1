package spool_test

import (
	"errors"
	"sync"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/spool"
)

// A budget that shrinks and grows while records come in: the spool fits it when SetBudget
// returns, no usage is lost, cuts of power included, and what grew takes more again.
func TestSetBudget(t *testing.T) {
	b := newBox(t, 1)
	b.cfg.MaxBytes = 16 << 20
	s := b.open(t)
	want := fill(t, s, appends(30000))
	before := s.Bytes()
	if before < 4<<20 {
		t.Fatalf("only %d bytes to begin with", before)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range 3 {
		wg.Go(func() {
			for i := range 200 {
				if _, err := s.Append(api.RecordUsage, usage(t, 1e6+w*1000+i)); err != nil {
					t.Errorf("usage refused: %v", err)
				}
				mu.Lock()
				want.run, want.cpu, want.tx = want.run+1000, want.cpu+uint64(1e6+w*1000+i), want.tx+1
				mu.Unlock()
			}
		})
	}
	if err := s.SetBudget(1 << 20); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := s.Bytes(); n > 1<<20 {
		t.Errorf("takes %d bytes of %d", n, 1<<20)
	}
	if n := int64(b.disk.Used()); n > 1<<20 {
		t.Errorf("the disk holds %d bytes of %d", n, 1<<20)
	}
	check := func(when string) {
		t.Helper()
		if got, next := sum(t, all(t, s)); got != want {
			t.Errorf("%s: usage kept %+v, want %+v", when, got, want)
		} else if _, last, _, _ := s.Range(); next != last+1 {
			t.Errorf("%s: numbers end at %d of %d", when, next-1, last)
		}
	}
	check("smaller")
	b.disk = b.disk.Cut() // reopened with the old budget, which edged would not do
	s = b.open(t)
	check("after a cut")
	if err := s.SetBudget(1 << 20); err != nil {
		t.Fatal(err)
	}

	small := s.Bytes()
	if err := s.SetBudget(16 << 20); err != nil {
		t.Fatal(err)
	}
	event := make([]byte, 300)
	for range 8 << 20 / len(event) {
		if _, err := s.Append(api.RecordEvent, event); err != nil {
			t.Fatalf("with room again: %v", err)
		}
	}
	if n := s.Bytes(); n < small+8<<20 {
		t.Errorf("%d bytes after 8 MiB of events on %d", n, small)
	}
	check("larger")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SetBudget(0); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
