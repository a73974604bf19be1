package server

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/store"
)

// The inputs and outputs of the routes that every kind has. Those that others embed
// are exported because reflection sets no fields of embedded types that are not.
type (
	// TenantQuery names an owner.
	TenantQuery struct {
		Tenant string `query:"tenant" default:"default" maxLength:"63" doc:"The owner; * for all, in lists."`
	}
	// ObjectPath names one object.
	ObjectPath struct {
		TenantQuery
		Name string `path:"name" maxLength:"63"`
	}
	listInput struct {
		TenantQuery
		Selector string `query:"selector" maxLength:"4096" doc:"Label conditions joined by commas: k=v, k!=v, k in (a,b), k notin (a,b), k, !k."`
		Limit    int    `query:"limit" minimum:"1" maximum:"1000" default:"500" doc:"Objects per page."`
		After    string `query:"after" doc:"Cursor: what the page before gave as next."`
		Watch    bool   `query:"watch" doc:"Stream changes as server-sent events instead of answering a list."`
		From     int64  `query:"from" minimum:"0" doc:"With watch: the revision to go on from. Without it every object comes first."`
		LastID   string `header:"Last-Event-ID" doc:"With watch: goes before from; what a browser sends when it connects again."`
	}
	listOutput struct {
		Body objectList
	}
	objectList struct {
		Items    []*api.Object `json:"items"`
		Next     string        `json:"next,omitempty" doc:"Cursor of the next page; absent on the last."`
		Revision int64         `json:"revision" doc:"Watching from it misses nothing."`
	}
	createInput struct {
		TenantQuery
		DryRun  bool   `query:"dryRun" doc:"Check and answer, write nothing."`
		RawBody []byte `contentType:"application/json"`
	}
	putInput struct {
		ObjectPath
		IfMatch []string `header:"If-Match" doc:"Only when the object is at this revision (an ETag), or with * when it exists: 412 else."`
		DryRun  bool     `query:"dryRun" doc:"Check and answer, write nothing."`
		RawBody []byte   `contentType:"application/json"`
	}
	deleteInput struct {
		ObjectPath
		IfMatch  []string `header:"If-Match" doc:"Only when the object is at this revision (an ETag), or with * when it exists: 412 else."`
		Revision int64    `query:"revision" minimum:"0" doc:"Delete only at this revision."`
	}
	objectOutput struct {
		ETag     string   `header:"ETag" doc:"The object's revision, in quotes: for If-Match."`
		Warnings []string `header:"Warning"`
		Body     *api.Object
	}
	// writtenOutput answers a write: 201 with where it is when it made the object.
	writtenOutput struct {
		Status   int
		Location string   `header:"Location" doc:"Where the object is; of one that was made."`
		ETag     string   `header:"ETag" doc:"The object's revision, in quotes: for If-Match."`
		Warnings []string `header:"Warning"`
		Body     *api.Object
	}
)

func (s *Server) objectRoutes() {
	for i := range api.Kinds {
		s.kindRoutes(&api.Kinds[i])
	}
}

