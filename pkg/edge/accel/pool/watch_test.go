package pool

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// gpud runs while there is a card, and ends with the last.
func TestWhile(t *testing.T) {
	var here atomic.Bool
	began, ended := make(chan bool, 10), make(chan bool, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() {
		defer close(done)
		While(ctx, time.Millisecond, here.Load, func(ctx context.Context) {
			began <- true
			<-ctx.Done()
			ended <- true
		})
	}()
	for range 2 {
		here.Store(true)
		wait.For(t, "its start", began)
		here.Store(false)
		wait.For(t, "its end", ended)
	}
	here.Store(true)
	wait.For(t, "its start", began)
	cancel()
	wait.For(t, "its end", ended)
	wait.For(t, "the end of it all", done)
}
