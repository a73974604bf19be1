package server

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/catalog"
	"tributary.dev/tributary/pkg/core/store"
)

// Finder keeps a catalog at what the store holds.
type Finder struct {
	store   store.Store
	catalog *catalog.Catalog
}

// NewFinder makes one; it knows nothing until Run.
func NewFinder(s store.Store) *Finder { return &Finder{s, catalog.New()} }

// Run follows the store until ctx ends. A watch that falls behind begins anew with a list.
func (f *Finder) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.follow(ctx); err != nil && !store.IsTooOld(err) && ctx.Err() == nil {
			select { // the store cannot be read just now
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return ctx.Err()
}

func (f *Finder) follow(ctx context.Context) error {
	var all []*api.Object
	from := int64(-1)
	for _, k := range api.Kinds {
		items, _, revision, err := f.store.List(ctx, store.Query{Kind: k.Name})
		if err != nil {
			return err
		}
		if from < 0 {
			from = revision // of the first list: what changed since comes again by the watch
		}
		all = append(all, items...)
	}
	f.catalog.Reset(all, from)
	all = nil
	for e := range f.store.Watch(ctx, store.WatchQuery{From: from}) {
		switch {
		case e.Err != nil:
			return e.Err
		case e.Type == store.Deleted:
			f.catalog.Deleted(e.Object.Key(), e.Revision)
		default:
			f.catalog.Changed(e.Object, e.Revision)
		}
	}
	return nil
}

// catchUp waits, not for long, until the catalog knows what is in the store now, so that who has just written something
// finds it.
func (f *Finder) catchUp(ctx context.Context) error {
	_, _, want, err := f.store.List(ctx, store.Query{Kind: api.KindTenant, Limit: 1})
	if err != nil {
		return err
	}
	timer := time.NewTimer(catchUpLimit)
	defer timer.Stop()
	for {
		reached, moved := f.catalog.Reached()
		if reached >= want {
			return nil
		}
		select {
		case <-moved:
		case <-timer.C:
			if reached == 0 {
				return &api.Error{Code: api.Unavailable, Message: "the core is still reading what there is", Remedy: "try again in a moment"}
			}
			return nil // a busy store: what is known is near
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const catchUpLimit = time.Second

type (
	searchInput struct {
		TenantQuery
		Kind     string `query:"kind" maxLength:"63" doc:"Only this kind; its objects come whole then."`
		Text     string `query:"q" maxLength:"256" doc:"Words that are all in names, labels or facts of what is looked for."`
		Selector string `query:"selector" maxLength:"4096" doc:"Label conditions, as in lists."`
		State    string `query:"state" maxLength:"256" doc:"Of devices, any of these joined by commas: critical, unapproved, degraded, offline, healthy, retired."`
		Site     string `query:"site" maxLength:"4096" doc:"At any of these sites, joined by commas."`
		Parent   string `query:"parent" maxLength:"256" doc:"Attached to any of these: device ids, or core, joined by commas."`
		App      string `query:"app" maxLength:"4096" doc:"With any of these apps, joined by commas."`
		Version  string `query:"version" maxLength:"256" doc:"Running any of these versions, joined by commas."`
		Sort     string `query:"sort" maxLength:"16" doc:"name, site, state, seen, version, parent, tier or created; with a minus before it the other way round."`
		Limit    int    `query:"limit" minimum:"1" maximum:"1000" default:"50" doc:"Objects per page."`
		After    string `query:"after" maxLength:"4096" doc:"Cursor: what the page before gave as next, with the same sort."`
	}
	searchOutput struct{ Body searchReply }
	searchReply  struct {
		Items []SearchHit    `json:"items"`
		Next  string         `json:"next,omitempty" doc:"Cursor of the next page; absent on the last."`
		Total int            `json:"total" doc:"How many there are, over all pages."`
		State map[string]int `json:"states" doc:"How many there would be in each state if none were asked for."`
	}
	// SearchHit is one thing that was found.
	SearchHit struct {
		Tenant string      `json:"tenant"`
		Kind   string      `json:"kind"`
		Name   string      `json:"name"`
		State  string      `json:"state,omitempty"`
		Site   string      `json:"site,omitempty"`
		Object *api.Object `json:"object,omitempty" doc:"With kind: the object."`
	}
)

func (s *Server) searchRoutes() {
	if s.cfg.Finder == nil {
		return
	}
	search := huma.Operation{OperationID: "search", Method: http.MethodGet, Path: "/api/v1/search", Summary: "Find objects: by words, filters, in an order, page by page", Tags: []string{"search"},
		Middlewares: s.needs(access.Read, Each), Responses: s.responses(http.StatusOK, s.schemaOf(new(searchReply)))}
	huma.Register(s.api, search, func(ctx context.Context, in *searchInput) (*searchOutput, error) {
		reply, err := s.search(ctx, in)
		if err != nil {
			return nil, s.fail(err)
		}
		return &searchOutput{*reply}, nil
	})
	changes := huma.Operation{OperationID: "changes", Method: http.MethodGet, Path: "/api/v1/changes", Summary: "Hear which kinds of objects changed", Tags: []string{"search"},
		Description: "Server-sent events without end. changed: the kinds of which something that the reader may see changed, many changes folded into one; error: the stream ends. A comment comes every 15 seconds.",
		Middlewares: append(s.needs(access.Read, Each), func(ctx huma.Context, _ func(huma.Context)) {
			r, w := unwrap(ctx)
			s.streamChanges(w, r.WithContext(ctx.Context()))
		}), Responses: s.responses(http.StatusOK, nil)}
	changes.Responses["200"].Content = map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{OneOf: []*huma.Schema{s.schemaOf(new(ChangeNote)), s.schemaOf(new(api.Error))}}}}
	huma.Register(s.api, changes, func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
}

func (s *Server) search(ctx context.Context, in *searchInput) (*searchReply, error) {
	selector, err := api.ParseSelector(in.Selector)
	if err != nil {
		return nil, err
	}
	q := catalog.Query{Tenant: in.Tenant, Text: in.Text, Selector: selector, States: list(in.State), Sites: list(in.Site), Parents: list(in.Parent), Apps: list(in.App), Versions: list(in.Version),
		Sort: in.Sort, Limit: in.Limit, After: in.After, Kinds: api.KindNames()}
	if q.Tenant == "*" {
		q.Tenant = ""
	}
	if in.Kind != "" {
		kind, err := api.LookupKind(in.Kind)
		if err != nil {
			return nil, err
		}
		q.Kinds = []string{kind.Name}
	}
	if sees, all := s.sees(ctx, q.Kinds); !all { // check: scope of searches
		q.Only = sees
	}
	if err := s.cfg.Finder.catchUp(ctx); err != nil {
		return nil, err
	}
	page, err := s.cfg.Finder.catalog.Find(q)
	if err != nil {
		return nil, err
	}
	if err := s.ownerOf(ctx, q.Tenant, page.Total); err != nil {
		return nil, err
	}
	return s.hits(ctx, page, in.Kind != "")
}

// hits turns a page into the answer, with what the objects say now where whole is wanted.
func (s *Server) hits(ctx context.Context, page catalog.Page, whole bool) (*searchReply, error) {
	reply := &searchReply{Items: []SearchHit{}, Next: page.Next, Total: page.Total, State: page.States}
	var objects map[api.Key]*api.Object
	if whole {
		keys := make([]api.Key, len(page.Hits))
		for i, h := range page.Hits {
			keys[i] = h.Key
		}
		var err error
		if objects, err = s.cfg.Store.GetMany(ctx, keys); err != nil {
			return nil, err
		}
	}
	for _, h := range page.Hits {
		hit := SearchHit{Tenant: h.Key.Tenant, Kind: h.Key.Kind, Name: h.Key.Name, State: h.State, Site: h.Site}
		if whole {
			// Who may see it was decided by the catalog; since, it may be another.
			if o := objects[h.Key]; o == nil || !CallerOf(ctx).May(access.Read, CallerOf(ctx).Resource(o)) {
				continue
			} else {
				hit.Object = s.show(ctx, o)
			}
		}
		reply.Items = append(reply.Items, hit)
	}
	return reply, nil
}

// sees tells what of kinds the caller may read; all is true when that is everything.
func (s *Server) sees(ctx context.Context, kinds []string) (sees func(*api.Object) bool, all bool) {
	views := make(map[string]access.View, len(kinds))
	all = true
	for _, kind := range kinds {
		views[kind] = CallerOf(ctx).Of(access.Read, kind)
		all = all && views[kind].Everything
	}
	return func(o *api.Object) bool {
		v, known := views[o.Kind]
		return known && (v.Everything || v.Has(o))
	}, all
}

func list(text string) []string {
	if text == "" {
		return nil
	}
	return slices.DeleteFunc(strings.Split(text, ","), func(s string) bool { return s == "" })
}

// ChangeNote says of which kinds something changed.
type ChangeNote struct {
	Kinds    []string `json:"kinds"`
	Revision int64    `json:"revision"`
}

// changesSettle is the least time between two notes to one reader.
const changesSettle = 300 * time.Millisecond

// streamChanges tells a reader of which kinds something changed, until they leave or may see something else.
func (s *Server) streamChanges(w http.ResponseWriter, r *http.Request) {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	was := map[string]access.View{}
	for _, kind := range api.KindNames() {
		was[kind] = CallerOf(r.Context()).Of(access.Read, kind)
	}
	sees, _ := s.sees(r.Context(), api.KindNames())
	reader := s.cfg.Finder.catalog.Read(sees)
	defer reader.Close()
	out := NewEventStream(w)
	_, revision := reader.Take()
	if out.Send("changed", 0, ChangeNote{Kinds: []string{}, Revision: revision}) != nil {
		return
	}
	beat, settle := time.NewTicker(heartbeat), time.NewTicker(changesSettle)
	defer beat.Stop()
	defer settle.Stop()
	looked := s.cfg.Now()
	for {
		beats := false
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			beats = true
		case <-settle.C:
		}
		if now := s.cfg.Now(); now.Sub(looked) >= looksAgain {
			looked = now
			var err error
			if r, err = s.stillAll(r, was); err != nil {
				_ = out.Send("error", 0, public(err))
				return
			}
		}
		if beats && out.Beat() != nil {
			return
		}
		select {
		case <-reader.Wake():
			kinds, revision := reader.Take()
			if len(kinds) > 0 && out.Send("changed", 0, ChangeNote{Kinds: kinds, Revision: revision}) != nil {
				return
			}
		default:
		}
	}
}

// stillAll is still for every kind.
func (s *Server) stillAll(r *http.Request, was map[string]access.View) (*http.Request, error) {
	r, err := s.admit(Needs{access.Read, Each}, r)
	if err != nil {
		return r, err
	}
	for kind, v := range was {
		if !CallerOf(r.Context()).Of(access.Read, kind).Same(v) {
			return r, &api.Error{Code: api.Gone, Message: "what you may see has changed", Remedy: "ask again"}
		}
	}
	return r, nil
}
