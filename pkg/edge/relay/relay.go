// Package relay answers: what does a relay serve its children over HTTPS, and what
// does it fetch for them before they ask?
//
// Four paths: /v2/ (the artifact cache), /enrol/v1/ (passed to the parent unread),
// /stream/v1/ (streams, spliced to the parent unread) and /healthz. Manifests and
// state go by MQTT and are no concern of this package, except that it is told which
// artifacts the manifests that pass name, and has them ready.
package relay

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/pkg/oci"
)

// Config configures a Server. Live, Cache and Parent are needed.
type Config struct {
	// Live is who the relay is; its CA decides who its children may be.
	Live *identity.Live
	// Cache serves and keeps artifacts.
	Cache *oci.Cache
	// Parent is where enrolments are passed to; usually the cache's upstream too.
	Parent oci.Upstream
	// Stream serves stream.PathPrefix; nil: the path is not found.
	Stream http.Handler
	// Retry is how long a failed prefetch waits for its next attempt. Default 30 s.
	Retry time.Duration
	// Now is the clock that certificates are judged by. Default time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Server is the HTTPS side of a relay. Its methods are safe for concurrent use; Run
// and Serve are called once each.
type Server struct {
	cfg   Config
	mux   *http.ServeMux
	fetch *prefetcher

	expected chan string // the newest word of Expected, until the greeter takes it
}

// New makes a server; it opens nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Live == nil || cfg.Cache == nil || cfg.Parent == nil {
		return nil, errors.New("relay: an identity, a cache and a parent are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Retry <= 0 {
		cfg.Retry = 30 * time.Second
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), fetch: newPrefetcher(cfg.Cache, cfg.Retry, cfg.Now, cfg.Log), expected: make(chan string, 1)}
	s.mux.Handle("/v2/", s.children(cfg.Cache))
	if cfg.Stream != nil {
		s.mux.Handle(stream.PathPrefix, s.children(cfg.Stream))
	}
	s.mux.Handle(identity.EnrolPrefix, enrolments(cfg.Parent, cfg.Log))
	s.mux.Handle(identity.GreetPrefix, s.children(http.HandlerFunc(s.greetings)))
	s.mux.HandleFunc("/healthz", s.health)
	return s, nil
}

// Handler is the server's routes, for who listens by himself (with
// identity.ServerTLSOptional).
func (s *Server) Handler() http.Handler { return s.mux }

// Serve serves TLS on l until ctx ends, and gives requests under way ten seconds
// then. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	conf := s.cfg.Live.ServerTLSOptional()
	conf.NextProtos = []string{"h2", "http/1.1"}
	srv := &http.Server{
		Handler:   s.mux,
		TLSConfig: conf,
		// Bodies are as long as an image and a slow link need; headers are not.
		ReadHeaderTimeout: 20 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) }, // how to dial the parent is in it
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		srv.Close()
	}
	<-done
	return ctx.Err()
}

// Named tells which artifacts a manifest of a device in the subtree names, now. They
// are pinned in the cache and fetched ahead; nil forgets the device. It returns at
// once, may be repeated, and is what the link's relay calls for each manifest that
// passes. What was named survives a restart.
func (s *Server) Named(device api.DeviceID, refs []oci.Ref) {
	s.cfg.Cache.Pin(device.String(), refs)
	s.fetch.wake()
}

// Run fetches what is named ahead of the children's asking, until ctx ends. It reads
// the cache's pins and writes the cache.
func (s *Server) Run(ctx context.Context) error { return s.fetch.run(ctx) }

// children lets in devices of this CA that are not retired, with a certificate that is
// not past its time.
func (s *Server) children(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			fail(w, api.Errorf(api.Unauthorized, "TLS with a device certificate is needed"))
			return
		}
		id, _, err := identity.PeerIDAt(*r.TLS, s.cfg.Now())
		if err == nil && s.cfg.Live.Refused != nil && s.cfg.Live.Refused(id) { // since its handshake
			fail(w, api.Errorf(api.Forbidden, "device %s is retired", id))
			return
		}
		if err != nil {
			fail(w, &api.Error{Code: api.Unauthorized, Message: "a valid device certificate is needed: " + err.Error(), Remedy: "enrol, or renew the certificate"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// health answers 200 while the process serves; the body lists the cache's warnings.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(struct {
		OK       bool          `json:"ok"`
		Warnings []api.Warning `json:"warnings"`
	}{true, s.cfg.Cache.Warnings()})
}

// maxEnrolments bounds the enrolments on their way at one time.
const maxEnrolments = 32

// enrolments passes /enrol/v1/ to whatever the parent is now. Bodies are sealed
// between box and core; the relay bounds their size and number and reads nothing.
func enrolments(parent oci.Upstream, log *slog.Logger) http.Handler {
	slots := make(chan struct{}, maxEnrolments)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodPost:
			fail(w, api.Errorf(api.NotFound, "no such path"))
			return
		case r.ContentLength > identity.MaxEnrolBody:
			fail(w, api.Errorf(api.TooLarge, "an enrolment has at most %d bytes", identity.MaxEnrolBody))
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			fail(w, &api.Error{Code: api.Unavailable, Message: "too many boxes enrol at once", Remedy: "it is tried again by itself"})
			return
		}
		base, client, err := parent.Endpoint()
		if err != nil {
			fail(w, &api.Error{Code: api.Unavailable, Message: "the relay has no parent now", Remedy: "it is tried again by itself"})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, identity.MaxEnrolBody)
		proxy := httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) {
				p.SetURL(base)
				p.Out.Header.Del("Authorization")
				p.Out.Header.Del("Cookie")
			},
			Transport: client.Transport,
			ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				var large *http.MaxBytesError
				if errors.As(err, &large) {
					fail(w, api.Errorf(api.TooLarge, "an enrolment has at most %d bytes", identity.MaxEnrolBody))
					return
				}
				log.Info("enrolment not passed on", "path", r.URL.Path, "err", err)
				fail(w, &api.Error{Code: api.Unavailable, Message: "the parent cannot be reached", Remedy: "it is tried again by itself"})
			},
		}
		proxy.ServeHTTP(w, r)
	})
}

// fail answers with the one error type; below /v2/ clients show its text.
func fail(w http.ResponseWriter, err *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	if err.Code == api.Unavailable {
		w.Header().Set("Retry-After", "5")
	}
	w.WriteHeader(err.Code.HTTPStatus())
	_ = json.NewEncoder(w).Encode(err)
}
