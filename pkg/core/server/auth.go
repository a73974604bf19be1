package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Access says who may use a route.
type Access int

// The kinds of access.
const (
	// People may read with any token, and ask what an apply would change; only admins may
	// do anything else.
	People Access = iota
	// Admins alone.
	Admins
	// Rescuers, and admins.
	Rescuers
	// Open to everybody: the room checks on its own, by client certificate or token.
	Open
)

// SessionCookie carries the token of somebody who looks through a browser.
const SessionCookie = "tributary_session"

type principalKey struct{}

// PrincipalOf tells who makes a request that passed a guard.
func PrincipalOf(ctx context.Context) (store.Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(store.Principal)
	return p, ok
}

// Authenticate tells which person makes a request, by bearer token, by HTTP basic
// authentication with the token as password (what registry clients send), or for
// reading by the browser's session. The error has code Unauthorized.
func (s *Server) Authenticate(r *http.Request) (store.Principal, error) {
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return s.cfg.Tokens.CheckToken(r.Context(), strings.TrimSpace(token))
	}
	if _, password, ok := r.BasicAuth(); ok {
		return s.cfg.Tokens.CheckToken(r.Context(), password)
	}
	// A browser sends its cookie along with requests that other pages make it send;
	// so it never authorises a change.
	if c, err := r.Cookie(SessionCookie); err == nil && reads(r) {
		return s.cfg.Tokens.CheckToken(r.Context(), c.Value)
	}
	return store.Principal{}, &api.Error{Code: api.Unauthorized, Message: "who you are is not known", Remedy: "send your token as `Authorization: Bearer …`; make one with `cored token create`"}
}

func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// asks reports whether a request only asks what an apply would change. Other routes do
// not know dryRun, or do more than answer.
func asks(r *http.Request) bool {
	said := r.URL.Query()["dryRun"]
	return r.Method == http.MethodPost && r.URL.Path == applyPath && len(said) == 1 && switched(said[0])
}

// switched reads a yes or no of a query as the description of the API does, so that a
// guard and the handler behind it never differ. What is neither is refused there.
func switched(text string) bool {
	on, err := strconv.ParseBool(text)
	return err == nil && on
}

// changes reports whether somebody may change objects.
func changes(p store.Principal) bool { return p.Role == store.Admin }

// guard lets through who may use the handler.
func (s *Server) guard(access Access, h http.Handler) http.Handler {
	if access == Open {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, err := s.admit(access, r)
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
	p, known := PrincipalOf(r.Context())
	if rec, ok := w.(*recorder); ok && known {
		rec.who = p.Name
	}
}

// admit checks who makes a request. The request that it returns carries them as soon as
// they are known, also beside an error.
func (s *Server) admit(access Access, r *http.Request) (*http.Request, error) {
	p, err := s.Authenticate(r)
	if err != nil {
		return r, err
	}
	r = r.WithContext(context.WithValue(r.Context(), principalKey{}, p))
	if access == Rescuers {
		if p.Role != store.Admin && p.Role != store.Rescuer { // check: role
			return r, &api.Error{Code: api.Forbidden, Message: "a " + string(p.Role) + " may not open boxes", Remedy: "ask for a token of role rescuer or admin"}
		}
		return r, nil
	}
	// An upgrade is a GET, and opens a stream into a device.
	if p.Role != store.Admin && (access == Admins || !reads(r) && !asks(r) || r.Header.Get("Upgrade") != "") {
		return r, &api.Error{Code: api.Forbidden, Message: "a " + string(p.Role) + " may only read", Remedy: "ask for a token of role admin"}
	}
	return r, nil
}
