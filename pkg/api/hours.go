package api

import (
	"fmt"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/pattern"
)

// Hours are a part of each day, in UTC: "22:00-04:30". Empty: all day. Where the end comes before the beginning, the
// hours go over midnight.
type Hours string

var hoursForm = pattern.New(`^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$`)

// span is in minutes of the day.
func (h Hours) span() (from, to int, err error) {
	m := hoursForm.FindStringSubmatch(string(h))
	if m == nil {
		return 0, 0, fmt.Errorf("%.40q are no hours such as 22:00-04:30", string(h))
	}
	n := func(i int) int {
		v, _ := strconv.Atoi(m[i]) // two digits
		return v
	}
	return n(1)*60 + n(2), n(3)*60 + n(4), nil
}

// Check tells what is wrong with them.
func (h Hours) Check() error {
	if h == "" {
		return nil
	}
	from, to, err := h.span()
	if err == nil && from == to {
		err = fmt.Errorf("%s are no hours: they end when they begin", string(h))
	}
	return err
}

// Contain tells whether a time lies in them. Hours that are wrong contain none.
func (h Hours) Contain(t time.Time) bool {
	if h == "" {
		return true
	}
	from, to, err := h.span()
	if err != nil {
		return false
	}
	t = t.UTC()
	now := t.Hour()*60 + t.Minute()
	if from <= to {
		return from <= now && now < to
	}
	return now >= from || now < to
}
