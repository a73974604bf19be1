package registry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	oremote "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/oci"
)

// house runs a registry with two people, of tenants alpha and beta, an admin, and a
// device that is known by a header in place of its certificate.
func house(t *testing.T) (*Registry, *httptest.Server, *lines) {
	t.Helper()
	logs := new(lines)
	reg, err := New(Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(logs, nil)), Authorize: authorize})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	reg.Mount(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		srv.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	return reg, srv, logs
}

// lines are what the registry logs while it answers.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func authorize(r *http.Request, a Access) error {
	if r.Header.Get("X-Device") != "" {
		if a.Action == Ping || a.Action == Pull && a.ByDigest {
			return nil
		}
		return api.Errorf(api.Forbidden, "devices pull by digest")
	}
	token, ok := Token(r)
	tenant := map[string]string{"alpha-token": "alpha", "beta-token": "beta", "admin-token": "*"}[token]
	switch {
	case !ok || tenant == "":
		return api.Errorf(api.Unauthorized, "who are you?")
	case tenant == "*" || a.Action == Ping || a.Tenant() == tenant:
		return nil
	}
	return api.Errorf(api.Forbidden, "not your tenant")
}

func as(token string) crane.Option {
	return crane.WithAuth(&authn.Basic{Username: "me", Password: token})
}

func image(t *testing.T, layers int64, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(2000, layers)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestCranePushesAndDevicesPullByDigest(t *testing.T) {
	reg, srv, logs := house(t)
	host := strings.TrimPrefix(srv.URL, "http://")
	img := image(t, 3, "amd64")
	ref := host + "/alpha/web:v1"
	if err := crane.Push(img, ref, as("alpha-token")); err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	got, err := reg.Resolve(t.Context(), "alpha/web", "v1")
	if err != nil || got != want.String() {
		t.Fatalf("%s %v; pushed %s", got, err, want)
	}
	if back, err := crane.Digest(ref, as("alpha-token")); err != nil || back != got {
		t.Fatal(back, err)
	}
	if tags, err := crane.ListTags(host+"/alpha/web", as("alpha-token")); err != nil || len(tags) != 1 {
		t.Fatal(tags, err)
	}

	// Strangers and other tenants are refused, in the words their clients know.
	for _, o := range []crane.Option{as("wrong"), as("beta-token"), crane.WithAuth(authn.Anonymous)} {
		if _, err := crane.Manifest(ref, o); err == nil {
			t.Error("a stranger pulled")
		}
		if err := crane.Push(img, host+"/alpha/mine:v1", o); err == nil {
			t.Error("a stranger pushed")
		}
	}
	if _, err := crane.Catalog(host, as("alpha-token")); err == nil {
		t.Error("a tenant listed everybody's repositories")
	}
	if list, err := crane.Catalog(host, as("admin-token")); err != nil || len(list) != 1 {
		t.Error(list, err)
	}

	// A device pulls by digest, through the same code that relays use.
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := oci.Open(oci.Config{Dir: t.TempDir(), Upstream: device{u}})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	if err := cache.Prefetch(t.Context(), []oci.Ref{{Repo: "alpha/web", Digest: got}}); err != nil {
		t.Fatal(err)
	}
	if n, _ := cache.Size(); n != 5 {
		t.Fatalf("%d blobs", n)
	}
	for path, status := range map[string]int{"/v2/alpha/web/manifests/v1": 403, "/v2/alpha/web/tags/list": 403, "/v2/_catalog": 403, "/v2/": 200} {
		res, err := device{u}.client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("device asks %s: %d, want %d", path, res.StatusCode, status)
		}
	}
	if strings.Contains(logs.String(), "level=WARN") || strings.Contains(logs.String(), "level=ERROR") {
		t.Errorf("not quiet:\n%s", logs.String())
	}
}

// device adds the header that stands for a certificate here.
type device struct{ base *url.URL }

func (d device) Endpoint() (*url.URL, *http.Client, error) { return d.base, d.client(), nil }
func (d device) client() *http.Client                      { return &http.Client{Transport: d} }
func (d device) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Device", "yes")
	return http.DefaultTransport.RoundTrip(r)
}

