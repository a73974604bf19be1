package pool

import (
	"context"
	"sync"
	"time"
)

// While runs a program's keeper for as long as there is something for it: here is asked again
// and again. It returns when ctx ends and run has.
func While(ctx context.Context, every time.Duration, here func() bool, run func(context.Context)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		if here() {
			whileHere(ctx, tick.C, here, run)
			continue
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func whileHere(ctx context.Context, tick <-chan time.Time, here func() bool, run func(context.Context)) {
	own, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { run(own) })
	defer running.Wait()
	defer end()
	for gone := 0; gone < 3; { // a card that is reset is away for a moment
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		if gone++; here() {
			gone = 0
		}
	}
}
