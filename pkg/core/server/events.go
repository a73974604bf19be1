package server

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
)

// eventsPoll is how often a watch of events looks: they are no objects, so the store's
// history does not tell of them.
const eventsPoll = time.Second

// watchEventsOr answers ?watch=true of the events with a stream.
func (s *Server) watchEventsOr(ctx huma.Context, next func(huma.Context)) {
	if !switched(ctx.Query("watch")) {
		next(ctx)
		return
	}
	r, w := unwrap(ctx) // its own context does not tell who asks
	if err := s.streamEvents(w, r.WithContext(ctx.Context())); err != nil {
		WriteError(w, err)
	}
}

// streamEvents sends the newest events, the oldest of them first, then those that come. An
// error returned means nothing was sent yet.
func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := 100
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return &api.Error{Code: api.Invalid, Field: "query.limit", Message: "not a number from 1 to 1000", Remedy: "leave it out for 100"}
		}
		limit = n
	}
	of, err := s.eventScope(r.Context(), cmp.Or(q.Get("tenant"), api.DefaultTenant), q.Get("device"))
	if err != nil {
		return err
	}
	newest, err := s.cfg.Ledger.Events(r.Context(), of, maxPage)
	if err != nil {
		return err
	}
	veilEvents(r.Context(), newest)
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	out := NewEventStream(w)
	if !sendEvents(out, newest[:min(limit, len(newest))]) || out.Send("synced", 0, struct{}{}) != nil {
		return nil
	}
	s.followEvents(r.Context(), out, of, newest)
	return nil
}

// followEvents looks for events that were not among the newest before, until the reader
// leaves. More than a page of them between two looks are more than anybody reads.
func (s *Server) followEvents(ctx context.Context, out *EventStream, of EventScope, before []EventEntry) {
	tick, beat := time.NewTicker(eventsPoll), time.NewTicker(heartbeat)
	defer tick.Stop()
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			if out.Beat() != nil {
				return
			}
			continue
		case <-tick.C:
		}
		newest, err := s.cfg.Ledger.Events(ctx, of, maxPage)
		if err != nil {
			_ = out.Send("error", 0, public(err))
			return
		}
		veilEvents(ctx, newest)
		if !sendEvents(out, fresh(before, newest)) {
			return
		}
		before = newest
	}
}

// fresh gives what is in newest and was not in before.
func fresh(before, newest []EventEntry) (list []EventEntry) {
	known := make(map[EventEntry]bool, len(before))
	for _, e := range before {
		known[e] = true
	}
	for _, e := range newest {
		if !known[e] {
			list = append(list, e)
		}
	}
	return list
}

// sendEvents sends a list that has the newest first the other way round.
func sendEvents(out *EventStream, list []EventEntry) bool {
	for _, e := range slices.Backward(list) {
		if out.Send("event", 0, e) != nil {
			return false
		}
	}
	return true
}
