package state

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Clock is the device's clock with a floor under it: the newest time that the core has
// signed. A box whose battery is empty starts in the past; certificates and commands
// are judged by this clock. Safe for use by many goroutines.
type Clock struct {
	now   func() time.Time
	floor atomic.Int64 // Unix seconds
	saved atomic.Int64
	save  func(int64) error
}

// floorStep is how far the floor moves before it is written again.
const floorStep = 3600

// Clock makes the clock over the store's persisted floor; now is the machine's own.
func (s *Store) Clock(now func() time.Time) (*Clock, error) {
	c := &Clock{now: now, save: func(t int64) error {
		return s.Put("blob", "clock", binary.BigEndian.AppendUint64(nil, uint64(t)))
	}}
	b, err := s.Get("blob", "clock")
	if err == nil && len(b) == 8 {
		c.floor.Store(int64(binary.BigEndian.Uint64(b)))
		c.saved.Store(c.floor.Load())
	}
	return c, err
}

// Now is the machine's time, or the floor where that is later.
func (c *Clock) Now() time.Time {
	now, floor := c.now(), c.floor.Load()
	if now.Unix() < floor {
		return time.Unix(floor, 0)
	}
	return now
}

// Raise lifts the floor to t, a time that the core has signed. An earlier one does
// nothing. It is written down when it moved by an hour.
func (c *Clock) Raise(t time.Time) error {
	to := t.Unix()
	for {
		old := c.floor.Load()
		if to <= old {
			return nil
		}
		if c.floor.CompareAndSwap(old, to) {
			break
		}
	}
	if to-c.saved.Load() < floorStep {
		return nil
	}
	c.saved.Store(to)
	return c.save(to)
}
