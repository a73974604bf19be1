package pool

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// What a person says is well is given again, over crashes; what fails later is not, and what
// is said of one slice is of that alone.
func TestUncordon(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMIG, Layout: []string{"1g.5gb", "1g.5gb"}})
	b.Look(t.Context())
	cordoned := func() (out []string) {
		for _, d := range b.Claimables() {
			if d.Cordoned != (d.Fault != "") {
				t.Errorf("%+v", d)
			}
			if d.Cordoned {
				out = append(out, d.ID)
			}
		}
		return out
	}
	fails := func(xid uint64, instances ...int) {
		for _, n := range instances {
			b.Tell(gpud.Event{Card: "GPU-0", Kind: gpud.EventXid, Xid: xid, Instance: n})
		}
		b.Look(t.Context())
	}
	var all []string
	for _, d := range b.Claimables() {
		all = append(all, d.ID)
	}
	fails(94, 1, 2)
	if got := cordoned(); len(all) != 2 || !slices.Equal(got, all) {
		t.Fatalf("of %v cordoned are %v", all, got)
	}
	if room := b.Room(); slices.ContainsFunc(room, func(u api.DeviceUse) bool { return u.Facts["profile"] == "7g.40gb" }) {
		t.Errorf("beside what is cordoned there is room for %+v", room)
	}
	before := b.now.Add(-time.Second).Unix()
	b.Uncordon([]api.Uncordon{{ID: "GPU-0", Until: before}})
	b.Look(t.Context())
	if got := cordoned(); len(got) != 2 {
		t.Fatalf("what was found after the word is ended: cordoned are %v", got)
	}
	one := api.Uncordon{ID: all[0], Until: b.now.Unix()}
	b.Uncordon([]api.Uncordon{one})
	b.Look(t.Context())
	if got := cordoned(); !slices.Equal(got, all[1:]) {
		t.Fatalf("of one slice it was said that it is well; cordoned are %v", got)
	}
	if !slices.Contains(b.events, "gpu.uncordoned") {
		t.Errorf("the events are %v", b.events)
	}
	b.begin()
	b.Uncordon([]api.Uncordon{one}) // as the manifest goes on saying
	b.Look(t.Context())
	if got := cordoned(); !slices.Equal(got, all[1:]) {
		t.Fatalf("after a crash cordoned are %v", got)
	}
	b.now = b.now.Add(time.Minute)
	fails(94, 1)
	if got := cordoned(); len(got) != 2 {
		t.Fatalf("it failed again, and cordoned are %v", got)
	}
	b.Uncordon([]api.Uncordon{{ID: "GPU-0", Until: b.now.Unix()}})
	b.Look(t.Context())
	if got := cordoned(); len(got) > 0 {
		t.Fatalf("of the card it was said that it is well; cordoned are %v", got)
	}
	for _, w := range b.Warnings() {
		if strings.HasPrefix(w.Name, "gpu-xid") {
			t.Errorf("still warned of: %+v", w)
		}
	}
}