// kindRoutes gives one kind its five operations.
func (s *Server) kindRoutes(k *api.Kind) {
	base := "/api/v1/" + k.Plural
	schema := s.objectSchema(k)
	op := func(verb, method, path, summary string, needs access.Action, status int, answer *huma.Schema) huma.Operation {
		return huma.Operation{OperationID: verb + "-" + strings.ToLower(k.Name), Method: method, Path: path, Summary: summary, Tags: []string{k.Plural},
			DefaultStatus: status, MaxBodyBytes: maxBody, BodyReadTimeout: readDeadline, SkipValidateBody: true, Middlewares: s.needs(needs, Each),
			Responses: s.responses(status, answer)}
	}

	list := op("list", http.MethodGet, base, "List or watch "+k.Plural, access.Read, http.StatusOK, s.listSchema(k))
	list.Description = k.Doc
	list.Responses["200"].Content["text/event-stream"] = s.watchMedia(k)
	list.Responses["410"] = s.gone()
	list.Middlewares = append(list.Middlewares, s.watchOr(k.Name))
	huma.Register(s.api, list, func(ctx context.Context, in *listInput) (*listOutput, error) {
		q := store.Query{Tenant: in.Tenant, Kind: k.Name, Selector: in.Selector, Limit: in.Limit, After: in.After}
		if q.Tenant == "*" {
			q.Tenant = ""
		}
		q.Only = s.only(ctx, k.Name)
		items, next, rev, err := s.cfg.Store.List(ctx, q)
		if err != nil {
			return nil, s.fail(err)
		}
		if err := s.ownerOf(ctx, q.Tenant, len(items)); err != nil {
			return nil, s.fail(err)
		}
		out := &listOutput{Body: objectList{Items: make([]*api.Object, len(items)), Next: next, Revision: rev}}
		for i, o := range items {
			out.Body.Items[i] = s.show(ctx, o)
		}
		return out, nil
	})

	huma.Register(s.api, op("get", http.MethodGet, base+"/{name}", "Read one "+k.Name, access.Read, http.StatusOK, schema), func(ctx context.Context, in *ObjectPath) (*objectOutput, error) {
		obj, err := s.get(ctx, access.Read, api.Key{Tenant: in.Tenant, Kind: k.Name, Name: in.Name})
		if err != nil {
			return nil, s.fail(err)
		}
		return s.output(ctx, obj), nil
	})

	huma.Register(s.api, op("create", http.MethodPost, base, "Create a "+k.Name, access.Write, http.StatusCreated, schema), func(ctx context.Context, in *createInput) (*writtenOutput, error) {
		obj, err := decodeOne(in.RawBody, k.Name, in.Tenant, "")
		if err != nil {
			return nil, s.fail(err)
		}
		return s.answer(k, in.DryRun)(s.write(ctx, obj, writeOptions{create: true, dryRun: in.DryRun}))
	})

	put := op("put", http.MethodPut, base+"/{name}", "Create or replace a "+k.Name, access.Write, http.StatusOK, schema)
	put.Responses["201"] = s.responses(http.StatusCreated, schema)["201"]
	huma.Register(s.api, put, func(ctx context.Context, in *putInput) (*writtenOutput, error) {
		obj, err := decodeOne(in.RawBody, k.Name, in.Tenant, in.Name)
		if err != nil {
			return nil, s.fail(err)
		}
		if err := s.match(ctx, in.IfMatch, obj.Key(), &obj.Metadata.Revision); err != nil {
			return nil, err
		}
		out, err := s.answer(k, in.DryRun)(s.write(ctx, obj, writeOptions{dryRun: in.DryRun}))
		return out, missed(in.IfMatch, err)
	})

	huma.Register(s.api, op("delete", http.MethodDelete, base+"/{name}", "Delete a "+k.Name, access.Write, http.StatusNoContent, nil), func(ctx context.Context, in *deleteInput) (*struct{}, error) {
		key := api.Key{Tenant: in.Tenant, Kind: k.Name, Name: in.Name}
		if err := s.match(ctx, in.IfMatch, key, &in.Revision); err != nil {
			return nil, err
		}
		return nil, missed(in.IfMatch, s.fail(s.remove(ctx, key, in.Revision)))
	})

	for path, ops := range map[string][]string{base: {http.MethodPost}, base + "/{name}": {http.MethodPut}} {
		for _, method := range ops {
			s.describeBody(path, method, schema)
		}
	}
}

// ownerOf refuses a list of nothing that names a tenant which is not there, or that the
// caller is not told of: a mistyped name would look like an empty fleet.
func (s *Server) ownerOf(ctx context.Context, tenant string, found int) error {
	if found > 0 || tenant == "" || tenant == "*" || tenant == api.DefaultTenant || CallerOf(ctx).Sees(tenant) {
		return nil
	}
	return &api.Error{Code: api.NotFound, Field: "query.tenant", Message: "there is no tenant " + tenant, Remedy: "see `edgectl get tenants --tenant " + api.DefaultTenant + "`"}
}

// only tells of each object of a kind whether the caller may read it; nil: of all.
func (s *Server) only(ctx context.Context, kind string) func(*api.Object) bool {
	if v := CallerOf(ctx).Of(access.Read, kind); !v.Everything { // check: scope of lists
		return v.Has
	}
	return nil
}

