package store

import (
	"context"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Sink receives a copy of the store and keeps it up to date. Its methods are called from
// one goroutine.
type Sink interface {
	// Reset gives all objects; whatever was known before is void.
	Reset(objects []*api.Object) error
	// Apply gives changes in order; it may repeat some that Reset gave. Those that came
	// together are passed together.
	Apply(events []Event) error
}

// gather is how long Follow waits for more changes to pass along with the first, and
// gatherMax how many it passes at most.
const (
	gather    = 5 * time.Millisecond
	gatherMax = 4096
)

// away is how long Follow leaves a store alone that does not answer.
const away = time.Second

// Follow lists the kinds, passes them to the sink, then passes every change until ctx
// ends or the sink fails. When the history does not reach back it lists again, and so it
// does when the store was away, or the sink found it so: a Reset makes good what an Apply
// left half done.
func Follow(ctx context.Context, s Store, w WatchQuery, sink Sink) error {
	for ctx.Err() == nil {
		err := listAndFollow(ctx, s, w, sink)
		switch {
		case IsTooOld(err):
		case err != nil && api.CodeOf(err) == api.Unavailable:
			wait := time.NewTimer(away)
			select {
			case <-ctx.Done():
			case <-wait.C:
			}
			wait.Stop()
		default:
			return err
		}
	}
	return ctx.Err()
}

func listAndFollow(ctx context.Context, s Store, w WatchQuery, sink Sink) error {
	var all []*api.Object
	for i, kind := range w.Kinds {
		items, _, rev, err := s.List(ctx, Query{Kind: kind, Tenant: w.Tenant})
		if err != nil {
			return err
		}
		if i == 0 {
			w.From = rev // later lists may hold more; hearing of it twice does no harm
		}
		all = append(all, items...)
	}
	if err := sink.Reset(all); err != nil {
		return err
	}
	return follow(ctx, s, w, sink)
}

func follow(ctx context.Context, s Store, w WatchQuery, sink Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if w.From == 0 {
		w.From = -1 // an empty store: its first change is to be heard, too
	}
	events := s.Watch(ctx, w)
	for first := range events {
		batch := []Event{first}
		timer := time.NewTimer(gather)
		for more := true; more && len(batch) < gatherMax; {
			select {
			case e, ok := <-events:
				if more = ok; ok {
					batch = append(batch, e)
				}
			case <-timer.C:
				more = false
			}
		}
		timer.Stop()
		last := batch[len(batch)-1]
		if last.Err != nil {
			batch = batch[:len(batch)-1]
		}
		if err := sink.Apply(batch); err != nil {
			return err
		}
		if last.Err != nil {
			return last.Err
		}
	}
	return ctx.Err()
}
