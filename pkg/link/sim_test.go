package link_test

import (
	"flag"
	"fmt"
	"runtime"
	"testing"

	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/linksim"
)

var (
	seed      = flag.Uint64("seed", 0, "play this schedule alone, and tell what happens")
	schedules = flag.Int("schedules", 0, "how many schedules to play (default 2000, 120 with -short)")
)

func keyring(t testing.TB) *linksim.Keyring {
	t.Helper()
	k, err := linksim.NewKeyring()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// hostile tells in which schedules relays lie: one in four.
func hostile(seed uint64) bool { return seed%4 == 0 }

// Whatever happens to whom in whatever order: once it stops, everyone agrees.
func TestSchedules(t *testing.T) {
	if *seed != 0 {
		for _, f := range (linksim.Schedule{Seed: *seed, Keys: keyring(t), Hostile: hostile(*seed), Trace: t.Logf}).Run() {
			t.Errorf("seed %d: %s", *seed, f)
		}
		return
	}
	n := *schedules
	if n == 0 {
		if n = 2000; testing.Short() {
			n = 120
		}
	}
	// Each processor plays every so many-th; a keyring remembers manifests, so it is
	// renewed now and then.
	workers := runtime.GOMAXPROCS(0)
	for worker := range workers {
		t.Run(fmt.Sprintf("worker %d", worker), func(t *testing.T) {
			t.Parallel()
			for s, keys := 1+worker, keyring(t); s <= n; s += workers {
				if s/workers%100 == 99 {
					keys = keyring(t)
				}
				if fs := (linksim.Schedule{Seed: uint64(s), Keys: keys, Hostile: hostile(uint64(s))}).Run(); len(fs) > 0 {
					for _, f := range fs {
						t.Errorf("seed %d: %s", s, f)
					}
					t.Fatalf("play it again with: go test ./pkg/link -run TestSchedules -seed %d -v", s)
				}
			}
		})
	}
}

// A link with a rule taken out must not pass.
func TestBrokenLinksAreNoticed(t *testing.T) {
	keys := keyring(t)
	for name, f := range map[string]link.Faults{
		"no dedupe":           {NoDedupe: true},
		"no generation check": {NoGenerationCheck: true},
		"epoch ignored":       {IgnoreEpoch: true},
		"ack before commit":   {AckBeforeCommit: true},
		"unsigned ack":        {UnsignedAck: true},
		"state without macs":  {NoStateMAC: true},
		"state with gaps":     {TakeIncomplete: true},
	} {
		t.Run(name, func(t *testing.T) {
			for s := uint64(1); s <= 300; s++ {
				if fs := (linksim.Schedule{Seed: s, Keys: keys, Faults: f, Hostile: hostile(s)}).Run(); len(fs) > 0 {
					t.Logf("noticed with seed %d: %s", s, fs[0])
					return
				}
			}
			t.Fatal("300 schedules did not notice")
		})
	}
}
