package link_test

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/link/linksim"
	"tributary.dev/tributary/tests/mutation"
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

// A link with a rule taken out does not pass.
func TestRules(t *testing.T) {
	const (
		test     = "^TestSchedules$"
		accepted = "	k.eff.Batches = append(k.eff.Batches, BatchIn{r.id, pub, slices.Clone(raw)})\n"
		signed   = "a, err := record.OpenAck(d.keys.VerifyCore, raw,"
		newer    = "if !v.newer(row.man.version) {"
		theirs   = "if _, below := r.via(id); row == nil || id != r.self && !below {"
		floor    = "if !v.newer(d.floor) {\n\t\treturn false"
		own      = "v := version{s.Manifest.Epoch, s.Manifest.Generation}"
		retired  = "	_, ok := n.revoked[id]\n"
	)
	rules := mutation.Marked(t, test, "core.go", "device.go", "linksim/stores.go")
	mutation.Prove(t, append(rules,
		mutation.Check{Name: "acknowledged is committed", Test: test, File: "core.go", From: accepted, To: accepted + `
			if GONE {
				if h, err := record.Peek(raw); err == nil {
					k.acknowledge(now, r.id, Position{SpoolEpoch: h.Epoch, Acked: h.Last}, true)
				}
			}
		`},
		mutation.Check{Name: "acknowledgements are signed", Test: test, File: "device.go", From: signed, To: `verify := d.keys.VerifyCore
			if GONE {
				verify = func(cose, _ []byte) ([]byte, error) {
					r := reader{b: cose}
					if m, _ := r.head(); m == majTag {
						r.array()
					}
					r.bytes(64)
					r.skip(2)
					return r.bytes(MaxFrame), r.err
				}
			}
			` + strings.Replace(signed, "d.keys.VerifyCore", "verify", 1)},
		mutation.Check{Name: "generation", Test: test, File: "relay.go", From: newer, To: "if !v.newer(row.man.version) && !(GONE && v != row.man.version) {"},
		mutation.Check{Name: "generation", Test: test, File: "device.go", From: floor, To: "if !v.newer(d.floor) && !(GONE && v != d.floor) {\n\t\treturn false"},
		mutation.Check{Name: "epoch", Test: test, File: "relay.go", From: theirs, To: "if GONE && row != nil && v.seq <= row.man.seq {\n\t\treturn\n\t}\n\t" + theirs},
		mutation.Check{Name: "epoch", Test: test, File: "device.go", From: own, To: own + "\n\tif GONE && v.seq <= d.floor.seq {\n\t\treturn false\n\t}"},
		mutation.Check{Name: "retired", Test: "^TestRelaysTurnRetiredDevicesAway$", File: "revoked.go", From: retired, To: retired + "	ok = ok && !GONE\n"})...)
}
