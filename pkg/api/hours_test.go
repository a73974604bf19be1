package api

import (
	"testing"
	"time"
)

func TestHours(t *testing.T) {
	at := func(clock string) time.Time {
		v, err := time.Parse("15:04", clock)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		hours Hours
		clock string
		in    bool
	}{
		{"", "12:00", true}, {"22:00-04:30", "22:00", true}, {"22:00-04:30", "04:29", true}, {"22:00-04:30", "04:30", false}, {"22:00-04:30", "12:00", false},
		{"01:00-02:00", "01:59", true}, {"01:00-02:00", "02:00", false}, {"x", "01:00", false},
	} {
		if got := c.hours.Contain(at(c.clock)); got != c.in {
			t.Errorf("%q at %s: %v", c.hours, c.clock, got)
		}
	}
	for _, bad := range []Hours{"22-4", "24:00-01:00", "10:00-10:00", "10:00-11:00 "} {
		if bad.Check() == nil {
			t.Errorf("%q passes", bad)
		}
	}
	if err := Hours("22:00-04:30").Check(); err != nil {
		t.Error(err)
	}
}
