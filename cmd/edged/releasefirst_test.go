package main

import (
	"testing"

	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/edge/update"
	"tributary.dev/tributary/tests/mutation"
)

// Apps wait until the release runs that the owner named at first, or the one that the
// manifest has named since; what lies in the other slot is not what runs.
func TestReleaseFirst(t *testing.T) {
	first := &onboard.Release{Repo: "default/os", Digest: "sha256:1"}
	for name, c := range map[string]struct {
		want  *update.Want
		slots map[update.Slot]update.Release
		waits bool
		good  update.Slot
	}{
		"as it was flashed":             {&update.Want{Digest: "sha256:1"}, map[update.Slot]update.Release{"a": {}}, true, "a"},
		"written and not started":       {&update.Want{Digest: "sha256:1"}, map[update.Slot]update.Release{"a": {}, "b": {Digest: "sha256:1"}}, true, "a"},
		"it runs":                       {&update.Want{Digest: "sha256:1"}, map[update.Slot]update.Release{"a": {Digest: "sha256:1"}}, false, "a"},
		"on trial, it may go back":      {nil, map[update.Slot]update.Release{"a": {Digest: "sha256:1"}}, false, "b"},
		"the manifest names another":    {&update.Want{Digest: "sha256:2"}, map[update.Slot]update.Release{"a": {}}, true, "a"},
		"which runs":                    {&update.Want{Digest: "sha256:2"}, map[update.Slot]update.Release{"a": {Digest: "sha256:2"}}, false, "a"},
		"no manifest yet":               {nil, map[update.Slot]update.Release{"a": {}}, true, "a"},
		"no manifest yet, and it runs":  {nil, map[update.Slot]update.Release{"a": {Digest: "sha256:1"}}, false, "a"},
		"nothing is known of the slots": {nil, nil, true, "a"},
	} {
		why, over := waitsFor(first, c.want, update.State{Slots: c.slots, Good: c.good}, "a")
		if (why != "") != c.waits || over != (!c.waits && c.good == "a") {
			t.Errorf("%s: %q, over %v", name, why, over)
		}
	}
	b := &box{o: options{data: t.TempDir()}}
	if err := (onboard.Owner{Name: "x", Release: first}).Save(b.o.data); err != nil {
		t.Fatal(err)
	}
	if err := b.forgetFirst(); err != nil {
		t.Fatal(err)
	}
	if o, err := onboard.LoadOwner(b.o.data); err != nil || o.Release != nil || o.Name != "x" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestReleaseFirstIsTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "the release that is to run first", Test: "^TestReleaseFirst$", File: "releasefirst.go",
		From: `if runs == first.Digest ||`, To: `if GONE || runs == first.Digest ||`})
}
