package server

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/store"
)

// Needs says what a request to a route needs: an action, on what.
type Needs struct {
	Action access.Action
	On     On
}

// On says on what a route acts.
type On int

// The things that routes act on.
const (
	// Room routes check on their own who asks, and for what: by client certificate or token.
	Room On = iota
	// Everybody may use the route who is known.
	Everybody
	// Platform is the root of all tenants.
	Platform
	// Device is the one that path and query name.
	Device
	// Each object that the handler comes to: it asks for each of them.
	Each
	// People are the platform's to keep.
	People
)

// SessionCookie carries the session of somebody at a browser; a token there reads alone.
const SessionCookie = "tributary_session"

type callerKey struct{}

// CallerOf tells who makes a request that passed a guard. One that passed none may nothing.
func CallerOf(ctx context.Context) *access.Caller {
	if c, ok := ctx.Value(callerKey{}).(*access.Caller); ok {
		return c
	}
	return &access.Caller{}
}

// Authenticate tells who makes a request, by bearer token, by HTTP basic authentication
// with the token as password (what registry clients send), or by the browser's session. The
// error has code Unauthorized.
func (s *Server) Authenticate(r *http.Request) (*access.Caller, error) {
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return s.bySecret(r, strings.TrimSpace(token))
	}
	if token := socketToken(r); token != "" {
		return s.bySecret(r, token)
	}
	if _, password, ok := r.BasicAuth(); ok {
		return s.bySecret(r, password)
	}
	// A browser sends its cookie along with requests that other pages make it send: by a token
	// there nothing is changed, and by a session only from a page of the core's own.
	if c, err := r.Cookie(SessionCookie); err == nil && (reads(r) || people.IsSession(c.Value)) {
		if err := crossed(r); err != nil {
			return nil, err
		}
		return s.bySecret(r, c.Value)
	}
	return nil, &api.Error{Code: api.Unauthorized, Message: "who you are is not known", Remedy: "log in, or send your token as `Authorization: Bearer …`; make one with `cored token create`"}
}

func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// switched reads a yes or no of a query as the description of the API does, so that a
// guard and the handler behind it never differ. What is neither is refused there.
func switched(text string) bool {
	on, err := strconv.ParseBool(text)
	return err == nil && on
}

