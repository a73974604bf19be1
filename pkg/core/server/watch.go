package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

func unwrap(ctx huma.Context) (*http.Request, http.ResponseWriter) { return humago.Unwrap(ctx) }

// watchOr answers ?watch=true of a list with a stream.
func (s *Server) watchOr(kind string) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		if !switched(ctx.Query("watch")) {
			next(ctx)
			return
		}
		r, w := unwrap(ctx) // its own context does not tell who asks
		if err := s.stream(w, r.WithContext(ctx.Context()), kind); err != nil {
			WriteError(w, err)
		}
	}
}

// EventStream writes server-sent events (WHATWG HTML, section 9.2).
type EventStream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// NewEventStream begins the answer.
func NewEventStream(w http.ResponseWriter) *EventStream {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	e := &EventStream{w: w, rc: http.NewResponseController(w)}
	_ = e.rc.SetWriteDeadline(time.Time{}) // a stream lasts; not every writer has one
	w.WriteHeader(http.StatusOK)
	_ = e.rc.Flush()
	return e
}

// Send writes one event; id 0 is left out.
func (e *EventStream) Send(event string, id int64, data any) error {
	b, err := json.Marshal(data) // JSON has no line breaks, so one data line holds it
	if err != nil {
		return err
	}
	if id != 0 {
		fmt.Fprintf(e.w, "id: %d\n", id)
	}
	if _, err := fmt.Fprintf(e.w, "event: %s\ndata: %s\n\n", event, b); err != nil {
		return err
	}
	return e.rc.Flush()
}

// Beat keeps an idle stream alive.
func (e *EventStream) Beat() error {
	if _, err := e.w.Write([]byte(": alive\n\n")); err != nil {
		return err
	}
	return e.rc.Flush()
}

// stream answers a watch. An error returned means nothing was sent yet.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, kind string) error {
	q := r.URL.Query()
	tenant := q.Get("tenant")
	switch tenant {
	case "":
		tenant = api.DefaultTenant
	case "*":
		tenant = ""
	}
	selector, err := api.ParseSelector(q.Get("selector"))
	if err != nil {
		return err
	}
	from, err := position(q.Get("from"), r.Header.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()

	var first []*api.Object
	if from == 0 {
		if first, _, from, err = s.cfg.Store.List(ctx, store.Query{Tenant: tenant, Kind: kind, Selector: q.Get("selector")}); err != nil {
			return err
		}
		if err := s.ownerOf(ctx, tenant, len(first)); err != nil {
			return err
		}
	} else if err := s.cfg.Store.Reaches(from); err != nil {
		return err
	}
	events := s.cfg.Store.Watch(ctx, store.WatchQuery{Kinds: []string{kind}, Tenant: tenant, From: from})
	out := NewEventStream(w)
	for _, o := range first {
		if out.Send("changed", o.Metadata.Revision, s.show(ctx, o)) != nil {
			return nil
		}
	}
	if out.Send("synced", from, map[string]int64{"revision": from}) != nil {
		return nil
	}
	s.follow(ctx, out, events, selector)
	return nil
}

// position reads where to go on; the header is what a browser sends when it
// reconnects by itself, and is newer than the address.
func position(query, header string) (int64, error) {
	text := query
	if header != "" {
		text = header
	}
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, &api.Error{Code: api.Invalid, Field: "from", Message: "not a revision", Remedy: "pass the revision that a list gave"}
	}
	return n, nil
}

// follow sends events until the reader leaves or the watch ends. An object that no
// longer meets the selector goes out as deleted.
func (s *Server) follow(ctx context.Context, out *EventStream, events <-chan store.Event, selector api.Selector) {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			err = out.Beat()
		case e, ok := <-events:
			switch {
			case !ok:
				return
			case e.Err != nil:
				_ = out.Send("error", 0, public(e.Err))
				return
			case e.Type == store.Changed && !selector.Empty() && !selector.Matches(e.Object.Metadata.Labels):
				e.Type = store.Deleted
				fallthrough
			default:
				err = out.Send(string(e.Type), e.Revision, s.show(ctx, e.Object))
			}
		}
		if err != nil {
			return
		}
	}
}