func TestMountingNeedsTheRightToRead(t *testing.T) {
	_, srv, _ := house(t)
	host := strings.TrimPrefix(srv.URL, "http://")
	img := image(t, 1, "amd64")
	if err := crane.Push(img, host+"/alpha/secret:v1", as("alpha-token")); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	mount := func(token, query string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/v2/beta/loot/blobs/uploads/?"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("x", token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	for _, q := range []string{"mount=" + d.String() + "&from=alpha/secret", "mount=" + d.String(), "from=alpha/secret&from=beta/loot&mount=" + d.String(), "mount=" + d.String() + "&from=beta/loot&from=alpha/secret"} {
		if got := mount("beta-token", q); got != http.StatusAccepted {
			t.Errorf("%s: %d; an ordinary upload should begin", q, got)
		}
	}
	if got := mount("admin-token", "mount="+d.String()+"&from=alpha/secret"); got != http.StatusCreated {
		t.Errorf("who may read may mount: %d", got)
	}
}

func TestOrasAndBundles(t *testing.T) {
	reg, srv, _ := house(t)
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	bundle := []byte(`{"version":1,"app":"demo","services":[]}`)
	d, size, err := oci.PushBundle(t.Context(), oci.Target{Base: base, Client: srv.Client(), Token: "alpha-token"}, "alpha/demo", "v1", bundle)
	if err != nil || size != int64(len(bundle)) {
		t.Fatal(err)
	}
	put, _, err := reg.PutBundle(t.Context(), "alpha/demo", bundle)
	if err != nil || put != d {
		t.Fatalf("pushed %s, put %s: %v", d, put, err)
	}
	if _, _, err := reg.PutBundle(t.Context(), "alpha/other", bundle); err != nil {
		t.Fatal(err)
	}
	got, err := reg.Bundle(t.Context(), "alpha/other", d)
	if err != nil || !bytes.Equal(got, bundle) {
		t.Fatalf("%s %v", got, err)
	}
	info, err := reg.Inspect(t.Context(), "alpha/demo", d)
	if err != nil || info.ArtifactType != api.BundleType || len(info.Platforms) != 0 {
		t.Fatalf("%+v %v", info, err)
	}
	if _, _, err := oci.PushBundle(t.Context(), oci.Target{Base: base, Client: srv.Client(), Token: "beta-token"}, "alpha/demo", "v1", bundle); api.CodeOf(err) != api.Forbidden {
		t.Fatal(err)
	}
	if _, _, err := oci.PushBundle(t.Context(), oci.Target{Base: base, Client: srv.Client()}, "alpha/demo", "v1", bundle); api.CodeOf(err) != api.Unauthorized {
		t.Fatal(err)
	}

	// The oras library copies any artifact in and out.
	repo, err := oremote.NewRepository(base.Host + "/alpha/model")
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	repo.Client = &auth.Client{Client: srv.Client(), Credential: auth.StaticCredential(base.Host, auth.Credential{Username: "u", Password: "alpha-token"})}
	mem := memory.New()
	layer, err := oras.PushBytes(t.Context(), mem, "application/x-weights", bytes.Repeat([]byte("w"), 100000))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := oras.PackManifest(t.Context(), mem, oras.PackManifestVersion1_1, "application/vnd.example.model", oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := mem.Tag(t.Context(), desc, "v7"); err != nil {
		t.Fatal(err)
	}
	if _, err := oras.Copy(t.Context(), mem, "v7", repo, "v7", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	if back, err := oras.Copy(t.Context(), repo, "v7", memory.New(), "v7", oras.DefaultCopyOptions); err != nil || back.Digest != desc.Digest {
		t.Fatal(back, err)
	}
}

func TestInspectAndPin(t *testing.T) {
	reg, srv, _ := house(t)
	host := strings.TrimPrefix(srv.URL, "http://")
	amd, arm := image(t, 2, "amd64"), image(t, 1, "arm64")
	index := mutate.IndexMediaType(mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}}), types.OCIImageIndex)
	ref, err := name.ParseReference(host+"/alpha/multi:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithAuth(&authn.Basic{Username: "x", Password: "alpha-token"})); err != nil {
		t.Fatal(err)
	}
	pinned, size, err := reg.ResolvePinned(t.Context(), "alpha/multi:v1")
	if err != nil {
		t.Fatal(err)
	}
	repo, digest, err := oci.ParsePinned(pinned)
	if err != nil {
		t.Fatal(err)
	}
	info, err := reg.Inspect(t.Context(), repo, digest)
	if err != nil || len(info.Platforms) != 2 || info.Platforms[0].String() != "linux/amd64" || info.Platforms[1].String() != "linux/arm64" || info.Size != size {
		t.Fatalf("%+v %v", info, err)
	}
	var want int64
	raw, err := index.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	want += int64(len(raw))
	for _, img := range []v1.Image{amd, arm} {
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		n, err := img.Size()
		if err != nil {
			t.Fatal(err)
		}
		want += n + m.Config.Size
		for _, l := range m.Layers {
			want += l.Size
		}
	}
	if size != want {
		t.Fatalf("size %d, want %d", size, want)
	}
	if again, _, err := reg.ResolvePinned(t.Context(), pinned); err != nil || again != pinned {
		t.Fatal(again, err)
	}
	for s, code := range map[string]api.Code{"alpha/multi:v2": api.NotFound, "alpha/none": api.NotFound, "docker.io/nginx": api.Invalid, "Alpha/x": api.Invalid,
		"alpha/multi@sha256:" + strings.Repeat("0", 64): api.NotFound} {
		if _, _, err := reg.ResolvePinned(t.Context(), s); api.CodeOf(err) != code {
			t.Errorf("%s: %v, want %s", s, err, code)
		}
	}
}

