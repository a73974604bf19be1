package intake

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// two opens two cores' ends of one ledger.
func two(t *testing.T) (stores [2]*Store) {
	place := databasetest.Postgres(t)
	for i := range stores {
		cfg := config(place)
		cfg.Shared = true
		s := open(t, cfg)
		t.Cleanup(func() { s.Close() })
		stores[i] = s
	}
	return stores
}

// A device's records come now through one core, now through another, some again, some at both at
// once: each is counted once, and both cores know where the count stands.
func TestTwoCoresCountOnce(t *testing.T) {
	stores, key := two(t), newKey(t)
	rng := rand.New(rand.NewPCG(1, 2))
	boxes := []*box{newBox(t, 1, key), newBox(t, 2, key)}
	for round := range 25 {
		var wg sync.WaitGroup
		for i, s := range stores {
			var in []link.BatchIn
			for _, b := range boxes {
				if i == 0 {
					b.use(t, uint64(round))
					b.use(t, uint64(round))
				}
				at, err := s.Position(b.id)
				if err != nil {
					t.Fatal(err)
				}
				if next := int(at.Acked) + 1; next <= len(b.recs) {
					in = append(in, b.cut(t, next, len(b.recs), true))
				}
				if from := 1 + rng.IntN(len(b.recs)); rng.IntN(3) == 0 {
					in = append(in, b.cut(t, from, from+rng.IntN(len(b.recs)-from+1), true)) // again
				}
			}
			wg.Go(func() {
				if _, err := s.AcceptBatches(in); err != nil {
					t.Errorf("round %d at core %d: %v", round, i, err)
				}
			})
			if rng.IntN(2) == 0 {
				wg.Wait() // else both at once
			}
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for _, b := range boxes {
			var sum uint64
			for n := range uint64(round + 1) {
				sum += 2 * n
			}
			for i, s := range stores {
				u, err := s.Usage(t.Context(), b.id, time.Time{}, time.Time{})
				if err != nil {
					t.Fatal(err)
				}
				var cpu uint64
				for _, total := range u.Totals {
					cpu += total.CPUMicros
				}
				if at, err := s.Position(b.id); err != nil || at.Acked != uint64(len(b.recs)) || u.Intervals != uint64(len(b.recs)) || cpu != sum {
					t.Fatalf("round %d, core %d, device %s: %d of %d records at %d, cpu %d of %d, %v", round, i, b.id, u.Intervals, len(b.recs), at.Acked, cpu, sum, err)
				}
			}
		}
	}
}

// Without looking at what another core wrote, it is counted on from where this one was.
func TestLookingIsNeeded(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestTwoCoresCountOnce$", "shared.go")...)
}

// What a core takes in under a fence that is another's now changes nothing, and its cause is told
// as that of a database that is away.
func TestFencedWork(t *testing.T) {
	stores, key := two(t), newKey(t)
	refused := &api.Error{Code: api.Unavailable, Message: "not yours"}
	lost := false
	stores[0].Work(database.Fenced(t.Context(), func(context.Context, *database.Tx) error {
		if lost {
			return refused
		}
		return nil
	}))
	b := newBox(t, 1, key)
	b.use(t, 1)
	want(t, stores[0], link.Accepted, 1, b.cut(t, 1, 1, false))
	lost = true
	b.use(t, 1)
	if _, err := stores[0].AcceptBatches([]link.BatchIn{b.cut(t, 2, 2, false)}); !errors.Is(err, refused) {
		t.Errorf("records under a lost fence: %v", err)
	}
	if err := stores[0].ApplyState([]link.StateChange{{Device: b.id, Epoch: 1, Seq: 1, Full: true}}); !errors.Is(err, refused) {
		t.Errorf("state under a lost fence: %v", err)
	}
	if at, err := stores[1].Position(b.id); err != nil || at.Acked != 1 {
		t.Errorf("position %+v, %v", at, err)
	}
	want(t, stores[1], link.Accepted, 2, b.cut(t, 2, 2, false))
}

// What one core learns of where a device is, the other hears of.
func TestPlacesAreTold(t *testing.T) {
	stores, key := two(t), newKey(t)
	b := newBox(t, 1, key)
	heard := make(chan string, 16)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stores[1].db.Hear(ctx, func(context.Context) { heard <- "missed" }, func(_ context.Context, kind, text string) { heard <- fmt.Sprint(kind, database.Said(text)) })
	}()
	defer func() { stop(); <-ended }()
	expect := func(what string) {
		t.Helper()
		if got := wait.For(t, what, heard); got != what {
			t.Fatalf("heard %q, want %q", got, what)
		}
	}
	expect("missed")
	if err := stores[0].ApplyState([]link.StateChange{{Device: b.id, Epoch: 1, Seq: 1, Attachment: []byte{1}, Parent: api.DeviceID{9}}}); err != nil {
		t.Fatal(err)
	}
	expect(fmt.Sprint(Said, []api.DeviceID{b.id}))
	if err := stores[0].PutPresence(ctx, []Presence{{b.id, true, 5}}, true); err != nil {
		t.Fatal(err)
	}
	expect(fmt.Sprint(Said, []api.DeviceID{b.id}))
	if err := stores[0].PutPresence(ctx, []Presence{{b.id, true, 7}}, false); err != nil {
		t.Fatal(err)
	}
	for _, ids := range [][]api.DeviceID{nil, {b.id}} {
		got, err := stores[1].Places(ctx, ids)
		if err != nil || len(got) != 1 || got[0].Presence != (Presence{b.id, true, 7}) || string(got[0].Attachment) != "\x01" {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if got, err := stores[1].Places(ctx, []api.DeviceID{}); err != nil || len(got) != 0 {
		t.Errorf("of nobody: %+v, %v", got, err)
	}
}
