package boot

import (
	"context"
	"time"

	"tributary.dev/tributary/pkg/rest"
)

// forever runs a loop of process 1 again whenever it ends or panics: a packet that breaks
// it must not break the box.
func (b *booter) forever(ctx context.Context, name string, loop func(context.Context) error) {
	quick := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := guarded(ctx, loop)
		if ctx.Err() != nil {
			return
		}
		var pause time.Duration
		pause, quick = backoff(quick, time.Since(began))
		b.say("%s ended (%v); again in %v", name, err, pause)
		rest.For(ctx, pause)
	}
}
