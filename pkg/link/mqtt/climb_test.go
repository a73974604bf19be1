package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/place"
)

// What a device does over days beside a better parent that comes and goes as it likes:
// it moves only to one that has answered every question over the whole hold, asks little,
// and is back for good some time after the parent has come to stay.
func TestClimb(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steady := time.Duration(rapid.Int64Range(int64(time.Second), int64(24*time.Hour)).Draw(t, "steady"))
		better := []api.ParentRef{{Address: "0"}, {Address: "1"}}[:rapid.IntRange(1, 2).Draw(t, "better")]
		c := climb{steady: steady}
		start := time.Unix(1e9, 0)
		now := start
		r := func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "r") }
		c.begin(better, better, now, r())
		unbroken := map[api.ParentRef]time.Time{} // first answer since the last silence
		asked, answers := 0, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			p, at := c.next(better)
			if wait := at.Sub(now); wait > holdMost*steady {
				t.Fatalf("would ask only after %s", wait)
			}
			if at.After(now) {
				now = at
			}
			asked++
			if !rapid.Bool().Draw(t, "answers") {
				c.silent(p, now, r())
				delete(unbroken, p)
				continue
			}
			answers++
			hold := c.hold(c.rung(p))
			if unbroken[p].IsZero() {
				unbroken[p] = now
			}
			if move := c.answered(p, now, r()); move != (now.Sub(unbroken[p]) >= hold) {
				t.Fatalf("move %t after %s of a hold of %s", move, now.Sub(unbroken[p]), hold)
			} else if !move {
				continue
			}
			before := c.rung(p).distrust
			if rapid.Bool().Draw(t, "refuses") {
				c.refused(p, now, r())
			} else {
				lasted := time.Duration(rapid.Int64Range(0, int64(stay*hold)).Draw(t, "lasted"))
				now = now.Add(lasted)
				c.ended(p, true, lasted)
				if lasted >= stay*hold {
					before = -1
				}
				c.begin(better, better, now, r())
				clear(unbroken)
			}
			delete(unbroken, p)
			if after := c.rung(p).distrust; after != min(before+1, distrustMost) {
				t.Fatalf("distrust %d after %d", after, before)
			}
		}
		// No question is nearer to the one before than a twelfth of the steady time.
		if most := int(now.Sub(start)/(steady/12)+1) * len(better); asked > most {
			t.Fatalf("%d questions in %s at a steady time of %s", asked, now.Sub(start), steady)
		}
		for i := 0; ; i++ {
			p, at := c.next(better)
			if at.After(now) {
				now = at
			}
			if c.answered(p, now, r()) {
				break
			}
			if i > 100 {
				t.Fatal("never goes back")
			}
		}
	})
}

// A parent that stays away costs few questions, and one that drops each session soon is
// tried a few times a day.
func TestClimbIsCheap(t *testing.T) {
	p := api.ParentRef{Address: "0"}
	better := []api.ParentRef{p}
	start := time.Unix(1e9, 0)
	for name, back := range map[string]bool{"away": false, "drops": true} {
		c := climb{steady: DefaultSteady}
		now, asked, moves := start, 0, 0
		c.begin(better, better, now, 0)
		for now.Sub(start) < 24*time.Hour {
			_, now = c.next(better)
			asked++
			switch {
			case !back:
				c.silent(p, now, 0)
			case c.answered(p, now, 0):
				moves++
				now = now.Add(time.Second)
				c.ended(p, true, time.Second)
				c.begin(better, better, now, 0)
			}
		}
		t.Logf("%s: %d questions, %d moves", name, asked, moves)
		if asked > 110 || moves > 11 {
			t.Errorf("%s: %d questions and %d moves in a day", name, asked, moves)
		}
	}
}

func TestAbove(t *testing.T) {
	list := []api.ParentRef{{Device: "a", Address: "1"}, {Device: "b", Address: "2"}, {Address: "3"}, {Device: "c", Address: "4"}}
	for _, c := range []struct {
		at   int
		who  string
		want []int
	}{{0, "a", nil}, {1, "b", []int{0}}, {3, "c", []int{0, 1, 2}}, {3, "a", []int{1, 2}}, {2, "b", []int{0}}, {9, "x", []int{0, 1, 2, 3}}} {
		var want []api.ParentRef
		for _, i := range c.want {
			want = append(want, list[i])
		}
		if got := above(list, c.at, c.who); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("above %d, with %s: %v", c.at, c.who, got)
		}
	}
}

func steadyBox(t *testing.T, id *identity.Identity, parents ...api.ParentRef) *box {
	b := &box{events: newEvents(), me: id.ID()}
	b.Uplink = NewUplink(UplinkConfig{Identity: identity.NewLive(id), Parents: parents, Backoff: quick, Steady: 300 * time.Millisecond, Log: logger(t)})
	running(t, func(ctx context.Context) error { return b.Uplink.Run(ctx, b.events) })
	return b
}

