package main

import (
	"context"
	"time"
)

// tidy keeps the ledger within its retention: soon after the start, then daily.
func (c *core) tidy(ctx context.Context) error {
	next := time.NewTimer(time.Minute)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next.C:
		}
		began := time.Now()
		if err := c.intake.Tidy(ctx, c.o.retention); err != nil && ctx.Err() == nil {
			c.log.Error("the ledger cannot be tidied; tried again tomorrow", "err", err)
		}
		if keep := c.o.retention.Events; keep > 0 {
			if err := c.store.DropEvents(ctx, began.Add(-keep)); err != nil && ctx.Err() == nil {
				c.log.Error("old events cannot be dropped; tried again tomorrow", "err", err)
			}
		}
		if err := c.people.Tidy(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("sessions that ended cannot be dropped; tried again tomorrow", "err", err)
		}
		c.log.Debug("the ledger is tidied", "took", time.Since(began))
		next.Reset(24 * time.Hour)
	}
}
