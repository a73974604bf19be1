package server

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/store"
)

type requestKey struct{}

// carried hands a handler the request itself, for what huma does not pass on.
func carried(ctx huma.Context, next func(huma.Context)) {
	r, _ := unwrap(ctx)
	next(huma.WithValue(ctx, requestKey{}, r))
}

func requestOf(ctx context.Context) *http.Request {
	r, _ := ctx.Value(requestKey{}).(*http.Request)
	return r
}

// addressOf is where a request comes from, without the port.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// crossed refuses what a page of another origin has a browser send, with the cookies of
// whoever looks at it. http.CrossOriginProtection goes by Sec-Fetch-Site and Origin.
func crossed(r *http.Request) error {
	if err := http.NewCrossOriginProtection().Check(r); err != nil { // check: cross origin
		return &api.Error{Code: api.Forbidden, Message: "a page of another origin may not do this", Remedy: "open the console at the core's own address", Err: err}
	}
	return nil
}

// unknown is the guard of what one does who is not known yet.
func (s *Server) unknown(ctx huma.Context, next func(huma.Context)) {
	r, w := unwrap(ctx)
	if err := crossed(r); err != nil {
		WriteError(w, err)
		return
	}
	next(huma.WithValue(ctx, requestKey{}, r))
}

// bySecret tells whose a token or the secret of a session is.
func (s *Server) bySecret(r *http.Request, secret string) (*access.Caller, error) {
	if s.cfg.People == nil || !people.IsSession(secret) {
		return s.cfg.Access.ByToken(r.Context(), secret)
	}
	// A stream that looks whether it may go on is not somebody who does something.
	_, again := r.Context().Value(callerKey{}).(*access.Caller)
	session, err := s.cfg.People.Check(r.Context(), secret, !again)
	if err != nil {
		return nil, err
	}
	groups := make([]access.Group, len(session.Groups))
	for i, g := range session.Groups {
		groups[i] = access.Group(g)
	}
	c, err := s.cfg.Access.Person(r.Context(), session.Person, session.Name, groups)
	if err == nil {
		c.Session = session.ID
	}
	return c, err
}

func sessionCookie(secret string, ends time.Time) string {
	c := &http.Cookie{Name: SessionCookie, Value: secret, Path: "/", Expires: ends, HttpOnly: true, Secure: true, SameSite: http.SameSiteStrictMode}
	if secret == "" {
		c.MaxAge = -1
	}
	return c.String()
}

type (
	loginBody struct {
		people.Credentials
		Bearer bool `json:"bearer,omitempty" doc:"Answer a token to send as Authorization: Bearer …, instead of setting the cookie."`
	}
	loginInput struct{ Body loginBody }
	// LoggedIn is what somebody gets who got in.
	LoggedIn struct {
		Person *people.Person `json:"person"`
		Ends   time.Time      `json:"ends" doc:"When the session ends at the latest."`
		Token  string         `json:"token,omitempty" doc:"With bearer."`
	}
	loginOutput struct {
		SetCookie []string `header:"Set-Cookie"`
		Body      LoggedIn
	}
	waysOutput struct {
		Body struct {
			Setup bool `json:"setup" doc:"Nobody is there yet: the first administrator makes themselves by the one-time token."`
		}
	}
	setupInput struct {
		Body struct {
			people.Profile
			Token    string `json:"token" maxLength:"200" doc:"Of the core's log and folder at its first start, or of cored admin-token."`
			Password string `json:"password" maxLength:"1024"`
			Bearer   bool   `json:"bearer,omitempty"`
		}
	}
	passwordInput struct {
		Body struct {
			Token    string `json:"token,omitempty" maxLength:"200" doc:"What an administrator gave; or password and code of now."`
			Password string `json:"password,omitempty" maxLength:"1024" doc:"That of now."`
			Code     string `json:"code,omitempty" maxLength:"64"`
			New      string `json:"new" maxLength:"1024" doc:"At least 12 characters."`
		}
	}
	proofInput struct {
		Body struct {
			Password string `json:"password" maxLength:"1024"`
			Code     string `json:"code,omitempty" maxLength:"64" doc:"Where there is a second factor."`
		}
	}
	factorOutput struct{ Body *people.Factor }
	confirmInput struct {
		Body struct {
			Code string `json:"code" maxLength:"64"`
		}
	}
	codesOutput struct {
		Body struct {
			Codes []string `json:"recoveryCodes" doc:"Each takes the place of one code, once. They are shown now and never again."`
		}
	}
	sessionsOutput struct {
		Body struct {
			Items []*people.Session `json:"items"`
		}
	}
	clearedOutput struct {
		SetCookie []string `header:"Set-Cookie"`
	}
)

// personOp describes an operation about people or by them.
func (s *Server) personOp(id, method, path, summary string, guard huma.Middlewares) huma.Operation {
	op := huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{"people"}, Middlewares: append(guard, carried), MaxBodyBytes: 64 << 10, BodyReadTimeout: readDeadline}
	if method == http.MethodDelete {
		op.DefaultStatus = http.StatusNoContent
	}
	return op
}

