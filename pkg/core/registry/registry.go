// Package registry answers: where do images and app bundles live, and who may push
// or pull which?
//
// It is the OCI registry of the core: distribution's handlers on a folder, behind an
// authorization hook. People use their ordinary clients (docker, oras, crane) with a
// token as the password; devices pull by digest with their certificate.
package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/oci"
)

// Action is what a request wants to do.
type Action string

// The actions.
const (
	Ping   Action = "ping"   // GET /v2/: is anybody there, and am I known?
	Pull   Action = "pull"   // read manifests, blobs, tags of Repo
	Push   Action = "push"   // write blobs, manifests, tags of Repo
	Delete Action = "delete" // remove a tag, manifest or blob of Repo
	List   Action = "list"   // the names of all repositories
)

// Access is one thing that a request wants. One request may want two: a push that
// mounts a blob of another repository also wants to pull from that.
type Access struct {
	Action Action
	Repo   string // "" for Ping and List
	// ByDigest tells that a Pull names its content by digest; devices may do no other.
	ByDigest bool
}

// Tenant is the first component of the repository's name, its owner.
func (a Access) Tenant() string {
	tenant, _, ok := strings.Cut(a.Repo, "/")
	if !ok {
		return ""
	}
	return tenant
}

// Authorizer says whether a request may have an access: nil, or an *api.Error of code
// Unauthorized (asks the client for credentials) or Forbidden. It is called on every
// request, from many goroutines.
type Authorizer func(r *http.Request, a Access) error

// Config configures a Registry; all fields but Log are needed.
type Config struct {
	Dir       string
	Log       *slog.Logger
	Authorize Authorizer
}

// Registry is the core's registry. All methods are safe for concurrent use.
type Registry struct {
	cfg    Config
	app    *handlers.App
	driver driver.StorageDriver
	store  distribution.Namespace
	// writes is held shared by requests that write and alone by garbage collection.
	writes turns
}

// New opens or creates the registry in cfg.Dir. Close it to end its background work
// (unfinished uploads older than a week are removed once a day).
//
// distribution logs through logrus's process-wide logger and offers no other way in;
// New turns that logger to cfg.Log.
func New(cfg Config) (reg *Registry, err error) {
	if cfg.Dir == "" || cfg.Authorize == nil {
		return nil, errors.New("registry: a folder and an authorizer are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	secret, err := uploadSecret(filepath.Join(cfg.Dir, "upload.secret"))
	if err != nil {
		return nil, err
	}
	divertLogs(cfg.Log)
	// handlers.NewApp answers a wrong configuration by panic.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("registry in %s: %v", cfg.Dir, p)
		}
	}()
	conf := &configuration.Configuration{
		Version: configuration.CurrentVersion,
		Storage: configuration.Storage{
			"filesystem": configuration.Parameters{"rootdirectory": cfg.Dir},
			"delete":     configuration.Parameters{"enabled": true},
			"redirect":   configuration.Parameters{"disable": true},
		},
	}
	conf.HTTP.RelativeURLs = true // right behind any name that a client came by
	conf.HTTP.Secret = secret
	conf.Catalog.MaxEntries = 1000
	conf.Tags.MaxTags = 1000
	ctx := context.Background()
	d := filesystem.New(filesystem.DriverParameters{RootDirectory: cfg.Dir, MaxThreads: 100})
	store, err := storage.NewRegistry(ctx, d, storage.EnableDelete)
	if err != nil {
		return nil, err
	}
	return &Registry{cfg: cfg, app: handlers.NewApp(ctx, conf), driver: d, store: store, writes: turns{path: filepath.Join(cfg.Dir, "writes.lock")}}, nil
}

// Close ends background work. Requests under way are not waited for.
func (g *Registry) Close() error { return g.app.Shutdown() }

// uploadSecret signs the state of uploads that clients carry between requests; kept,
// so that an upload survives a restart.
func uploadSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil && len(b) == 64 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", err
	}
	text := hex.EncodeToString(secret)
	return text, atomicfile.Write(path, []byte(text), 0o600)
}

// Mount serves the registry on a mux under /v2/.
func (g *Registry) Mount(mux *http.ServeMux) {
	mux.Handle("/v2/", g)
	mux.Handle("/v2", g)
}

