package billing

import (
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Period is a time that is billed: a calendar month (2026-11) or day (2026-11-23) in the
// tenant's zone, or an hour of UTC (2026-11-23T14Z).
type Period struct {
	Name     string    `json:"name"`
	From, To time.Time // [From, To)
}

// ParsePeriod reads a period's name.
func ParsePeriod(name string, zone *time.Location) (Period, error) {
	if t, err := time.ParseInLocation("2006-01", name, zone); err == nil {
		return Period{name, midnight(t.Year(), t.Month(), 1, zone), midnight(t.Year(), t.Month()+1, 1, zone)}, nil
	}
	if t, err := time.Parse(time.DateOnly, name); err == nil {
		return Period{name, midnight(t.Year(), t.Month(), t.Day(), zone), midnight(t.Year(), t.Month(), t.Day()+1, zone)}, nil
	}
	if t, err := time.Parse("2006-01-02T15Z", name); err == nil {
		return Period{name, t, t.Add(time.Hour)}, nil
	}
	return Period{}, &api.Error{Code: api.Invalid, Field: "period", Message: strconv.Quote(name) + " is no period", Remedy: "write a month as 2026-11, a day as 2026-11-23, or an hour of UTC as 2026-11-23T14Z"}
}

// midnight is when a day begins. Where a zone skips midnight, time.Date gives the first
// moment of the day by the offset before it: an hour early or late, but never two days at once.
func midnight(year int, month time.Month, day int, zone *time.Location) time.Time {
	t := time.Date(year, month, day, 0, 0, 0, 0, zone)
	if t.Day() != time.Date(year, month, day, 12, 0, 0, 0, zone).Day() { // the skipped hour gave the day before
		t = t.Add(time.Hour)
	}
	return t.UTC()
}

// dayOf is the midnight at which a day, YYYY-MM-DD, begins.
func dayOf(day string, zone *time.Location) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, day)
	if err != nil {
		return time.Time{}, &api.Error{Code: api.Invalid, Message: strconv.Quote(day) + " is no day", Remedy: "write it as 2026-11-01"}
	}
	return midnight(t.Year(), t.Month(), t.Day(), zone), nil
}

// overlaps reports whether two periods have time in common; within, whether all of p is in o.
func (p Period) overlaps(o Period) bool { return p.From.Before(o.To) && o.From.Before(p.To) }
func (p Period) within(o Period) bool   { return !p.From.Before(o.From) && !p.To.After(o.To) }

// fraction is which part of its calendar month a time is: in days where it is made of whole
// days of the zone, else in seconds.
func fraction(from, to time.Time, zone *time.Location) (num, den int64) {
	local := from.In(zone)
	first, next := midnight(local.Year(), local.Month(), 1, zone), midnight(local.Year(), local.Month()+1, 1, zone)
	days := func(a, b time.Time) (n int64, whole bool) {
		for at := a; at.Before(b); n++ {
			l := at.In(zone)
			if at = midnight(l.Year(), l.Month(), l.Day()+1, zone); at.After(b) {
				return n, false
			}
		}
		return n, a.Equal(midnight(a.In(zone).Year(), a.In(zone).Month(), a.In(zone).Day(), zone))
	}
	if n, ok := days(from, to); ok {
		all, _ := days(first, next)
		return n, all
	}
	return int64(to.Sub(from) / time.Second), int64(next.Sub(first) / time.Second)
}
