package pool

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

func names(list []api.Warning) (out []string) {
	for _, w := range list {
		out = append(out, w.Name)
	}
	return out
}

// A card that is told of no more is lost, after a moment in which it may be reset: who holds
// it is moved. The others are given as before.
func TestVanished(t *testing.T) {
	b := newBox(t, 2)
	b.seen[1].NUMA = 3
	b.Look(t.Context())
	if a := b.Fill(b.seen); len(a) != 2 || a[1].NUMA != 3 {
		t.Errorf("the bus says that it is near node 3: %+v", a)
	}
	id, _, err := b.take(api.Claim{Class: api.ClaimGPU, Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	all := b.cards.list
	b.cards.do(func() { b.cards.list = all[1:] })
	for range awayLooks - 1 {
		b.Look(t.Context())
	}
	if len(b.moved) > 0 {
		t.Fatalf("moved are %v, as if it had been away for long", b.moved)
	}
	b.Look(t.Context())
	if !slices.Equal(b.moved, []string{id}) {
		t.Errorf("moved are %v, held is %s", b.moved, id)
	}
	if !slices.Contains(names(b.Warnings()), "gpu-lost") {
		t.Errorf("the warnings are %+v", b.Warnings())
	}
	if _, _, err := b.take(api.Claim{Class: api.ClaimGPU, Count: 1}); err != nil {
		t.Errorf("the other card: %v", err)
	}
}

// What a card tells of itself is told with the time of when it began, and a card that does
// not answer at the first look after a reboot is made what it was when it does.
func TestNotAnsweringAtFirst(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMIG})
	if _, _, err := b.take(slice(map[string]string{"profile": "2g.10gb"})); err != nil {
		t.Fatal(err)
	}
	was := b.cards.layout(0)
	b.reboot(false)
	silent := func(since time.Time) {
		b.cards.do(func() {
			b.cards.list[0].Accelerator.Findings = []api.AcceleratorFinding{{Warning: api.Warning{Name: "gpu-slices-unreadable", Message: "once", Since: since.Unix()}}}
		})
	}
	first := b.now
	for range 3 {
		silent(b.now)
		b.Look(t.Context())
		b.now = b.now.Add(lookEvery)
	}
	if w := b.Warnings(); len(w) != 1 || w[0].Since != first.Unix() {
		t.Errorf("the warnings are %+v, the first at %d", w, first.Unix())
	}
	b.cards.do(func() { b.cards.list[0].Accelerator.Findings = nil })
	b.Look(t.Context())
	if got := b.cards.layout(0); got != was {
		t.Errorf("the card is %s, and was %s", got, was)
	}
}

// A card that is not what it is to be is warned of for as long as that is so.
func TestWarningsStay(t *testing.T) {
	b := newBox(t, 1)
	b.cards.do(func() { b.cards.mode = api.Errorf(api.Conflict, "something uses it") })
	b.policy(api.Sharing{Mode: api.SharingMIG})
	b.Look(t.Context())
	if w := b.Warnings(); !slices.Equal(names(w), []string{"gpu-not-settled"}) || !strings.Contains(w[0].Message, "something uses it") {
		t.Errorf("a driver that refuses: %+v", w)
	}
	b.cards.do(func() { b.cards.mode, b.cards.pending = nil, true })
	for range 3 {
		b.Look(t.Context())
	}
	if w := b.Warnings(); !slices.Equal(names(w), []string{"gpu-policy-waits"}) || !strings.Contains(w[0].Message, "next reset") {
		t.Errorf("a mode that waits for a reset: %+v", w)
	}
	b.cards.do(func() { b.cards.pending = false })
	b.cards.do(func() { b.cards.list[0].Accelerator.MIG.Enabled = true })
	b.Look(t.Context())
	if w := b.Warnings(); len(w) > 0 {
		t.Errorf("all is well: %+v", w)
	}
	// What could not be made again after a reboot is told until the next.
	if _, _, err := b.take(slice(map[string]string{"profile": "2g.10gb"})); err != nil {
		t.Fatal(err)
	}
	b.cards.do(func() { b.cards.mode = api.Errorf(api.Conflict, "something uses it") })
	b.reboot(false)
	for range 3 {
		b.Look(t.Context())
	}
	if w := b.Warnings(); !slices.Contains(names(w), "gpu-not-restored") {
		t.Errorf("after a reboot: %+v", w)
	}
}

// Faults that any program can bring about cordon nothing.
func TestProgramsCordonNothing(t *testing.T) {
	b := newBox(t, 1)
	b.Look(t.Context())
	for _, xid := range []uint64{8, 13, 31, 32, 43, 45, 68, 69, 109, 137} {
		b.Tell(gpud.Event{Card: "GPU-0", Kind: gpud.EventXid, Xid: xid, Instance: -1})
	}
	b.Look(t.Context())
	if w := b.Warnings(); len(w) > 0 || b.Claimables()[0].Fault != "" {
		t.Errorf("%+v", w)
	}
}
