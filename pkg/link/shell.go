package link

import (
	"context"
	"sync"
	"time"
)

// outside runs what the machines want done in the world, in order, away from their
// locks: a transport may call back from within a Send or a Kick.
type outside struct {
	mu    sync.Mutex
	queue []func()
	wake  chan struct{}
}

func newOutside() *outside { return &outside{wake: make(chan struct{}, 1)} }

func (o *outside) put(do func()) {
	o.mu.Lock()
	o.queue = append(o.queue, do)
	o.mu.Unlock()
	poke(o.wake)
}

func (o *outside) run(ctx context.Context) error {
	for {
		o.mu.Lock()
		todo := o.queue
		o.queue = nil
		o.mu.Unlock()
		for _, do := range todo {
			do()
		}
		if len(todo) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.wake:
		}
	}
}

// poke leaves a signal unless one waits already.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ticks calls tick whenever next says so. replan tells that next may have moved.
func ticks(ctx context.Context, now func() time.Time, replan <-chan struct{}, next func() time.Time, tick func()) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		if at := next(); !at.IsZero() {
			wait = max(at.Sub(now()), 0)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-replan:
		case <-timer.C:
			tick()
		}
	}
}
