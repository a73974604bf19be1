package update

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/mutation"
)

// TestChecksCount: in a build without one of the checks, the test that proves it fails.
func TestChecksCount(t *testing.T) {
	checks := mutation.Marked(t, "^(TestStories|TestWrongContent|TestWriteByDelta|TestNeverOverTheFirst)$", "decide.go", "flash.go")
	for _, want := range []string{"arch", "floor", "order", "root hash", "verity"} {
		if !slices.ContainsFunc(checks, func(c mutation.Check) bool { return c.Name == want }) {
			t.Errorf("nothing is marked as the check of the %s", want)
		}
	}
	checks = append(checks, mutation.Marked(t, "^TestWrongRelease$", "run.go")...)
	checks = append(checks, mutation.Marked(t, "^TestBackByPerson$", "guard/back.go")...)
	mutation.Prove(t, checks...)
}

// TestNeverOverTheFirst: the slot that the firmware starts first is not written, even where it is not the one that runs.
func TestNeverOverTheFirst(t *testing.T) {
	w := newWorld(t)
	w.order = []Slot{"b", "a"}
	w.uptime, w.want = 30*60e9, &Want{Digest: "sha256:1"}
	w.settle()
	if w.running != "b" || w.state().Good != "b" {
		t.Fatalf("in slot %s: %+v", w.running, w.state())
	}
}

// TestOrderComesBack: a release that was confirmed, and that the firmware then could not start again, is not what the firmware goes on
// beginning with. Where the firmware does not take the order, the release is refused all the same.
func TestOrderComesBack(t *testing.T) {
	target := &Release{Digest: "sha256:1", Version: "2", RootHash: strings.Repeat("b", 64)}
	s := State{Format: format, Phase: Confirming, Target: target, Good: "a", WellSince: -1,
		Slots: map[Slot]Release{"a": {Version: "1", RootHash: strings.Repeat("a", 64)}, "b": *target}}
	f := Facts{Now: time.Unix(1_800_000_000, 0), Boot: "next", Running: "a", Root: strings.Repeat("a", 64), Version: "1", Variables: true, Order: []Slot{"b", "a"}, Want: &Want{Digest: "sha256:1"}}
	s, do := Step(s, f, Default)
	if s.Phase != Returned || do != Nothing {
		t.Fatalf("%s, %s", s.Phase, do)
	}
	if s, do = Step(s, f, Default); do != Order || s.Phase != Returned {
		t.Fatalf("the order is left with the slot that does not start: %q in %s", do, s.Phase)
	}
	kept := s
	f.Done, f.Order = &Done{Do: Order}, []Slot{"a", "b"}
	if s, do = Step(s, f, Default); do != Nothing || s.Phase != Idle || s.Refusal(f.Want, f.Root) == nil {
		t.Errorf("%q in %s, refused: %v", do, s.Phase, s.Refused)
	}
	f.Done, f.Order = &Done{Do: Order, Err: errors.New("write-protected")}, []Slot{"b", "a"}
	if s, do = Step(kept, f, Default); do != Nothing || s.Phase != Idle || s.Refusal(f.Want, f.Root) == nil {
		t.Errorf("with a firmware that takes no order: %q in %s, refused: %v", do, s.Phase, s.Refused)
	}
}

// TestWishIsNotLost: what a person or process 1 writes into the state while the agent looks at the firmware and decides is not written
// over by what was decided before.
func TestWishIsNotLost(t *testing.T) {
	b, d, _ := newBox(t)
	m := b.manager(d, func() {})
	file := filepath.Join(b.dir, "update.json")
	wish := State{Format: format, Phase: Armed, Target: &Release{Version: "0", RootHash: strings.Repeat("0", 64)}, Good: "a", By: "a person", Slots: map[Slot]Release{}, WellSince: -1}
	written := false
	m.cfg.Want = func() (*Want, bool) {
		if !written {
			written = true
			if err := Save(file, wish); err != nil {
				t.Fatal(err)
			}
		}
		return nil, true
	}
	if do, err := m.turn(t.Context()); do != Nothing || err != nil {
		t.Fatalf("%s %v", do, err)
	}
	if s, err := Load(file); err != nil || s.By != wish.By || s.Phase != Armed {
		t.Fatalf("the wish is written over: %+v %v", s, err)
	}
	if _, err := m.turn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := m.State(); s.By != wish.By {
		t.Errorf("the wish is not heard: %+v", s)
	}
	// A state that somebody took away is written again, with the next thing that there is to keep.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	m.reload()
	if fresh, err := m.keep(wish); !fresh || err != nil {
		t.Errorf("a state that is gone is not written: %v", err)
	}
}

// TestWishCounts: without the look before the writing, the wish is written over.
func TestWishCounts(t *testing.T) {
	const look = "if stampOf(m.cfg.State) != m.stamp {"
	mutation.Prove(t, mutation.Check{Name: "nobody else wrote", Test: "^TestWishIsNotLost$", File: "run.go", From: look, To: "if stampOf(m.cfg.State) != m.stamp && !GONE {", Says: "the wish is written over"})
}