// peopleRoutes are about who somebody is.
func (s *Server) peopleRoutes() {
	if s.cfg.People == nil {
		return
	}
	s.loginRoutes()
	s.selfRoutes()
	s.keeperRoutes()
}

func (s *Server) loginRoutes() {
	open := func(id, method, path, summary string) huma.Operation {
		op := s.personOp(id, method, path, summary, huma.Middlewares{s.unknown})
		op.Security = []map[string][]string{{}}
		return op
	}
	huma.Register(s.api, open("login-ways", http.MethodGet, "/api/v1/login", "How one gets in"), func(ctx context.Context, _ *struct{}) (*waysOutput, error) {
		out := &waysOutput{}
		anybody, err := s.cfg.People.Anybody(ctx)
		out.Body.Setup = !anybody
		return out, s.fail(err)
	})
	huma.Register(s.api, open("login", http.MethodPost, "/api/v1/login", "Get in by name, password and code; 401 with the field code asks for one"), func(ctx context.Context, in *loginInput) (*loginOutput, error) {
		p, err := s.cfg.People.Login(ctx, in.Body.Credentials, addressOf(requestOf(ctx)))
		if err != nil {
			s.cfg.Log.Warn("a login is refused", "login", in.Body.Login, "from", addressOf(requestOf(ctx)), "err", err)
			return nil, s.fail(err)
		}
		return s.begin(ctx, p, in.Body.Bearer)
	})
	huma.Register(s.api, open("setup", http.MethodPost, "/api/v1/setup", "Become an administrator of the platform, by a one-time token"), func(ctx context.Context, in *setupInput) (*loginOutput, error) {
		p, err := s.cfg.People.Setup(ctx, in.Body.Token, in.Body.Profile, in.Body.Password, s.bindAdmin)
		if err != nil {
			s.cfg.Log.Warn("a first login is refused", "login", in.Body.Login, "from", addressOf(requestOf(ctx)), "err", err)
			return nil, s.fail(err)
		}
		return s.begin(ctx, p, in.Body.Bearer)
	})
	huma.Register(s.api, open("set-password", http.MethodPost, "/api/v1/password", "Set a password, by an administrator's token or by the one of now; all sessions end"), func(ctx context.Context, in *passwordInput) (*clearedOutput, error) {
		return &clearedOutput{SetCookie: []string{sessionCookie("", time.Time{})}}, s.fail(s.setPassword(ctx, in))
	})
}

func (s *Server) setPassword(ctx context.Context, in *passwordInput) error {
	if in.Body.Token != "" {
		p, err := s.cfg.People.SetPassword(ctx, in.Body.Token, in.Body.New)
		if err == nil {
			s.cfg.Log.Info("a password is set", "actor", p.Shown())
		}
		return err
	}
	c, err := s.Authenticate(requestOf(ctx))
	if err != nil {
		return err
	}
	me, err := s.self(context.WithValue(ctx, callerKey{}, c))
	if err != nil {
		return err
	}
	s.cfg.Log.Info("a password is changed", "actor", c.Name)
	return s.cfg.People.ChangePassword(ctx, people.Credentials{Login: me.Login, Password: in.Body.Password, Code: in.Body.Code}, in.Body.New, addressOf(requestOf(ctx)))
}

// begin opens a session for somebody who proved who they are.
func (s *Server) begin(ctx context.Context, p *people.Person, bearer bool) (*loginOutput, error) {
	r := requestOf(ctx)
	session, secret, err := s.cfg.People.Begin(ctx, p, people.Session{How: "password", Bearer: bearer, Address: addressOf(r), Agent: r.UserAgent()})
	if err != nil {
		return nil, s.fail(err)
	}
	s.cfg.Log.Info("somebody is logged in", "person", p.UID, "actor", p.Shown(), "session", session.ID, "from", session.Address)
	out := &loginOutput{Body: LoggedIn{Person: p, Ends: session.Ends}}
	if bearer {
		out.Body.Token = secret
	} else {
		out.SetCookie = []string{sessionCookie(secret, session.Ends)}
	}
	return out, nil
}

// bindAdmin gives a person the role of the platform.
func (s *Server) bindAdmin(ctx context.Context, uid string) error {
	spec, err := json.Marshal(api.RoleBindingSpec{Role: api.RolePlatformAdmin, Subjects: []api.Subject{{Person: uid}}})
	if err != nil {
		return err
	}
	_, err = s.cfg.Store.Put(ctx, &api.Object{APIVersion: api.Version, Kind: api.KindRoleBinding, Metadata: api.Meta{Tenant: api.PlatformTenant, Name: "admin-" + uid}, Spec: spec}, store.PutOptions{Create: true})
	return err
}

