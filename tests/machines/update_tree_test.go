package machines

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
)

// TestUpdateOtherArchitecture updates a box of the other architecture.
func TestUpdateOtherArchitecture(t *testing.T) {
	u := needUpdating(t, 20*time.Minute, needs{arch: Other()})
	u.updates(Variant{Version: "v2", Counter: 1})
}

// TestUpdateBelowRelay: a box below a relay waits for its hours, then fetches by its relay and no faster than it may. The
// relay fetches once and sooner; the box goes on from that while the core is out of reach, and is confirmed by its relay.
func TestUpdateBelowRelay(t *testing.T) {
	const rate = 2 << 20
	u := needUpdating(t, 25*time.Minute, needs{relay: true})
	relay := u.tree.boxes["relay"]
	from := time.Now().UTC().Add(10 * time.Hour)
	u.settings = fmt.Sprintf(", settings: {updateHours: %q, updateBytesPerSecond: %d}", from.Format("15:04")+"-"+from.Add(time.Hour).Format("15:04"), rate)
	u.release(Variant{Version: "v2", Counter: 1, Whole: true})
	u.says(`msg="the update goes on" phase=fetch `)
	u.current() // and has had the time to begin, if it were to
	if strings.Contains(u.tree.Machine("box").Console.String(), "fetching a release") {
		t.Error("it fetches outside of its hours")
	}
	crossed := relay.fetched(t, u.ctx)
	if crossed > 4<<20 {
		t.Errorf("the relay brought %d bytes ahead, which nobody asked for", crossed)
	}
	u.settings = fmt.Sprintf(", settings: {updateBytesPerSecond: %d}", rate)
	u.fleet("v2")
	size, err := strconv.ParseUint(u.says(`msg="fetching a release" version=v2 bytes=(\d+) delta=false`)[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = lab.Until(u.ctx, "the relay has the release", patience, func(ctx context.Context) error {
		if n := relay.fetched(t, ctx); n < crossed+size {
			return fmt.Errorf("it fetched %d bytes of %d", n-crossed, size)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Since(began)
	relay.cut(true)
	u.says(`msg="the update goes on" phase=write `)
	took, least := time.Since(began), time.Duration(size)*time.Second/rate
	t.Logf("%d bytes reached the relay within %.0f s, the box within %.0f s (%.0f at the least)", size, ahead.Seconds(), took.Seconds(), least.Seconds())
	if took < least*8/10 { // what was said came late by some seconds at most
		t.Errorf("it fetched %d bytes within %s", size, took)
	}
	u.runs("v2")
	u.says(`confirmed: system, agent, parent and apps are well`)
	relay.cut(false)
	u.calm()
	if n := relay.fetched(t, u.ctx) - crossed; n > size+size/10 {
		t.Errorf("the release crossed the relay's uplink more than once: %d bytes", n)
	}
}

// current waits until the box has taken what the core wants of it.
func (u *updating) current() {
	u.Helper()
	err := lab.Until(u.ctx, "the box is current", patience, func(ctx context.Context) error {
		devices, err := u.story.Devices(ctx)
		if d := devices["box"].Status; err == nil && (!d.Online || d.Applied != d.Desired) {
			err = fmt.Errorf("it is at %d of %d", d.Applied, d.Desired)
		}
		return err
	})
	if err != nil {
		u.Fatal(err)
	}
}

var fetchedBytes = regexp.MustCompile(`tributary_cache_bytes_total\{what="fetched"\} (\d+)`)

// fetched is what a relay's cache brought from its parent since the relay started.
func (b *Box) fetched(t *testing.T, ctx context.Context) (n uint64) {
	t.Helper()
	err := lab.Until(ctx, b.Name+" tells of its cache", patience, func(ctx context.Context) error {
		text, err := b.Local(ctx, "/metrics")
		if err != nil {
			return err
		}
		m := fetchedBytes.FindSubmatch(text)
		if m == nil {
			return fmt.Errorf("it has no such metric")
		}
		n, err = strconv.ParseUint(string(m[1]), 10, 64)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestUpdateKeeps: from one release to the next and back, apps come again with their volumes, and records go on.
func TestUpdateKeeps(t *testing.T) {
	u := needUpdating(t, 30*time.Minute, needs{})
	u.story.Fields = []string{"box"}
	if err := u.story.Deploy(u.ctx); err != nil {
		t.Fatal(err)
	}
	redis := func(want string, args ...string) {
		t.Helper()
		err := lab.Until(u.ctx, "redis answers "+want, patience, func(ctx context.Context) error {
			out, err := u.tree.Edgectl(ctx, "", append([]string{"exec", "box", "demo/cache", "--", "redis-cli"}, args...)...)
			if err == nil && strings.TrimSpace(out) != want {
				err = fmt.Errorf("it answers %q", out)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	redis("OK", "set", "kept", "yes")
	records, err := u.story.Grown(u.ctx, "box", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v2", "v0"} {
		u.updates(Variant{Version: version, Counter: 1})
		if err := u.story.RunningEverywhere(u.ctx); err != nil {
			t.Fatal(err)
		}
		if err := u.story.AnswerEverywhere(u.ctx, "version 1"); err != nil {
			t.Fatal(err)
		}
		redis("yes", "get", "kept")
		if records, err = u.story.Grown(u.ctx, "box", records); err != nil {
			t.Fatal(err)
		}
	}
}
