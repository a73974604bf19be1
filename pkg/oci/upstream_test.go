package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// origin is a parent's registry with knobs for everything that goes wrong on a link.
type origin struct {
	t    testing.TB
	srv  *httptest.Server
	sent atomic.Int64 // body bytes written

	mu      sync.Mutex
	content map[string][]byte          // digest -> bytes
	repos   map[string]map[string]bool // repo -> digests
	wrong   map[string][]byte          // digest -> what is sent instead
	gate    map[string]*gate           // digest -> where to stop
	asked   []string                   // method, path and range of every request
	away    bool
	instead http.Handler // answers everything, when set
}

// gate stops a body at a byte until it is opened.
type gate struct {
	at     int
	open   chan struct{}
	gotto  chan struct{} // closed when the body has reached it
	abrupt bool          // cuts the connection there instead, once
	once   sync.Once
}

func newOrigin(t testing.TB) *origin {
	o := &origin{t: t, content: map[string][]byte{}, repos: map[string]map[string]bool{}, wrong: map[string][]byte{}, gate: map[string]*gate{}}
	o.srv = httptest.NewServer(o)
	t.Cleanup(o.srv.Close)
	return o
}

func (o *origin) Endpoint() (*url.URL, *http.Client, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away {
		return nil, nil, errors.New("no parent attached")
	}
	u, err := url.Parse(o.srv.URL)
	return u, o.srv.Client(), err
}

func (o *origin) set(do func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	do()
}

func (o *origin) put(repo string, b []byte) string {
	d := Digest(b)
	o.set(func() {
		o.content[d] = b
		if o.repos[repo] == nil {
			o.repos[repo] = map[string]bool{}
		}
		o.repos[repo][d] = true
	})
	return d
}

func (o *origin) stopAt(digest string, at int) *gate { return o.stop(digest, &gate{at: at}) }

func (o *origin) stop(digest string, g *gate) *gate {
	g.open, g.gotto = make(chan struct{}), make(chan struct{})
	o.set(func() { o.gate[digest] = g })
	o.t.Cleanup(func() { g.once.Do(func() { close(g.open) }) })
	return g
}

func (g *gate) release() { g.once.Do(func() { close(g.open) }) }

func (o *origin) requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.asked...)
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, err := ParseRequest(r)
	o.mu.Lock()
	if h := o.instead; h != nil {
		o.mu.Unlock()
		h.ServeHTTP(w, r)
		return
	}
	o.asked = append(o.asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
	b, known := o.content[route.Reference]
	known = known && o.repos[route.Repo][route.Reference]
	if wrong, ok := o.wrong[route.Reference]; ok {
		b = wrong
	}
	g := o.gate[route.Reference]
	o.mu.Unlock()
	if err != nil || !known {
		WriteError(w, http.StatusNotFound, "BLOB_UNKNOWN", "no such thing")
		return
	}
	if route.Kind == RouteManifest {
		w.Header().Set("Content-Type", TypeManifest)
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeContent(sentCounter{w, &o.sent}, r, "", time.Time{}, &gated{Reader: bytes.NewReader(b), g: g, w: w})
}

type sentCounter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c sentCounter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b))) // before whoever gets them can look
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n - len(b)))
	return n, err
}

// gated reads up to the gate, flushes what went out, and waits there.
type gated struct {
	*bytes.Reader
	g *gate
	w http.ResponseWriter
}

func (r *gated) Read(p []byte) (int, error) {
	if r.g == nil {
		return r.Reader.Read(p)
	}
	pos := int(r.Size()) - r.Len()
	if pos == r.g.at {
		r.w.(http.Flusher).Flush()
		select {
		case <-r.g.gotto:
		default:
			close(r.g.gotto)
			if r.g.abrupt {
				panic(http.ErrAbortHandler)
			}
		}
		if !r.g.abrupt {
			<-r.g.open
		}
	} else if pos < r.g.at {
		p = p[:min(len(p), r.g.at-pos)]
	}
	return r.Reader.Read(p)
}

// random gives n incompressible bytes that depend on the seed alone.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	src := rand.NewPCG(seed, 1)
	for i := 0; i < n; i += 8 {
		v := src.Uint64()
		for j := 0; j < 8 && i+j < n; j++ {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

// image puts an image of one config and layers into the origin.
func (o *origin) image(repo string, layers ...[]byte) (digest string, blobs []string) {
	config := []byte(`{"os":"linux","architecture":"amd64"}`)
	desc := func(mt string, b []byte) Descriptor {
		d := o.put(repo, b)
		blobs = append(blobs, d)
		return Descriptor{MediaType: mt, Digest: d, Size: int64(len(b))}
	}
	c := desc("application/vnd.oci.image.config.v1+json", config)
	m := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
	}{2, TypeManifest, c, nil}
	for _, l := range layers {
		m.Layers = append(m.Layers, desc("application/vnd.oci.image.layer.v1.tar+gzip", l))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		o.t.Fatal(err)
	}
	return o.put(repo, raw), blobs
}

// index puts an index of manifests into the origin.
func (o *origin) index(repo string, list ...Descriptor) string {
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": TypeIndex, "manifests": list})
	if err != nil {
		o.t.Fatal(err)
	}
	return o.put(repo, raw)
}

func openCache(t testing.TB, up Upstream, change ...func(*Config)) *Cache {
	t.Helper()
	cfg := Config{Dir: t.TempDir(), Upstream: up, MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, ChildWait: wait.Limit, KeepFree: 1}
	for _, f := range change {
		f(&cfg)
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// child is a downstream client of a cache over a real socket.
type child struct {
	t    testing.TB
	base string
	http *http.Client
}

func newChild(t testing.TB, h http.Handler) *child {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return &child{t, srv.URL, srv.Client()}
}

func (c *child) do(method, path string, header ...string) (*http.Response, []byte, error) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, c.base+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

func (c *child) get(path string, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	res, b, err := c.do(http.MethodGet, path, header...)
	if err != nil {
		c.t.Fatalf("GET %s: %v", path, err)
	}
	return res, b
}
