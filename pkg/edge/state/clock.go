package state

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the device's clock with a floor under it. The floor begins at the newest time
// that the core has signed and goes on with the time since boot: a box whose battery is
// empty starts in the past, goes on from what it knew, and its clock never stands still.
// The machine's own clock is followed wherever it is ahead of the floor, when NTP sets it
// also, until the core itself says that it is far ahead. Certificates and commands are
// judged by this clock. Safe for use by many goroutines.
//
// Now may step: forward when the machine's clock is set, back as far as the floor. Who
// measures how long something took asks a monotonic clock.
type Clock struct {
	now  func() time.Time
	up   func() time.Duration
	save func(int64) error
	// Set puts the machine's clock right; nil where that is somebody else's. It is to be
	// given before the clock is used.
	Set func(time.Time) error
	// Held tells that somebody else sets the machine's clock now (PTP): it is left alone then, and only Now goes by the
	// floor. May be nil; to be given before the clock is used.
	Held func() bool

	mu    sync.Mutex
	heard bool          // the core said what time it is, since this process began
	floor time.Time     // as it was at since; zero: nothing is known
	since time.Duration // by up
	saved int64         // Unix seconds
}

// floorStep is how far the floor moves, in seconds, before it is written again.
const floorStep = 3600

// Clock makes the clock over the store's persisted floor; now is the machine's own, up
// the time since boot (nil: the machine's, suspend included).
func (s *Store) Clock(now func() time.Time, up func() time.Duration) (*Clock, error) {
	if up == nil {
		up = uptime
	}
	c := &Clock{now: now, up: up, since: up(), save: func(t int64) error {
		return s.Put("blob", "clock", binary.BigEndian.AppendUint64(nil, uint64(t)))
	}}
	b, err := s.Get("blob", "clock")
	if err == nil && len(b) == 8 {
		c.saved = int64(binary.BigEndian.Uint64(b))
		c.floor = time.Unix(c.saved, 0)
	}
	return c, err
}

// Now is the machine's time, or the floor where that is later.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, floor := c.now(), c.at()
	if c.wrong(now, floor, 0) {
		return floor
	}
	return now
}

// maxAhead is how far the machine's clock is believed ahead of a core that was heard: a
// battery that failed may leave any year in it, while what is left between two clocks that
// go is seconds.
const maxAhead = 24 * time.Hour

// wrong tells that the machine's clock is not to be followed. c.mu is held.
func (c *Clock) wrong(now, floor time.Time, slack time.Duration) bool {
	return floor.Sub(now) > slack || c.heard && now.Sub(floor) > maxAhead
}

// Floor is a moment that is certainly past, by what the core signed; the zero time when
// nothing is known.
func (c *Clock) Floor() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at()
}

// at is the floor now. c.mu is held.
func (c *Clock) at() time.Time {
	if c.floor.IsZero() {
		return c.floor
	}
	return c.floor.Add(max(0, c.up()-c.since))
}

// Raise lifts the floor to t, a time that the core has signed. An earlier one does
// nothing. It is written down when it moved by an hour. The signature may be old: it says
// nothing of a machine's clock that is ahead.
func (c *Clock) Raise(t time.Time) error {
	t = time.Unix(t.Unix(), 0)
	c.mu.Lock()
	if t.After(c.at()) {
		c.floor, c.since = t, c.up()
	}
	c.mu.Unlock()
	return errors.Join(c.Keep(), c.correct())
}

// Heard is Raise with a time that the core signed just now, in answer to what this box
// asked: from then on the machine's clock is not believed where it is far ahead.
func (c *Clock) Heard(t time.Time) error {
	c.mu.Lock()
	c.heard = true
	c.mu.Unlock()
	return c.Raise(t)
}

// correct sets the machine's clock where it is wrong by more than seconds: apps read it.
func (c *Clock) correct() error {
	c.mu.Lock()
	now, floor := c.now(), c.at()
	due := c.Set != nil && c.wrong(now, floor, slack)
	c.mu.Unlock()
	if !due || c.Held != nil && c.Held() {
		return nil
	}
	return c.Set(floor)
}

// slack is how far the machine's clock may be from what the core says before it is set.
const slack = 10 * time.Second

// Contradicts tells how far the machine's clock is from what the core says, where that is more than it may be: behind
// it is negative. It is 0 where they agree.
func (c *Clock) Contradicts() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, floor := c.now(), c.at()
	if !c.wrong(now, floor, slack) {
		return 0
	}
	return now.Sub(floor)
}

// Keep writes the floor down when it moved by an hour, so that a restart takes back no
// more than that. It is to be called from time to time.
func (c *Clock) Keep() error {
	c.mu.Lock()
	floor := c.at()
	due := !floor.IsZero() && floor.Unix()-c.saved >= floorStep
	if due {
		c.saved = floor.Unix()
	}
	c.mu.Unlock()
	if !due {
		return nil
	}
	return c.save(floor.Unix())
}

func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