func TestBackToTheBetterParent(t *testing.T) {
	pki := newPKI(t)
	one, two, dev := pki.device(t), pki.device(t), pki.device(t)
	addr := place.Left() // the better parent is away
	c := newParent(t, identity.NewLive(two), nil)
	b := steadyBox(t, dev, api.ParentRef{Device: one.ID().String(), Address: addr}, c.ref(two.ID().String()))
	upOne, upTwo := "up "+one.ID().String(), "up "+two.ID().String()
	b.wait(t, upTwo)

	told := newEvents()
	told.onUp = func(api.DeviceID) {
		if b.count("down") != 0 {
			t.Error("left its parent before the better one accepted")
		}
	}
	a := newParentTelling(t, told, identity.NewLive(one), func(cfg *BrokerConfig) { cfg.Listener = place.Take(t, addr) })
	b.wait(t, upOne)
	c.wait(t, fmt.Sprintf("down %s", b.me))
	if got := b.all(); fmt.Sprint(got) != fmt.Sprint([]string{upTwo, "down", upOne}) {
		t.Errorf("heard %q", got)
	}
	if err := b.Send([]byte("by the better way"), true); err != nil {
		t.Fatal(err)
	}
	a.wait(t, fmt.Sprintf("frame %s by the better way", b.me))

	// And down the ladder again when it is lost again.
	a.stop()
	b.until(t, "the second again", func() bool { return b.count(upTwo) == 2 })
}

// Something answers in the better parent's place and is not it, or takes no session: the
// device stays where it is.
func TestStaysWhenTheBetterRefuses(t *testing.T) {
	pki := newPKI(t)
	one, two, three, dev := pki.device(t), pki.device(t), pki.device(t), pki.device(t)
	impostor := newParent(t, identity.NewLive(three), nil)
	c := newParent(t, identity.NewLive(two), nil)
	var dumb atomic.Int32
	ln := listen(t)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, _ := conn.Read(make([]byte, 1)); n > 0 {
				dumb.Add(1) // more than the question whether it is there
			}
			conn.Close()
		}
	}()
	b := steadyBox(t, dev, api.ParentRef{Device: one.ID().String(), Address: impostor.Addr().String()},
		api.ParentRef{Device: one.ID().String(), Address: ln.Addr().String()}, c.ref(two.ID().String()))
	b.wait(t, "up "+two.ID().String())
	before := dumb.Load()
	b.until(t, "a session to be tried", func() bool { return dumb.Load() > before })
	if err := b.Send([]byte("still here"), true); err != nil {
		t.Fatal(err)
	}
	c.wait(t, fmt.Sprintf("frame %s still here", b.me))
	if b.count("down") != 0 || len(impostor.all()) != 0 {
		t.Errorf("heard %q, the impostor %q", b.all(), impostor.all())
	}
}

// The better parent is back and is itself cut off: the device moves when the way leads to
// the core again.
func TestStaysWhileTheBetterIsCutOff(t *testing.T) {
	pki := newPKI(t)
	one, two, dev := pki.device(t), pki.device(t), pki.device(t)
	c := newParent(t, identity.NewLive(two), nil)
	ref := api.ParentRef{Device: one.ID().String(), Address: place.Left()}
	var leads atomic.Bool
	var asked atomic.Int32
	b := &box{events: newEvents(), me: dev.ID()}
	b.Uplink = NewUplink(UplinkConfig{Identity: identity.NewLive(dev), Parents: []api.ParentRef{ref, c.ref("")}, Backoff: quick, Steady: 100 * time.Millisecond, Log: logger(t),
		Leads: func(_ context.Context, p api.ParentRef) error {
			if p != ref {
				t.Errorf("asked about %v", p)
			}
			if asked.Add(1); !leads.Load() {
				return errors.New("cut off")
			}
			return nil
		}})
	running(t, func(ctx context.Context) error { return b.Uplink.Run(ctx, b.events) })
	b.wait(t, "up "+two.ID().String())
	newParent(t, identity.NewLive(one), func(cfg *BrokerConfig) { cfg.Listener = place.Take(t, ref.Address) })
	b.until(t, "the question", func() bool { return asked.Load() > 0 })
	if b.count("down") != 0 {
		t.Errorf("heard %q", b.all())
	}
	leads.Store(true)
	b.wait(t, "up "+one.ID().String())
}

// Two entries lead to one broker, which takes the new session for the same device's and
// ends the old one: the device goes over all the same, once.
func TestBetterAddressOfTheSameBox(t *testing.T) {
	pki := newPKI(t)
	one, dev := pki.device(t), pki.device(t)
	a := newParent(t, identity.NewLive(one), nil)
	addr := place.Left()
	b := steadyBox(t, dev, api.ParentRef{Address: addr}, a.ref(one.ID().String()))
	up := "up " + one.ID().String()
	b.wait(t, up)
	ln := place.Take(t, addr)
	go forward(ln, a.Addr().String())
	b.until(t, "the better address", func() bool { return b.count(up) == 2 })
	if err := b.Send([]byte("by another door"), true); err != nil {
		t.Fatal(err)
	}
	a.wait(t, fmt.Sprintf("frame %s by another door", b.me))
}

// forward copies between connections to ln and addr until ln closes.
func forward(ln net.Listener, addr string) {
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", addr)
		if err != nil {
			in.Close()
			continue
		}
		go func() { io.Copy(out, in); out.Close() }()
		go func() { io.Copy(in, out); in.Close() }()
	}
}
