// Package rest answers: how does a loop wait a while, and no longer once it is told to end?
package rest

import (
	"context"
	"time"
)

// For waits; it reports false when ctx has ended before.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