// answer tells what a write did. A dry run makes nothing, so nothing is anywhere.
func (s *Server) answer(k *api.Kind, dryRun bool) func(*written, error) (*writtenOutput, error) {
	return func(w *written, err error) (*writtenOutput, error) {
		if err != nil {
			return nil, s.fail(err)
		}
		out := &writtenOutput{Status: http.StatusOK, ETag: etag(w.object), Body: s.cfg.Heard.show(w.object), Warnings: w.warnings}
		if w.old != nil {
			return out, nil
		}
		out.Status = http.StatusCreated
		if !dryRun {
			m := w.object.Metadata
			out.Location = "/api/v1/" + k.Plural + "/" + m.Name
			if m.Tenant != api.DefaultTenant {
				out.Location += "?tenant=" + m.Tenant
			}
		}
		return out, nil
	}
}

// decodeOne reads the one object of a request, which must agree with the path. What
// the body leaves out (tenant, and in a PUT the name) comes from the path; only a POST
// whose path names no tenant leaves it to the body.
func decodeOne(body []byte, kind, tenant, name string) (*api.Object, error) {
	objects, err := api.Decode(body)
	if err != nil {
		return nil, err
	}
	if len(objects) != 1 {
		return nil, &api.Error{Code: api.Invalid, Message: "the body holds not one object", Remedy: "send many to /api/v1/apply"}
	}
	o := objects[0]
	mismatch := func(field, got, want string) error {
		return &api.Error{Code: api.Invalid, Field: field, Message: "it is " + got + " in the body and " + want + " in the path", Remedy: "make them agree"}
	}
	if tenant != api.DefaultTenant && o.Metadata.Tenant == api.DefaultTenant {
		o.Metadata.Tenant = tenant
	}
	switch {
	case o.Kind != kind:
		return nil, mismatch("kind", o.Kind, kind)
	case o.Metadata.Tenant != tenant && (name != "" || tenant != api.DefaultTenant):
		return nil, mismatch("metadata.tenant", o.Metadata.Tenant, tenant)
	case name != "" && o.Metadata.Name != name:
		return nil, mismatch("metadata.name", o.Metadata.Name, name)
	}
	return o, nil
}

// needs is the guard of an operation of the REST API.
func (s *Server) needs(action access.Action, on On) huma.Middlewares {
	return huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) { s.authorize(Needs{action, on}, ctx, next) }}
}

func (s *Server) authorize(needs Needs, ctx huma.Context, next func(huma.Context)) {
	r, w := unwrap(ctx)
	r, err := s.admit(needs, r)
	noteWho(w, r)
	if err != nil {
		WriteError(w, err)
		return
	}
	ctx = huma.WithContext(ctx, withCaller(api.WithOrigin(ctx.Context(), api.OriginOf(r.Context())), CallerOf(r.Context())))
	if err := onlyKnown(r, parametersOf(ctx.Operation())); err != nil {
		writeErrorAs(w, http.StatusBadRequest, err)
		return
	}
	next(ctx)
}

// parametersOf lists the query parameters of an operation. All take a tenant: clients
// send it with every request.
func parametersOf(op *huma.Operation) []string {
	known := []string{"tenant"}
	for _, p := range op.Parameters {
		if p.In == "query" && !slices.Contains(known, p.Name) {
			known = append(known, p.Name)
		}
	}
	slices.Sort(known)
	return known
}

// onlyKnown refuses a query with a parameter that means nothing: a mistyped dryRun or
// selector would do more than was asked for.
func onlyKnown(r *http.Request, known []string) error {
	var faults []*api.Error
	for _, name := range slices.Sorted(maps.Keys(r.URL.Query())) {
		if !slices.Contains(known, name) {
			faults = append(faults, &api.Error{Code: api.Invalid, Field: "query." + name, Message: "there is no parameter " + name + " here", Remedy: "the parameters are " + strings.Join(known, ", ")})
		}
	}
	if err := api.JoinErrors(faults, "query"); err != nil {
		return err
	}
	return nil
}

// heartbeat is how often an idle watch says that it lives, so that proxies and
// readers can tell it from a dead one.
const heartbeat = 15 * time.Second
