package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"log/slog"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/tests/wait"
)

// upstream is a parent that may be away; it serves content by digest over plain HTTP.
type upstream struct {
	mu      sync.Mutex
	srv     *httptest.Server
	content map[string][]byte
	asked   map[string]int
	away    bool
}

func newUpstream(t *testing.T) *upstream {
	u := &upstream{content: map[string][]byte{}, asked: map[string]int{}}
	u.srv = httptest.NewServer(u)
	t.Cleanup(u.srv.Close)
	return u
}

func (u *upstream) Endpoint() (*url.URL, *http.Client, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.away {
		return nil, nil, errors.New("not attached")
	}
	base, err := url.Parse(u.srv.URL)
	return base, u.srv.Client(), err
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	digest := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	u.asked[digest]++
	if b, ok := u.content[digest]; ok {
		_, _ = w.Write(b)
		return
	}
	http.NotFound(w, r)
}

func (u *upstream) bundle(s string) oci.Ref {
	raw, digest := oci.BundleManifest([]byte(s))
	u.mu.Lock()
	defer u.mu.Unlock()
	u.content[digest], u.content[oci.Digest([]byte(s))], u.content[oci.Digest(oci.EmptyConfig)] = raw, []byte(s), oci.EmptyConfig
	return oci.Ref{Repo: "default/app", Digest: digest}
}

// newServer runs one; tune changes its settings before it runs.
func newServer(t *testing.T, u *upstream, tune ...func(*Config)) (*Server, *oci.Cache) {
	t.Helper()
	cache, err := oci.Open(oci.Config{Dir: t.TempDir(), Upstream: u, MinBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Live: identity.NewLive(&identity.Identity{}), Cache: cache, Parent: u, Retry: 10 * time.Millisecond}
	for _, change := range tune {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cache.Close()
	})
	return s, cache
}

func TestWhatManifestsNameIsFetchedAhead(t *testing.T) {
	u := newUpstream(t)
	s, cache := newServer(t, u)
	blobs := func() int { n, _ := cache.Size(); return n }

	one, two := u.bundle("one"), u.bundle("two")
	s.Named(api.DeviceID{1}, []oci.Ref{one})
	s.Named(api.DeviceID{2}, []oci.Ref{one})
	wait.Until(t, "the first is here", func() bool { return blobs() == 3 })
	u.mu.Lock()
	if n := u.asked[one.Digest]; n != 1 {
		t.Errorf("asked %d times", n)
	}
	u.away = true
	u.mu.Unlock()

	// A parent that is away is waited for; what is missing there is tried again.
	s.Named(api.DeviceID{1}, []oci.Ref{one, two})
	u.mu.Lock()
	u.away = false
	u.mu.Unlock()
	wait.Until(t, "the second is here", func() bool { return blobs() == 5 })
	_, late := oci.BundleManifest([]byte("late"))
	s.Named(api.DeviceID{1}, []oci.Ref{one, two, {Repo: "default/app", Digest: late}})
	wait.Until(t, "the missing one was asked for", func() bool { u.mu.Lock(); defer u.mu.Unlock(); return u.asked[late] > 0 })
	u.bundle("late")
	wait.Until(t, "the late one is here", func() bool { return blobs() == 7 })

	// A device that names nothing any more pins nothing.
	s.Named(api.DeviceID{1}, nil)
	s.Named(api.DeviceID{2}, nil)
	if list := cache.Pinned(); len(list) != 0 {
		t.Fatalf("still pinned: %v", list)
	}
	cache.SetBudget(1)
	if blobs() != 0 {
		t.Fatal("nothing is needed, and something stays")
	}
}

func TestChildrenNeedACertificate(t *testing.T) {
	s, _ := newServer(t, newUpstream(t))
	for path, status := range map[string]int{"/v2/": 401, "/healthz": 200, "/stream/v1/x": 404, "/": 404, identity.PathTrust: 404} {
		for _, state := range []*tls.ConnectionState{nil, {}} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.TLS = state
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, r)
			if w.Code != status {
				t.Errorf("%s: %d, want %d", path, w.Code, status)
			}
		}
	}
}

func TestEnrolmentsAreBounded(t *testing.T) {
	u := newUpstream(t)
	u.mu.Lock()
	u.away = true
	u.mu.Unlock()
	h := enrolments(u, slog.New(slog.DiscardHandler))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, identity.PathTrust, nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Fatalf("no parent: %d", w.Code)
	}
	u.mu.Lock()
	u.away = false
	u.mu.Unlock()
	r := httptest.NewRequest(http.MethodPost, identity.PathEnrol, strings.NewReader(strings.Repeat("x", identity.MaxEnrolBody+1)))
	r.ContentLength = -1 // does not tell beforehand
	w = httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Fatalf("too large: %d", w.Code)
	}
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Fatal("made without an identity")
	}
}