func TestCollect(t *testing.T) {
	reg, srv, _ := house(t)
	host := strings.TrimPrefix(srv.URL, "http://")
	keep, drop := image(t, 1, "amd64"), image(t, 2, "amd64")
	ref := host + "/alpha/web:v1"
	for _, img := range []v1.Image{drop, keep} { // the tag moves from one to the other
		if err := crane.Push(img, ref, as("alpha-token")); err != nil {
			t.Fatal(err)
		}
	}
	used, _, err := reg.PutBundle(t.Context(), "alpha/app", []byte(`{"app":"used"}`))
	if err != nil {
		t.Fatal(err)
	}
	unused, _, err := reg.PutBundle(t.Context(), "alpha/app", []byte(`{"app":"unused"}`))
	if err != nil {
		t.Fatal(err)
	}
	opts := GCOptions{Keep: func(_, d string) bool { return d == used }, Before: time.Now().Add(-time.Hour)}
	if got, err := reg.Collect(t.Context(), opts); err != nil || got != (GCResult{}) {
		t.Fatalf("what is young was taken: %+v %v", got, err)
	}
	opts.Before = time.Now().Add(time.Hour)
	opts.DryRun = true
	dry, err := reg.Collect(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.DryRun = false
	got, err := reg.Collect(t.Context(), opts)
	if err != nil || got != dry || got.Manifests != 2 || got.Blobs != 2+3+1 {
		t.Fatalf("dry %+v, real %+v %v", dry, got, err)
	}
	if _, err := crane.Pull(ref, as("alpha-token")); err != nil {
		t.Fatal(err)
	}
	if err := crane.Copy(ref, host+"/alpha/copy:v1", as("alpha-token")); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Bundle(t.Context(), "alpha/app", used); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Bundle(t.Context(), "alpha/app", unused); api.CodeOf(err) != api.NotFound {
		t.Fatal(err)
	}
	// What was collected can be pushed again.
	if err := crane.Push(drop, host+"/alpha/web:old", as("alpha-token")); err != nil {
		t.Fatal(err)
	}

	// Pushes and collection exclude each other.
	if !reg.writes.tryWrite() {
		t.Fatal("nobody may write")
	}
	if _, err := reg.Collect(t.Context(), opts); api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
	reg.writes.written()
	if !reg.writes.tryCollect() {
		t.Fatal("nobody may collect")
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, srv.URL+"/v2/alpha/web/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("x", "alpha-token")
	res, err := http.DefaultClient.Do(req)
	reg.writes.collected()
	if err != nil || res.StatusCode != http.StatusServiceUnavailable {
		t.Fatal(res, err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
}

func TestOddRequests(t *testing.T) {
	_, srv, _ := house(t)
	for _, v := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/v2/", 401}, // docker login learns from this to send the token
		{"GET", "/v2/alpha/web/manifests/v1", 401},
		{"GET", "/v2/a%2f..%2fb/manifests/v1", 400},
		{"GET", "/v2/x/nonsense", 404},
		{"PATCH", "/v2/alpha/web/manifests/v1", 405},
		{"POST", "/v2/_catalog", 405},
		{"CONNECT", "/v2/", 405},
	} {
		req, err := http.NewRequestWithContext(t.Context(), v.method, srv.URL+v.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != v.status {
			t.Errorf("%s %s: %d, want %d", v.method, v.path, res.StatusCode, v.status)
		}
		if res.StatusCode == 401 && !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("%s: no challenge", v.path)
		}
	}
}

func TestToken(t *testing.T) {
	for header, want := range map[string]string{"Bearer abc": "abc", "bearer abc": "abc", "Basic dTpw": "p", "Basic dTo=": "", "Basic !": "", "Digest x": "", "": "", "Bearer ": ""} {
		r := httptest.NewRequest("GET", "/v2/", nil)
		r.Header.Set("Authorization", header)
		if got, ok := Token(r); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v", header, got, ok)
		}
	}
}
