package update

import (
	"slices"
	"testing"

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
