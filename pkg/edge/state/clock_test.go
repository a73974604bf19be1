package state

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// floorOf is the floor, 1970 where nothing is known: a floor below an hour is not written
// down, and so not known after a restart.
func floorOf(c *Clock) time.Time {
	if c.floor.IsZero() {
		return time.Unix(0, 0)
	}
	return c.at()
}

func TestClockNeverGoesBelowItsFloor(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer func() { s.Close() }()
	rapid.Check(t, func(t *rapid.T) {
		at, up := time.Unix(0, 0), time.Duration(0)
		now, since := func() time.Time { return at }, func() time.Duration { return up }
		c, err := s.Clock(now, since)
		if err != nil {
			t.Fatal(err)
		}
		floor := c.Now()
		t.Repeat(map[string]func(*rapid.T){
			"step": func(t *rapid.T) { at = time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "clock"), 0) },
			"pass": func(t *rapid.T) {
				d := time.Duration(rapid.Int64Range(0, 1<<16).Draw(t, "seconds")) * time.Second
				at, up = at.Add(d), up+d
				if floor.After(time.Unix(0, 0)) {
					floor = floor.Add(d)
				}
			},
			"raise": func(t *rapid.T) {
				to := time.Unix(rapid.Int64Range(0, 1<<32).Draw(t, "signed"), 0)
				if err := c.Raise(to); err != nil {
					t.Fatal(err)
				}
				if to.After(floor) {
					floor = to
				}
			},
			"restart": func(t *rapid.T) {
				if err := c.Keep(); err != nil {
					t.Fatal(err)
				}
				known := floorOf(c)
				if c, err = s.Clock(now, since); err != nil {
					t.Fatal(err)
				}
				if lost := known.Sub(floorOf(c)); lost > floorStep*time.Second {
					t.Fatalf("a restart lowers the floor by %s", lost)
				}
				floor = floorOf(c)
			},
			"": func(t *rapid.T) {
				if now := c.Now(); now.Before(floor) || now.Before(at) {
					t.Fatalf("now is %s, floor %s, clock %s", now, floor, at)
				}
			},
		})
	})
}

// A box without a battery starts in 1970: its clock goes on from what it knew, also
// across restarts without a word from the core, and follows NTP when that comes.
func TestClockRunsWhileTheMachineIsInThePast(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	machine, up := time.Unix(40, 0), 40*time.Second
	pass := func(d time.Duration) { machine, up = machine.Add(d), up+d }
	boot := func() *Clock {
		c, err := s.Clock(func() time.Time { return machine }, func() time.Duration { return up })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	known := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	c := boot()
	if err := c.Raise(known); err != nil {
		t.Fatal(err)
	}
	pass(1500 * time.Millisecond)
	if got := c.Now().Sub(known); got != 1500*time.Millisecond {
		t.Fatalf("the clock moved by %s in 1.5 s", got)
	}
	for range 48 * 60 {
		pass(time.Minute)
		if err := c.Keep(); err != nil {
			t.Fatal(err)
		}
	}
	before := c.Now()
	machine, up = time.Unix(3, 0), 3*time.Second // the power is cut
	c = boot()
	if lost := before.Sub(c.Now()); lost < 0 || lost > time.Hour {
		t.Fatalf("the power cut took back %s", lost)
	}
	set := known.Add(72 * time.Hour)
	machine = set // by NTP
	if got := c.Now(); !got.Equal(set) {
		t.Fatalf("NTP said %s, the clock %s", set, got)
	}
	if err := c.Raise(set); err != nil {
		t.Fatal(err)
	}
	pass(time.Minute)
	machine = machine.Add(-time.Hour) // somebody sets it back
	if got := c.Now(); !got.Equal(set.Add(time.Minute)) {
		t.Fatalf("a step back of the machine's clock moves this one to %s", got)
	}
}

// A clock ten years ahead is followed until the core, asked, says otherwise; a time of the
// core's that may be old does not move it. Then the machine's clock is set, too.
func TestClockAhead(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	right := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	machine, up := right.AddDate(10, 0, 0), time.Duration(0)
	c, err := s.Clock(func() time.Time { return machine }, func() time.Duration { return up })
	if err != nil {
		t.Fatal(err)
	}
	var set []time.Time
	c.Set = func(to time.Time) error { set = append(set, to); return nil }
	if err := c.Raise(right); err != nil || !c.Now().Equal(machine) || len(set) > 0 {
		t.Errorf("an acknowledgement moved it to %s (%v, %v)", c.Now(), set, err)
	}
	if err := c.Heard(right); err != nil || !c.Now().Equal(right) {
		t.Errorf("the core said %s, and it is %s (%v)", right, c.Now(), err)
	}
	up += time.Hour
	if want := right.Add(time.Hour); !c.Now().Equal(want) {
		t.Errorf("an hour later it is %s", c.Now())
	}
	if len(set) != 1 || !set[0].Equal(right) {
		t.Errorf("the machine's clock was set to %v", set)
	}
	machine = right.Add(2 * time.Hour) // ahead by what clocks may differ
	if !c.Now().Equal(machine) {
		t.Errorf("set right, it is %s", c.Now())
	}
	machine = right.AddDate(-10, 0, 0)
	if err := c.Raise(right.Add(time.Hour)); err != nil || len(set) != 2 || !c.Now().Equal(right.Add(time.Hour)) {
		t.Errorf("ten years behind: set %v, now %s (%v)", set, c.Now(), err)
	}
}

// A clock that PTP sets is left to it, whatever the core says; what edged goes by keeps to the floor all the same, and
// the contradiction can be told.
func TestClockOfOthers(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	right := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	machine, held, sets := right.Add(-time.Hour), true, 0
	c, err := s.Clock(func() time.Time { return machine }, func() time.Duration { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	c.Set = func(to time.Time) error { machine, sets = to, sets+1; return nil }
	c.Held = func() bool { return held }
	if err := c.Heard(right); err != nil || sets > 0 || !c.Now().Equal(right) || c.Contradicts() != -time.Hour {
		t.Errorf("set %d times; now %s, %s off (%v)", sets, c.Now(), c.Contradicts(), err)
	}
	held = false
	if err := c.Heard(right); err != nil || sets != 1 || c.Contradicts() != 0 {
		t.Errorf("left by others it is set %d times, %s off (%v)", sets, c.Contradicts(), err)
	}
}
