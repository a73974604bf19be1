package update

import (
	"errors"
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
