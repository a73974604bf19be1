package fleet

import (
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

func (c *core) status(name string) (s api.DeviceStatus) {
	c.t.Helper()
	o, err := c.db.Get(c.t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: name})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := json.Unmarshal(o.Status, &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *core) events(id api.DeviceID) (names []string) {
	c.t.Helper()
	of := []api.DeviceID{id}
	if id.IsZero() {
		of = nil
	}
	list, err := c.db.Events(c.t.Context(), of, 100)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range list {
		names = append([]string{e.Name}, names...)
	}
	return names
}

// clock is moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) pass(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

func TestAlarmStandsUntilQuiet(t *testing.T) {
	c := newCore(t, "")
	id := c.device(1, nil)
	time0 := &clock{now: time.Unix(1_800_000_000, 0)}
	c.change = func(cfg *Config) { cfg.Now, cfg.Quiet = time0.Now, 40*time.Second }
	c.run()
	c.until("a manifest", c.has(id))
	forged := api.Warning{Name: "bad-mac", Severity: api.Critical, Message: "altered"}
	c.loop.Alarm(id, forged)
	c.loop.Alarm(id, forged)
	c.loop.Alarm(api.DeviceID{9}, forged) // nobody knows it
	c.until("the alarm in the device's health", func() bool { return len(c.status("d1").Health) == 1 })
	w := c.status("d1").Health[0]
	if w.Name != "bad-mac" || w.Severity != api.Critical || w.Since != 1_800_000_000 || w.Remedy == "" {
		t.Errorf("%+v", w)
	}
	c.until("one event", func() bool { return len(c.events(api.DeviceID{})) == 1 && c.events(id)[0] == store.EventAlarm })
	time0.pass(30 * time.Second)
	c.loop.Alarm(id, forged)
	time0.pass(30 * time.Second)
	if ids := c.loop.alarms.expire(time0.Now()); slices.Contains(ids, id) {
		t.Error("cleared while it was raised again")
	}
	time0.pass(10 * time.Second)
	c.until("quiet", func() bool { return len(c.status("d1").Health) == 0 })
	c.loop.Alarm(id, forged)
	c.until("a second event", func() bool { return len(c.events(id)) == 2 })
}

func TestPresenceEvents(t *testing.T) {
	for name, c := range map[string]struct {
		told, online, settled bool
		want                  string
	}{
		"comes":                    {false, true, false, store.EventOnline},
		"is there":                 {true, true, true, ""},
		"goes":                     {true, false, true, store.EventOffline},
		"not back since the start": {true, false, false, ""},
		"was never there":          {false, false, true, ""},
	} {
		if got, _ := presenceEvent(c.told, c.online, c.settled); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}

	c := newCore(t, "")
	stays, leaves := c.device(1, nil), c.device(2, nil)
	time0 := &clock{now: time.Unix(1_800_000_000, 0)}
	c.change = func(cfg *Config) { cfg.Now, cfg.Homecoming = time0.Now, 40*time.Second }
	here := &Report{Parent: "core", Online: true}
	c.reports[stays], c.reports[leaves] = here, here
	c.run()
	both := func(one, two int) func() bool {
		return func() bool { return len(c.events(stays)) == one && len(c.events(leaves)) == two }
	}
	c.until("both came", both(1, 1))

	// The core restarts: for a moment nobody is there, which is no event of theirs.
	c.stop()
	c.reports[stays], c.reports[leaves] = &Report{}, &Report{}
	c.run()
	c.until("both away", func() bool { return !c.status("d1").Online && !c.status("d2").Online })
	c.report(stays, here)
	c.until("one is back", func() bool { return c.status("d1").Online })
	if !both(1, 1)() {
		t.Fatalf("%v %v", c.events(stays), c.events(leaves))
	}
	time0.pass(time.Minute)
	c.until("the other is told of", both(1, 2))
	c.report(leaves, here)
	c.until("it is back", both(1, 3))
	c.report(stays, &Report{})
	c.until("settled, who goes is told of at once", both(2, 3))
}
