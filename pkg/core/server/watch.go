package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
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

	seen := &sight{view: CallerOf(ctx).Of(access.Read, kind), known: map[api.Key]bool{}}
	var first []*api.Object
	if from == 0 {
		if first, _, from, err = s.cfg.Store.List(ctx, store.Query{Tenant: tenant, Kind: kind, Selector: q.Get("selector"), Only: s.only(ctx, kind)}); err != nil {
			return err
		}
		if err := s.ownerOf(ctx, tenant, len(first)); err != nil {
			return err
		}
	} else if err := cmp.Or(s.ownerOf(ctx, tenant, 0), seen.resumes(), s.cfg.Store.Reaches(from)); err != nil {
		return err
	}
	events := s.cfg.Store.Watch(ctx, store.WatchQuery{Kinds: []string{kind}, Tenant: tenant, From: from})
	out := NewEventStream(w)
	for _, o := range first {
		seen.known[o.Key()] = true
		if out.Send("changed", o.Metadata.Revision, s.show(ctx, o)) != nil {
			return nil
		}
	}
	if out.Send("synced", from, map[string]int64{"revision": from}) != nil {
		return nil
	}
	s.follow(r.WithContext(ctx), out, events, selector, seen)
	return nil
}

// sight is what of a kind a reader is shown.
type sight struct {
	view  access.View
	known map[api.Key]bool // objects that were sent and not said to be gone
}

// resumes refuses to go on from a revision where it is not known any more what the reader
// was shown: of an object that is gone or out of sight, nobody else may hear.
func (s *sight) resumes() error {
	if s.view.Narrow() {
		return &api.Error{Code: api.Gone, Message: "what you may see is a part of a tenant, of which no history is kept", Remedy: "list again, then watch without from"}
	}
	return nil
}

// shows turns an event into what the reader may hear of it, if anything. What no longer
// meets the selector, or went out of sight, goes out as deleted.
func (s *sight) shows(e store.Event, selector api.Selector) (store.Event, bool) {
	key := e.Object.Key()
	whole := s.view.Whole(tenantOf(e.Object))
	in := e.Type == store.Changed && (selector.Empty() || selector.Matches(e.Object.Metadata.Labels)) && (whole || s.view.Has(e.Object))
	if in {
		s.known[key] = true
		return e, true
	}
	known := s.known[key]
	delete(s.known, key)
	if !whole && !known { // check: scope of watches
		return e, false
	}
	e.Type = store.Deleted
	if !whole { // all that is told of it is its name
		e.Object = &api.Object{APIVersion: api.Version, Kind: key.Kind, Metadata: api.Meta{Tenant: key.Tenant, Name: key.Name, Revision: e.Revision}}
	}
	return e, true
}

// tenantOf is the tenant by which it is decided who sees an object.
func tenantOf(o *api.Object) string {
	if o.Kind == api.KindTenant {
		return o.Metadata.Name
	}
	return o.Metadata.Tenant
}

// looksAgain is how long a reader goes on seeing what was taken from them, while things change.
const looksAgain = time.Second

// still finds who reads as of now, and ends a watch when what they may see is another.
func (s *Server) still(r *http.Request, kind string, was access.View) (*http.Request, error) {
	r, err := s.admit(Needs{access.Read, Each}, r)
	if err == nil && !CallerOf(r.Context()).Of(access.Read, kind).Same(was) { // check: scope as of now
		err = &api.Error{Code: api.Gone, Message: "what you may see has changed", Remedy: "list again, then watch from that"}
	}
	return r, err
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

// follow sends events until the reader leaves or may no longer read, or the watch ends.
func (s *Server) follow(r *http.Request, out *EventStream, events <-chan store.Event, selector api.Selector, seen *sight) {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	checked := s.cfg.Now()
	check := func() (err error) {
		if now := s.cfg.Now(); now.Sub(checked) >= looksAgain {
			checked = now
			r, err = s.still(r, seen.view.Kind, seen.view)
		}
		return err
	}
	for {
		var err error
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			if err = check(); err != nil {
				_ = out.Send("error", 0, public(err))
				return
			}
			err = out.Beat()
		case e, ok := <-events:
			if !ok {
				return
			}
			if e.Err == nil {
				e.Err = check()
			}
			if e.Err != nil {
				_ = out.Send("error", 0, public(e.Err))
				return
			}
			if e, ok = seen.shows(e, selector); ok {
				err = out.Send(string(e.Type), e.Revision, s.show(r.Context(), e.Object))
			}
		}
		if err != nil {
			return
		}
	}
}
