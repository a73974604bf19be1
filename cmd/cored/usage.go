package main

import (
	"context"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/core/usage"
)

// openUsage makes the room that tells who used what.
func openUsage(in *intake.Store) *usage.Room {
	return usage.New(usage.Config{DB: in.Database(), Records: used{in}, Now: time.Now})
}

// rememberUse keeps the history of who pays up to date with the objects.
func (c *core) rememberUse(ctx context.Context) error {
	return store.Follow(ctx, c.store, store.WatchQuery{Kinds: usage.Kinds, SpecOnly: true}, history{ctx, usageOf{c.store, openUsage(c.intake)}})
}

// usageOf tells billing what was used, by a history that has every change made before it was asked.
type usageOf struct {
	store store.Store
	room  *usage.Room
}

// settle brings the history up to the objects as they are now.
func (u usageOf) settle(ctx context.Context) error {
	return u.room.Settle(ctx, func() (all []*api.Object, err error) {
		for _, kind := range usage.Kinds {
			items, _, _, err := u.store.List(ctx, store.Query{Kind: kind})
			if err != nil {
				return nil, err
			}
			all = append(all, items...)
		}
		return all, nil
	})
}

// Entries implements billing.Source.
func (u usageOf) Entries(ctx context.Context, tenant string, from, to time.Time, each func(*api.UsageEntry) error) error {
	if err := u.settle(ctx); err != nil {
		return err
	}
	return u.room.Entries(ctx, tenant, from, to, each)
}

// Gaps implements billing.Source.
func (u usageOf) Gaps(ctx context.Context, tenant string, from, to time.Time) ([]api.UsageGap, error) {
	if err := u.settle(ctx); err != nil {
		return nil, err
	}
	return u.room.Gaps(ctx, tenant, from, to)
}

// history hears of objects for the room.
type history struct {
	ctx context.Context
	usageOf
}

// Reset implements store.Sink.
func (h history) Reset([]*api.Object) error { return h.settle(h.ctx) }

// Apply implements store.Sink.
func (h history) Apply(events []store.Event) error {
	for _, e := range events {
		var err error
		if e.Type == store.Deleted {
			err = h.room.Gone(h.ctx, e.Object.Key(), time.Now())
		} else {
			err = h.room.Note(h.ctx, e.Object)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// used answers the room's questions from the ledger.
type used struct{ intake *intake.Store }

// Between implements usage.Records.
func (u used) Between(ctx context.Context, device api.DeviceID, from, to time.Time, each func(*usage.Record) error) error {
	return u.intake.Between(ctx, device, from, to, func(e *intake.Entry) error {
		return each(&usage.Record{Epoch: e.Epoch, Seq: e.Seq, Last: e.Last, Received: e.Taken, Usage: e.Usage})
	})
}

// Heard implements usage.Records.
func (u used) Heard(ctx context.Context, device api.DeviceID) (time.Time, []usage.Hole, error) {
	report, err := u.intake.Report(ctx, device)
	if err != nil {
		return time.Time{}, nil, err
	}
	holes, err := u.intake.Holes(ctx, device)
	out := make([]usage.Hole, len(holes))
	for i, h := range holes {
		out[i] = usage.Hole{From: h.From, To: h.To, Why: api.GapLost}
		if h.Unread {
			out[i].Why = api.GapUnknown
		}
	}
	return report.Seen, out, err
}