// ServeHTTP authorizes and serves one request.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, err := oci.ParseRequest(r)
	if err != nil {
		status, code := http.StatusBadRequest, "NAME_INVALID"
		if api.CodeOf(err) == api.NotFound {
			status, code = http.StatusNotFound, "UNSUPPORTED"
		}
		oci.WriteError(w, status, code, err.Error())
		return
	}
	access, err := wanted(r.Method, route)
	if err != nil {
		oci.WriteError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", err.Error())
		return
	}
	if err := g.cfg.Authorize(r, access); err != nil {
		deny(w, err)
		return
	}
	if route.Kind == oci.RouteUpload && r.Method == http.MethodPost {
		r = g.checkMount(r)
	}
	if access.Action == Push || access.Action == Delete {
		if !g.writes.tryWrite() {
			w.Header().Set("Retry-After", "5")
			oci.WriteError(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the registry collects its garbage; try again")
			return
		}
		defer g.writes.written()
	}
	if access.Action == Delete && access.ByDigest {
		if err := g.mayRemove(r.Context(), route); err != nil {
			deny(w, err)
			return
		}
	}
	if route.Kind == oci.RouteReferrers { // not served by distribution; an empty list is a valid answer
		oci.WriteError(w, http.StatusNotFound, "UNSUPPORTED", "referrers are not kept here")
		return
	}
	r.URL.Path = route.Path() // what was authorized is what is served
	g.app.ServeHTTP(w, r)
}

// wanted is the access that a method on a route needs.
func wanted(method string, route oci.Route) (Access, error) {
	read := method == http.MethodGet || method == http.MethodHead
	a := Access{Repo: route.Repo, ByDigest: route.ByDigest()}
	switch {
	case route.Kind == oci.RouteBase && read:
		return Access{Action: Ping}, nil
	case route.Kind == oci.RouteCatalog && read:
		return Access{Action: List}, nil
	case route.Kind == oci.RouteUpload && (method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch || method == http.MethodDelete || read):
		a.Action, a.ByDigest = Push, false
		return a, nil
	case read && (route.Kind == oci.RouteManifest || route.Kind == oci.RouteBlob || route.Kind == oci.RouteTags || route.Kind == oci.RouteReferrers):
		a.Action = Pull
		return a, nil
	case method == http.MethodPut && route.Kind == oci.RouteManifest:
		a.Action = Push
		return a, nil
	case method == http.MethodDelete && (route.Kind == oci.RouteManifest || route.Kind == oci.RouteBlob):
		a.Action = Delete
		return a, nil
	}
	return a, api.Errorf(api.Invalid, "%s is not possible here", method)
}

// checkMount drops a cross-repository mount that the requester may not read from;
// the registry then begins an ordinary upload, as the distribution spec asks.
func (g *Registry) checkMount(r *http.Request) *http.Request {
	q := r.URL.Query()
	from := q.Get("from")
	if !q.Has("mount") && !q.Has("from") {
		return r
	}
	if len(q["from"]) == 1 && len(q["mount"]) == 1 && oci.CheckRepo(from) == nil &&
		g.cfg.Authorize(r, Access{Action: Pull, Repo: from, ByDigest: true}) == nil {
		return r
	}
	q.Del("mount")
	q.Del("from")
	r = r.Clone(r.Context())
	r.URL.RawQuery = q.Encode()
	return r
}

// deny answers for a refused access. Who is not known is asked for a password: that
// is how docker, crane and oras learn to send the token.
func deny(w http.ResponseWriter, err error) {
	if api.CodeOf(err) == api.Unauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="tributary", charset="UTF-8"`)
		oci.WriteError(w, http.StatusUnauthorized, "UNAUTHORIZED", "log in with any user name and a token as the password")
		return
	}
	var told *api.Error
	message := "you may not"
	if errors.As(err, &told) {
		message = told.Message
		if told.Remedy != "" {
			message += "; " + told.Remedy
		}
	}
	code := "DENIED"
	if api.CodeOf(err) == api.NotFound {
		code = "NAME_UNKNOWN"
	}
	oci.WriteError(w, api.CodeOf(err).HTTPStatus(), code, message)
}

// Token reads the token that a person's client sent: a bearer token, or the password
// of Basic authentication with any user name.
func Token(r *http.Request) (token string, ok bool) {
	if _, password, ok := r.BasicAuth(); ok && password != "" {
		return password, true
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", false
	}
	return token, true
}
