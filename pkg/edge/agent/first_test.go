package agent

import (
	"sync/atomic"
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

// Apps of a box that is to run another release first are in the set, held, and taken once
// it runs.
func TestHold(t *testing.T) {
	b := newBench(t)
	var why atomic.Pointer[string]
	reason := "another release first"
	why.Store(&reason)
	b.tune = func(c *Config) { c.Hold = func() string { return *why.Load() } }
	b.start()
	ref := b.up.push(t, shop("web@sha256:1"))
	b.link.publish(1, b.id.ID(), app(ref))
	b.wait("it says why the app is not taken, or takes it", func() bool {
		return b.warned("manifest-incomplete") || b.work.running()["shop"] != ""
	})
	if digest := b.work.running()["shop"]; digest != "" {
		t.Fatalf("it runs %s all the same", digest)
	}
	none := ""
	why.Store(&none)
	b.wait("it is taken", func() bool { return b.work.running()["shop"] == ref.Digest && b.applied() == 1 })
	b.halt()
}

func TestHoldIsTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "a release that goes first", Test: "^TestHold$", File: "desired.go", From: `if hold != "" {`, To: `if hold != "" && !GONE {`, Says: "all the same"})
}
