package server

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
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
	newest, err := s.newestEvents(r)
	if err != nil {
		return err
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	out := NewEventStream(w)
	if !sendEvents(out, newest[:min(limit, len(newest))]) || out.Send("synced", 0, struct{}{}) != nil {
		return nil
	}
	s.followEvents(r, out, newest)
	return nil
}

// newestEvents gives the newest events that whoever asks may see.
func (s *Server) newestEvents(r *http.Request) ([]EventEntry, error) {
	q := r.URL.Query()
	of, err := s.eventScope(r.Context(), cmp.Or(q.Get("tenant"), api.DefaultTenant), q.Get("device"))
	if err != nil {
		return nil, err
	}
	list, err := s.cfg.Ledger.Events(r.Context(), of, maxPage)
	veilEvents(r.Context(), list)
	return list, err
}

// followEvents looks for events that were not among the newest before, until the reader
// leaves. More than a page of them between two looks are more than anybody reads.
func (s *Server) followEvents(r *http.Request, out *EventStream, before []EventEntry) {
	tick, beat := time.NewTicker(eventsPoll), time.NewTicker(heartbeat)
	defer tick.Stop()
	defer beat.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			if out.Beat() != nil {
				return
			}
			continue
		case <-tick.C:
		}
		r, err := s.admit(Needs{access.Read, Each}, r) // as of now
		var newest []EventEntry
		if err == nil {
			newest, err = s.newestEvents(r)
		}
		if err != nil {
			_ = out.Send("error", 0, public(err))
			return
		}
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
