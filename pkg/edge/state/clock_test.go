package state

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestClockNeverGoesBelowItsFloor(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer func() { s.Close() }()
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(0, 0)
		c, err := s.Clock(func() time.Time { return at })
		if err != nil {
			t.Fatal(err)
		}
		floor := c.Now()
		t.Repeat(map[string]func(*rapid.T){
			"step": func(t *rapid.T) { at = time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "clock"), 0) },
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
				if c, err = s.Clock(func() time.Time { return at }); err != nil {
					t.Fatal(err)
				}
				if lost := floor.Sub(time.Unix(c.floor.Load(), 0)); lost > floorStep*time.Second {
					t.Fatalf("a restart lowers the floor by %s", lost)
				}
				floor = time.Unix(c.floor.Load(), 0)
			},
			"": func(t *rapid.T) {
				if now := c.Now(); now.Before(floor) || now.Before(at) {
					t.Fatalf("now is %s, floor %s, clock %s", now, floor, at)
				}
			},
		})
	})
}