// guard lets through who may use the handler.
func (s *Server) guard(needs Needs, h http.Handler) http.Handler {
	if needs.On == Room {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, err := s.admit(needs, r)
		noteWho(w, r)
		if err != nil {
			WriteError(w, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// noteWho tells the log who made a request, also one that is refused.
func noteWho(w http.ResponseWriter, r *http.Request) {
	if rec, ok := w.(*recorder); ok {
		rec.who = CallerOf(r.Context()).Name
	}
}

// admit checks who makes a request. The request that it returns carries them as soon as
// they are known, also beside an error.
func (s *Server) admit(needs Needs, r *http.Request) (*http.Request, error) {
	c, err := s.Authenticate(r)
	if err != nil {
		if api.CodeOf(err) == api.Unauthorized {
			s.note(r.Context(), api.AuditEntry{Action: "authenticate", Outcome: api.AuditRefused, Message: r.Method + " " + r.URL.Path})
		}
		return r, err
	}
	r = r.WithContext(withCaller(r.Context(), c))
	switch needs.On {
	case Platform:
		err = s.may(r.Context(), needs.Action, access.Resource{Tenant: api.PlatformTenant, Kind: api.KindTenant})
	case People:
		err = s.may(r.Context(), needs.Action, access.Resource{Tenant: api.PlatformTenant, Kind: access.Person})
	case Device:
		_, err = s.get(r.Context(), needs.Action, api.Key{Tenant: cmp.Or(r.URL.Query().Get("tenant"), api.DefaultTenant), Kind: api.KindDevice, Name: r.PathValue("name")})
	}
	return r, err
}

// may refuses what a caller may not do; that what it is about is there is known to them.
func (s *Server) may(ctx context.Context, action access.Action, r access.Resource) error {
	c := CallerOf(ctx)
	if !c.May(action, r) { // check: role
		s.note(ctx, api.AuditEntry{TenantName: r.Tenant, Action: string(action), Kind: r.Kind, Object: r.Name, Outcome: api.AuditRefused})
		return &api.Error{Code: api.Forbidden, Message: c.Name + " may not " + string(action) + " " + strings.TrimSpace(r.Kind+" "+r.Name) + " in tenant " + r.Tenant,
			Remedy: "ask whoever runs the tenant for a role that may, by a RoleBinding"}
	}
	return nil
}

// get reads an object that the caller wants to do something with. One that they may not see
// is as if it were not there.
func (s *Server) get(ctx context.Context, action access.Action, key api.Key) (*api.Object, error) {
	o, err := s.cfg.Store.Get(ctx, key)
	if err != nil {
		if key.Kind == api.KindDevice && api.CodeOf(err) == api.NotFound {
			return nil, cmp.Or(s.ownerOf(ctx, key.Tenant, 0), err)
		}
		return nil, err
	}
	r := CallerOf(ctx).Resource(o)
	if !CallerOf(ctx).May(access.Read, r) { // check: scope
		s.note(ctx, api.AuditEntry{TenantName: r.Tenant, Action: string(action), Kind: r.Kind, Object: r.Name, UID: o.Metadata.UID, Outcome: api.AuditRefused, Message: "out of the caller's scope"})
		if key.Kind == api.KindDevice {
			return nil, cmp.Or(s.ownerOf(ctx, key.Tenant, 0), store.NotFound(key))
		}
		return nil, store.NotFound(key)
	}
	return o, s.may(ctx, action, r)
}

// Get reads an object for a room that brings its own routes.
func (s *Server) Get(ctx context.Context, action access.Action, key api.Key) (*api.Object, error) {
	return s.get(ctx, action, key)
}

// Authorize says whether the person who makes a request may do something in a room with a
// protocol of its own, such as the registry, and tells the room's log who it is. What they
// may not even read is as if it were not there.
func (s *Server) Authorize(r *http.Request, action access.Action, on access.Resource) error {
	c, err := s.Authenticate(r)
	if err != nil {
		return err
	}
	if on.Tenant != "" && !c.May(access.Pull, on) {
		return &api.Error{Code: api.NotFound, Message: "there is no tenant " + on.Tenant, Remedy: "mend the first part of the repository's name, or apply a Tenant " + on.Tenant + " first"}
	}
	if action == "" {
		return nil
	}
	if on.Tenant == "" {
		on.Tenant = api.PlatformTenant
	}
	return s.may(withCaller(r.Context(), c), action, on)
}

// mayWrite says whether the caller may write an object (old: as it is; nil where there is
// none). What says who may what needs more than what runs devices; a tenant is placed by
// whoever runs the one above it.
func (s *Server) mayWrite(ctx context.Context, old, o *api.Object, opts writeOptions) error {
	c := CallerOf(ctx)
	r := c.Resource(o)
	if !c.Sees(r.Tenant) && o.Kind != api.KindTenant && r.Tenant != api.DefaultTenant {
		if r.Tenant = comesBelow(r.Tenant, opts.with, c.Sees); r.Tenant == "" {
			return store.NoTenant(o.Metadata.Tenant)
		}
	}
	action := access.Write
	switch {
	case o.Kind == api.KindTenant:
		return s.mayPlace(ctx, old, o, opts)
	case fromAbove(o.Kind) != "":
		return s.mayAbove(ctx, fromAbove(o.Kind), r, opts.plan)
	case opts.plan:
		action = access.Plan
	case o.Kind == api.KindServiceAccount, o.Kind == api.KindRoleBinding:
		action = access.Govern
	}
	if old != nil {
		if err := s.may(ctx, action, c.Resource(old)); err != nil {
			return err
		}
	}
	if action == access.Write && widens(old, o) { // check: whom a fleet picks
		r.Fleets = nil
	}
	return s.may(ctx, action, r)
}

// fromAbove is what is needed in the tenant above to write a kind by which somebody says what another
// owes, or may have; "" for the other kinds.
func fromAbove(kind string) access.Action {
	switch kind {
	case api.KindPricePlan, api.KindBillingProfile:
		return access.Price
	case api.KindQuota:
		return access.Govern
	}
	return ""
}

// mayAbove says whether the caller may say what a tenant owes, or may have: nobody does for themselves,
// but whoever runs the tenant above.
func (s *Server) mayAbove(ctx context.Context, action access.Action, r access.Resource, plan bool) error {
	if plan {
		action = access.Plan
	}
	if tenant := r.Tenant; r.Tenant != "" {
		r.Tenant = CallerOf(ctx).Above(tenant)
	}
	return s.may(ctx, action, r)
}

// widens reports whether a fleet may pick other devices than before: who may act within it
// alone would say by that what they may act upon.
func widens(old, o *api.Object) bool {
	if o.Kind != api.KindFleet {
		return false
	}
	var was, is api.FleetSpec
	_ = json.Unmarshal(o.Spec, &is) // decoded and checked before
	return old == nil || json.Unmarshal(old.Spec, &was) != nil || !reflect.DeepEqual(was.Selector, is.Selector)
}

// comesBelow is the tenant, known to the caller, below which another comes along; "" for none.
func comesBelow(tenant string, with map[api.Key]*api.Object, known func(string) bool) string {
	for range len(with) + 1 {
		if known(tenant) {
			return tenant
		}
		o := with[api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: tenant}]
		if o == nil {
			return ""
		}
		tenant = parentOf(o)
	}
	return ""
}

// mayPlace is mayWrite of a tenant. Whoever runs it may change it where it is.
func (s *Server) mayPlace(ctx context.Context, old, o *api.Object, opts writeOptions) error {
	c, action := CallerOf(ctx), access.Govern
	if opts.plan {
		action = access.Plan
	}
	in := func(tenant string) error {
		below := comesBelow(tenant, opts.with, c.Sees)
		if below == "" { // as one that is not there
			return api.TenantTree{}.Place(o.Metadata.Name, cmp.Or(tenant, api.PlatformTenant))
		}
		return s.may(ctx, action, access.Resource{Tenant: below, Kind: api.KindTenant, Name: o.Metadata.Name})
	}
	hidden := old != nil && !c.May(access.Read, c.Resource(old))
	if old != nil && !hidden && parentOf(old) == parentOf(o) {
		return in(o.Metadata.Name)
	}
	if err := in(parentOf(o)); err != nil || old == nil {
		return err
	}
	if hidden { // names of tenants are the platform's, all in one room
		return &api.Error{Code: api.Conflict, Field: "metadata.name", Message: "the name " + o.Metadata.Name + " is taken", Remedy: "choose another"}
	}
	return in(parentOf(old))
}

// mayRemove says whether the caller may delete an object; a tenant, when they run the one
// above it.
func (s *Server) mayRemove(ctx context.Context, o *api.Object) error {
	switch o.Kind {
	case api.KindTenant:
		return s.may(ctx, access.Govern, access.Resource{Tenant: parentOf(o), Kind: api.KindTenant, Name: o.Metadata.Name})
	case api.KindServiceAccount, api.KindRoleBinding:
		return s.may(ctx, access.Govern, CallerOf(ctx).Resource(o))
	case api.KindPricePlan, api.KindBillingProfile, api.KindQuota:
		return s.mayAbove(ctx, fromAbove(o.Kind), CallerOf(ctx).Resource(o), false)
	}
	return s.may(ctx, access.Write, CallerOf(ctx).Resource(o))
}
