// Package server answers: how do people and devices reach the rooms of the core?
//
// It is the hall of the core's wing: it mounts the rooms' routes, knows who asks,
// turns objects into REST with OpenAPI 3.1, streams changes, counts and logs. What a
// kind means is decided in the rooms; they join by Admission, Route and the
// interfaces of Config.
package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/store"
)

// Bounds of requests.
const (
	maxBody      = 1 << 20 // of an API request, in bytes
	maxPage      = 1000    // objects or records of one reply
	defaultPage  = 500
	readDeadline = 30 * time.Second // for the body of an API request
)

// Config is what the hall is given. Store, Access, Log, Now and Metrics are needed.
type Config struct {
	Store  store.Store
	Access *access.Room
	// People knows who has an account; nil leaves those routes out.
	People *people.Room
	// Admission holds the rooms' say in writes, by kind.
	Admission map[string]Admission
	// Removal holds the rooms' say in deletions, by kind.
	Removal map[string]Removal
	// Devices acts on single devices; nil leaves those routes out.
	Devices Devices
	// Inventories tells what devices are made of; nil leaves that route out.
	Inventories Inventories
	// Unlocks answers boxes' challenges; nil leaves that route out.
	Unlocks Unlocks
	// Rollouts carries changes to devices; nil leaves those routes out.
	Rollouts Rollouts
	// Heard tells when devices were last seen, newer than their objects do; may be nil.
	Heard Heard
	// Ledger answers for records; nil leaves those routes out.
	Ledger Ledger
	// Audit writes down and tells who did what; nil leaves that out.
	Audit Audit
	// Finder finds objects; nil leaves the search and its stream of changes out.
	Finder *Finder
	// Billing answers for what tenants owe; nil leaves those routes out.
	Billing Billing
	// Streams opens logs, exec and the like; nil leaves those routes out.
	Streams Streams
	// Routes are the rooms' own.
	Routes []Route
	// Console is the web console, served at / to everybody: files, which ask the API for all else; nil leaves it out.
	Console http.Handler

	Metrics *prometheus.Registry
	Log     *slog.Logger
	Now     func() time.Time
	Version string
}

// Route is a room's own handler, by a pattern of http.ServeMux.
type Route struct {
	Pattern string
	Needs   Needs
	Handler http.Handler
	// Doc is one sentence for the description of the REST API; without it the route is not
	// mentioned there.
	Doc string
}

// Server is an http.Handler for everything that cored serves over HTTPS.
type Server struct {
	cfg     Config
	mux     *http.ServeMux
	api     huma.API
	metrics *metrics
}

// New mounts everything. It panics where two routes clash: that is a fault of the
// build, found by any test that starts the server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux(), metrics: newMetrics(cfg.Metrics)}
	s.api = humago.New(s.mux, s.apiConfig())
	s.objectRoutes()
	s.applyRoute()
	s.recordRoutes()
	s.billingRoutes()
	s.deviceRoutes()
	s.rolloutRoutes()
	s.inventoryRoute()
	s.uncordonRoute()
	s.unlockRoute()
	s.auditRoute()
	s.searchRoutes()
	s.streamRoutes()
	s.aboutRoutes()
	s.peopleRoutes()
	own := []Route{
		{Pattern: "GET /healthz", Handler: http.HandlerFunc(s.healthz), Doc: "Whether the core works: 200 with the text ok, or 503."},
		{Pattern: "GET /metrics", Needs: Needs{access.Observe, Platform}, Handler: promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}), Doc: "Counters and gauges in Prometheus' text format."},
		{Pattern: "GET /schemas/{file}", Handler: http.HandlerFunc(s.schema), Doc: "The JSON Schema of a kind (KIND.json), or of all (tributary.json), for editors."},
	}
	for _, r := range append(own, cfg.Routes...) {
		s.mux.Handle(r.Pattern, s.guard(r.Needs, r.Handler))
		s.describeRoute(r)
	}
	s.mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, &api.Error{Code: api.NotFound, Message: "there is no " + r.Method + " " + r.URL.Path, Remedy: "see /openapi.json for what there is"})
	})
	if cfg.Console != nil {
		s.mux.Handle("/", cfg.Console)
	}
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.observe(s.mux).ServeHTTP(w, r)
}

// OpenAPI returns the description of the REST API, in JSON.
func (s *Server) OpenAPI() ([]byte, error) { return json.MarshalIndent(s.api.OpenAPI(), "", "  ") }

// healthLimit bounds how long healthz waits for the store: who asks has others to ask.
const healthLimit = 5 * time.Second

// healthz tells whether the store can be read: without it nothing works, though the core
// goes on, and devices keep what they have until it is back.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthLimit)
	defer cancel()
	if _, _, _, err := s.cfg.Store.List(ctx, store.Query{Kind: "Tenant", Limit: 1}); err != nil {
		s.cfg.Log.Error("the store cannot be read", "err", err)
		http.Error(w, "the store cannot be read: see that its database runs and can be reached", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// schema serves the JSON Schema of one kind, or of all (tributary.json), for editors.
func (s *Server) schema(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(r.PathValue("file"), ".json")
	var b []byte
	var err error
	if name == "tributary" {
		b, err = api.CombinedSchema()
	} else {
		b, err = api.Schema(name)
	}
	if api.CodeOf(err) == api.Invalid {
		err = &api.Error{Code: api.NotFound, Message: "there is no schema " + name + ".json", Remedy: "tributary.json describes all kinds"}
	}
	if err != nil {
		WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/schema+json")
	_, _ = w.Write(b)
}