// self is the person who asks.
func (s *Server) self(ctx context.Context) (*people.Person, error) {
	uid := CallerOf(ctx).Person
	if uid == "" {
		return nil, &api.Error{Code: api.Conflict, Message: "a service account has neither password nor session", Remedy: "log in as a person"}
	}
	return s.cfg.People.Get(ctx, uid)
}

// prove has the person who asks prove once more who they are: a session alone that somebody
// left open does not change by what one gets in.
func (s *Server) prove(ctx context.Context, in *proofInput) (*people.Person, error) {
	me, err := s.self(ctx)
	if err != nil {
		return nil, err
	}
	return s.cfg.People.Login(ctx, people.Credentials{Login: me.Login, Password: in.Body.Password, Code: in.Body.Code}, addressOf(requestOf(ctx)))
}

// selfRoutes are what people do with their own account.
func (s *Server) selfRoutes() {
	op := func(id, method, path, summary string) huma.Operation {
		return s.personOp(id, method, path, summary, s.needs("", Everybody))
	}
	huma.Register(s.api, op("logout", http.MethodPost, "/api/v1/logout", "End the session that asks"), func(ctx context.Context, _ *struct{}) (*clearedOutput, error) {
		me, err := s.self(ctx)
		if err == nil {
			err = s.cfg.People.End(ctx, me.UID, CallerOf(ctx).Session)
		}
		return &clearedOutput{SetCookie: []string{sessionCookie("", time.Time{})}}, s.fail(err)
	})
	huma.Register(s.api, op("new-factor", http.MethodPost, "/api/v1/factor", "Begin to set up a second factor (RFC 6238)"), func(ctx context.Context, in *proofInput) (*factorOutput, error) {
		me, err := s.prove(ctx, in)
		if err != nil {
			return nil, s.fail(err)
		}
		f, err := s.cfg.People.NewFactor(ctx, me.UID, requestOf(ctx).Host)
		return &factorOutput{f}, s.fail(err)
	})
	huma.Register(s.api, op("confirm-factor", http.MethodPut, "/api/v1/factor", "Make the second factor count, by a code of it"), func(ctx context.Context, in *confirmInput) (*codesOutput, error) {
		out := &codesOutput{}
		me, err := s.self(ctx)
		if err == nil {
			out.Body.Codes, err = s.cfg.People.ConfirmFactor(ctx, me.UID, in.Body.Code, addressOf(requestOf(ctx)))
		}
		return out, s.fail(err)
	})
	huma.Register(s.api, op("drop-factor", http.MethodDelete, "/api/v1/factor", "Do without a second factor"), func(ctx context.Context, in *proofInput) (*struct{}, error) {
		me, err := s.prove(ctx, in)
		if err == nil {
			err = s.cfg.People.DropFactor(ctx, me.UID)
		}
		return nil, s.fail(err)
	})
	huma.Register(s.api, op("new-recovery-codes", http.MethodPost, "/api/v1/recoverycodes", "Get new recovery codes; those before end"), func(ctx context.Context, in *proofInput) (*codesOutput, error) {
		out := &codesOutput{}
		me, err := s.prove(ctx, in)
		if err == nil {
			out.Body.Codes, err = s.cfg.People.NewCodes(ctx, me.UID)
		}
		return out, s.fail(err)
	})
	huma.Register(s.api, op("list-sessions", http.MethodGet, "/api/v1/sessions", "Your sessions"), func(ctx context.Context, _ *struct{}) (*sessionsOutput, error) {
		out := &sessionsOutput{}
		me, err := s.self(ctx)
		if err == nil {
			out.Body.Items, err = s.cfg.People.Sessions(ctx, me.UID)
		}
		for _, x := range out.Body.Items {
			x.Current = x.ID == CallerOf(ctx).Session
		}
		return out, s.fail(err)
	})
	huma.Register(s.api, op("end-session", http.MethodDelete, "/api/v1/sessions/{id}", "End one of your sessions"), func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"64"`
	}) (*struct{}, error) {
		me, err := s.self(ctx)
		if err == nil {
			err = s.cfg.People.End(ctx, me.UID, in.ID)
		}
		return nil, s.fail(err)
	})
}

// AdmitBinding refuses a binding to a person who is not there: a mistyped uid would bind nobody.
func AdmitBinding(room *people.Room) Admission {
	return func(ctx context.Context, c Change) (Decision, error) {
		var spec api.RoleBindingSpec
		if err := json.Unmarshal(c.New.Spec, &spec); err != nil {
			return Decision{}, err
		}
		for _, subject := range spec.Subjects {
			if subject.Person == "" {
				continue
			}
			if _, err := room.Get(ctx, subject.Person); api.CodeOf(err) == api.NotFound && err != nil {
				return Decision{}, &api.Error{Code: api.Invalid, Field: "spec.subjects", Message: "there is no person " + subject.Person, Remedy: "give the uid that `edgectl whoami` tells them, or `edgectl person list`"}
			} else if err != nil {
				return Decision{}, err
			}
		}
		return Decision{}, nil
	}
}
