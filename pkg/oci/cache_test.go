package oci

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

const repo = "default/web"

func blobPath(d string) string     { return "/v2/" + repo + "/blobs/" + d }
func manifestPath(d string) string { return "/v2/" + repo + "/manifests/" + d }

func TestManyChildrenOneTransfer(t *testing.T) {
	o := newOrigin(t)
	want := random(1, 3<<20)
	d := o.put(repo, want)
	g := o.stopAt(d, 1<<20)
	c := openCache(t, o)
	kid := newChild(t, c)

	// A first child reads bytes while the rest has not left the parent.
	res, err := kid.http.Get(kid.base + blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	early := make([]byte, 512<<10)
	if _, err := io.ReadFull(res.Body, early); err != nil || !bytes.Equal(early, want[:len(early)]) {
		t.Fatalf("bytes that have arrived are not served yet: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			from := i * 1000 // they resume at different places
			res, b := kid.get(blobPath(d), "Range", fmt.Sprintf("bytes=%d-", from))
			if res.StatusCode != http.StatusPartialContent || !bytes.Equal(b, want[from:]) {
				t.Errorf("child %d: status %d, %d bytes", i, res.StatusCode, len(b))
			}
		})
	}
	g.release()
	rest, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(rest, want[len(early):]) {
		t.Fatalf("the rest: %d bytes, %v", len(rest), err)
	}
	wg.Wait()
	if _, b := kid.get(blobPath(d)); !bytes.Equal(b, want) {
		t.Fatal("the complete blob differs")
	}
	if got := o.sent.Load(); got != int64(len(want)) {
		t.Fatalf("%d bytes crossed the uplink for a blob of %d", got, len(want))
	}
	if n := c.Counters(); n.FetchedBytes != uint64(len(want)) || n.Fetches != 1 {
		t.Fatalf("counters: %+v", n)
	}
}

func TestTransferGoesOnWhereTheLinkBroke(t *testing.T) {
	o := newOrigin(t)
	want := random(2, 1<<20)
	d := o.put(repo, want)
	o.stop(d, &gate{at: 600 << 10, abrupt: true})
	kid := newChild(t, openCache(t, o))
	if _, b := kid.get(blobPath(d)); !bytes.Equal(b, want) {
		t.Fatal("content differs")
	}
	if got := o.sent.Load(); got > int64(len(want))+64<<10 {
		t.Fatalf("%d bytes for a blob of %d", got, len(want))
	}
	if list := o.requests(); len(list) != 2 || !strings.Contains(list[1], "bytes=") {
		t.Fatalf("requests: %q", list)
	}
}

func TestTornPartialIsFoundAndFetchedAnew(t *testing.T) {
	want := random(3, 400<<10)
	for name, left := range map[string][]byte{
		"zeros":    make([]byte, 200<<10),
		"too long": random(4, 500<<10),
		"whole":    want,
		"half":     want[:200<<10],
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t)
			d := o.put(repo, want)
			c := openCache(t, o)
			if err := os.WriteFile(c.shelf.path("partial", d), left, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.have(t.Context(), target{RouteBlob, repo, d, -1}); err != nil {
				t.Fatal(err)
			}
			kid := newChild(t, c)
			if _, b := kid.get(blobPath(d)); !bytes.Equal(b, want) {
				t.Fatal("content differs")
			}
			if name == "whole" && o.sent.Load() != 0 {
				t.Fatalf("%d bytes fetched though all were here", o.sent.Load())
			}
			if name == "half" && o.sent.Load() != int64(len(want)-len(left)) {
				t.Fatalf("%d bytes fetched, %d were missing", o.sent.Load(), len(want)-len(left))
			}
		})
	}
}

func TestHostileParentIsFoundByDigest(t *testing.T) {
	o := newOrigin(t)
	c := openCache(t, o)
	kid := newChild(t, c)
	good := random(5, 1<<20)
	d := o.put(repo, good)
	evil := bytes.Clone(good)
	evil[100] ^= 1
	o.set(func() { o.wrong[d] = evil })

	res, b, err := kid.do(http.MethodGet, blobPath(d))
	// Either all of it was here and found wrong before the answer began, or the answer
	// is cut before its end.
	if before := err == nil && res.StatusCode == http.StatusBadGateway; !before {
		if err == nil || len(b) > len(good)-holdBack {
			t.Fatalf("a child got %d of %d wrong bytes and no cut (%v)", len(b), len(good), err)
		}
		if res.ContentLength != int64(len(good)) {
			t.Fatalf("length %d", res.ContentLength)
		}
	}
	if c.shelf.has(d) || c.shelf.partialSize(d) != 0 {
		t.Fatal("wrong bytes were kept")
	}
	if w := c.Warnings(); len(w) != 1 || w[0].Name != WarnCorrupt {
		t.Fatalf("warnings: %v", w)
	}
	asked := len(o.requests())
	if res, _ := kid.get(blobPath(d)); res.StatusCode != http.StatusBadGateway {
		t.Fatalf("asked again: status %d", res.StatusCode)
	}
	if len(o.requests()) != asked {
		t.Fatal("each child's question crosses the uplink again")
	}

	// A small blob is never shown unverified; a manifest neither.
	for _, kind := range []string{"blobs", "manifests"} {
		small := o.put(repo, []byte(`{"small":"`+kind+`"}`))
		o.set(func() { o.wrong[small] = []byte(`{"evil":"` + kind + `"}`) })
		if res, b := kid.get("/v2/" + repo + "/" + kind + "/" + small); res.StatusCode != http.StatusBadGateway || bytes.Contains(b, []byte("evil")) {
			t.Fatalf("%s: status %d body %s", kind, res.StatusCode, b)
		}
	}

	// Longer than announced, or of another size than the manifest says.
	e := o.put(repo, random(6, 1000))
	if err := c.have(t.Context(), target{RouteBlob, repo, e, 999}); err == nil {
		t.Fatal("a size that differs from the descriptor's was accepted")
	}

	// When the parent comes to its senses the warning goes.
	o.set(func() { clear(o.wrong) })
	c.mu.Lock()
	clear(c.failures)
	c.mu.Unlock()
	if _, b := kid.get(blobPath(d)); !bytes.Equal(b, good) {
		t.Fatal("content differs")
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Fatalf("warnings: %v", w)
	}
}

func TestResumeFromAnotherBytesCutsReaders(t *testing.T) {
	// The parent sends a wrong first half, breaks, and has no ranges any more: the
	// file begins anew, and a child that saw the wrong half must not get the right end.
	o := newOrigin(t)
	good := random(7, 1<<20)
	d := o.put(repo, good)
	var half sync.Once
	evil := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(good)))
		first := false
		half.Do(func() { first = true })
		if first {
			_, _ = w.Write(random(8, 512<<10))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(good)
	})
	o.set(func() { o.instead = evil })
	kid := newChild(t, openCache(t, o))
	_, b, err := kid.do(http.MethodGet, blobPath(d))
	if err == nil && !bytes.Equal(b, good) {
		t.Fatal("a child took a mixture for the whole")
	}
}

func TestParentAway(t *testing.T) {
	o := newOrigin(t)
	d := o.put(repo, random(9, 100<<10))
	o.set(func() { o.away = true })
	c := openCache(t, o, func(cfg *Config) { cfg.ChildWait = 50 * time.Millisecond })
	kid := newChild(t, c)
	res, b := kid.get(blobPath(d))
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !bytes.Contains(b, []byte("UNAVAILABLE")) {
		t.Fatalf("status %d, %v: %s", res.StatusCode, res.Header, b)
	}
	wait.Until(t, "nobody waits for the flight any more", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.flights) == 0 })

	// A patient one is served when the parent returns, through Prefetch as well.
	done := make(chan error, 1)
	go func() { done <- c.have(t.Context(), target{RouteBlob, repo, d, -1}) }()
	wait.Until(t, "the fetch waits", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.flights) == 1 })
	o.set(func() { o.away = false })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	o.set(func() { o.away = true })
	if res, _ := kid.get(blobPath(d)); res.StatusCode != 200 {
		t.Fatalf("what is here is not served while the parent is away: %d", res.StatusCode)
	}
}

func TestOnlyDigestsAndOnlyReading(t *testing.T) {
	c := openCache(t, newOrigin(t))
	kid := newChild(t, c)
	d := Digest([]byte("x"))
	for _, v := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/", 200, ""},
		{"GET", "/v2/default/web/manifests/latest", 400, "UNSUPPORTED"},
		{"GET", "/v2/default/web/tags/list", 404, "UNSUPPORTED"},
		{"GET", "/v2/_catalog", 404, "UNSUPPORTED"},
		{"PUT", "/v2/default/web/manifests/latest", 405, "UNSUPPORTED"},
		{"POST", "/v2/default/web/blobs/uploads/", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/default/web/blobs/" + d, 405, "UNSUPPORTED"},
		{"GET", "/v2/default/web/blobs/" + d, 404, "BLOB_UNKNOWN"},
		{"HEAD", "/v2/default/web/blobs/" + d, 404, ""},
		{"GET", "/v2/default/web/manifests/" + d, 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/default/web/blobs/sha256:../../../etc/passwd", 404, "UNSUPPORTED"},
		{"GET", "/v2/default%2Fweb/blobs/" + d, 400, "NAME_INVALID"},
		{"GET", "/v2/Default/web/blobs/" + d, 400, "NAME_INVALID"},
		{"GET", "/v2/default/web/blobs/sha256:" + strings.Repeat("A", 64), 400, "NAME_INVALID"},
	} {
		res, b, err := kid.do(v.method, v.path)
		if err != nil || res.StatusCode != v.status || !bytes.Contains(b, []byte(v.code)) {
			t.Errorf("%s %s: %v %v %s; want %d %s", v.method, v.path, err, res.Status, b, v.status, v.code)
		}
	}
}

func TestRepositoriesAreKeptApart(t *testing.T) {
	o := newOrigin(t)
	secret := random(10, 200<<10)
	d := o.put("a/one", secret)
	other := o.put("b/two", []byte("public"))
	c := openCache(t, o)
	kid := newChild(t, c)
	if res, _ := kid.get("/v2/a/one/blobs/" + d); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	if res, b := kid.get("/v2/b/two/blobs/" + d); res.StatusCode != 404 {
		t.Fatalf("a digest is served under a repository that does not hold it: %d %d bytes", res.StatusCode, len(b))
	}
	// Nor while it arrives by another repository's right.
	e := o.put("a/one", random(11, 200<<10))
	g := o.stopAt(e, 100<<10)
	gone := make(chan struct{})
	go func() { defer close(gone); _, _, _ = kid.do("GET", "/v2/a/one/blobs/"+e) }()
	wait.For(t, "the first half", g.gotto)
	if res, _ := kid.get("/v2/b/two/blobs/" + e); res.StatusCode != 404 {
		t.Fatal(res.Status)
	}
	g.release()
	wait.For(t, "the second half", gone)
	// The parent is asked once; afterwards the pair is known without it.
	o.put("b/two", secret)
	c.mu.Lock()
	clear(c.failures) // the refusal above is remembered for a moment
	c.mu.Unlock()
	sent := o.sent.Load()
	if res, _ := kid.get("/v2/b/two/blobs/" + d); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	if o.sent.Load() != sent {
		t.Fatal("the digest crossed the uplink a second time")
	}
	o.set(func() { o.away = true })
	if res, _ := kid.get("/v2/b/two/blobs/" + d); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	// A restart remembers, and gives nothing more.
	c.Close()
	again := newChild(t, openCache(t, o, func(cfg *Config) { cfg.Dir = c.cfg.Dir; cfg.ChildWait = 50 * time.Millisecond }))
	if res, _ := again.get("/v2/b/two/blobs/" + d); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	if res, _ := again.get("/v2/c/three/blobs/" + d); res.StatusCode != 503 {
		t.Fatal(res.Status)
	}
	_ = other
}

func TestHeadIsNoTransfer(t *testing.T) {
	o := newOrigin(t)
	want := random(12, 300<<10)
	d := o.put(repo, want)
	kid := newChild(t, openCache(t, o))
	res, _, err := kid.do("HEAD", blobPath(d))
	if err != nil || res.StatusCode != 200 || res.ContentLength != int64(len(want)) || o.sent.Load() != 0 {
		t.Fatalf("%v %v length %d, %d bytes crossed", err, res.Status, res.ContentLength, o.sent.Load())
	}
	m, _ := o.image(repo, random(13, 1000))
	res, _, err = kid.do("HEAD", manifestPath(m))
	if err != nil || res.StatusCode != 200 || res.Header.Get("Content-Type") != TypeManifest || res.Header.Get("Docker-Content-Digest") != m {
		t.Fatalf("%v %v %v", err, res.Status, res.Header)
	}
}

func TestPrefetchWalksFromIndexToLayers(t *testing.T) {
	o := newOrigin(t)
	amd, amdBlobs := o.image(repo, random(14, 1000), random(15, 200<<10))
	arm, armBlobs := o.image(repo, random(16, 1000))
	idx := o.index(repo,
		Descriptor{MediaType: TypeManifest, Digest: amd, Platform: &Platform{OS: "linux", Architecture: "amd64"}},
		Descriptor{MediaType: TypeManifest, Digest: arm, Platform: &Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}},
		Descriptor{MediaType: TypeManifest, Digest: Digest([]byte("nobody pushed it")), Platform: &Platform{OS: "linux", Architecture: "s390x"}})

	all := openCache(t, o)
	if err := all.Prefetch(t.Context(), []Ref{{Repo: repo, Digest: idx}}); err != nil {
		t.Fatal(err)
	}
	one := openCache(t, o, func(cfg *Config) { cfg.Platforms = []Platform{{OS: "linux", Architecture: "arm64"}} })
	if err := one.Prefetch(t.Context(), []Ref{{Repo: repo, Digest: idx}}); err != nil {
		t.Fatal(err)
	}
	has := func(c *Cache, list ...string) (n int) {
		for _, d := range list {
			if c.shelf.has(d) {
				n++
			}
		}
		return n
	}
	if has(all, idx, amd, arm) != 3 || has(all, amdBlobs...) != 3 || has(all, armBlobs...) != 2 {
		t.Fatal("not all is here")
	}
	if has(one, idx, arm) != 2 || has(one, armBlobs...) != 2 || has(one, amd, amdBlobs[1], amdBlobs[2]) != 0 {
		t.Fatal("not exactly the asked platform is here")
	}
	before := o.sent.Load()
	if err := all.Prefetch(t.Context(), []Ref{{Repo: repo, Digest: idx}, {Repo: repo, Digest: amd}}); err != nil {
		t.Fatal(err)
	}
	if o.sent.Load() != before {
		t.Fatal("what was here was fetched again")
	}
	err := all.Prefetch(t.Context(), []Ref{{Repo: repo, Digest: Digest([]byte("missing"))}})
	if api.CodeOf(err) != api.NotFound {
		t.Fatalf("missing artifact: %v", err)
	}
	// A named ref vouches for its repository even while the parent is away.
	o.set(func() { o.away = true })
	if err := all.Prefetch(t.Context(), []Ref{{Repo: "other/name", Digest: amd}}); err != nil {
		t.Fatal(err)
	}
	if res, _ := newChild(t, all).get("/v2/other/name/blobs/" + amdBlobs[1]); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
}

func TestChainOfRelaysAndTheirOwnApps(t *testing.T) {
	o := newOrigin(t)
	want := random(17, 700<<10)
	img, blobs := o.image(repo, want)
	top := openCache(t, o)
	topUp := newChild(t, top)
	low := openCache(t, upstreamAt(topUp))
	kid := newChild(t, low)
	for _, d := range blobs {
		kid.get(blobPath(d))
	}
	if res, _ := kid.get(manifestPath(img)); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	before := o.sent.Load()
	// The relay's own apps come from the same copy.
	base, client, err := top.Upstream().Endpoint()
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Get(base.JoinPath(blobPath(blobs[1])).String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(b, want) || res.ContentLength != int64(len(want)) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if o.sent.Load() != before {
		t.Fatal("the relay's own app crossed the uplink again")
	}
}

func TestScrubDropsWhatRotted(t *testing.T) {
	o := newOrigin(t)
	a, b := o.put(repo, random(18, 200<<10)), o.put(repo, random(19, 200<<10))
	c := openCache(t, o)
	for _, d := range []string{a, b} {
		if err := c.have(t.Context(), target{RouteBlob, repo, d, -1}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(c.shelf.path("blobs", a), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rot"), 5000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	n, err := c.Scrub(t.Context())
	if err != nil || n != 1 || c.shelf.has(a) || !c.shelf.has(b) {
		t.Fatalf("%d dropped, %v", n, err)
	}
	if _, got := newChild(t, c).get(blobPath(a)); Digest(got) != a {
		t.Fatal("not fetched anew")
	}
}

func TestPullArtifact(t *testing.T) {
	o := newOrigin(t)
	bundle := []byte(`{"version":1,"app":"demo"}`)
	o.put(repo, EmptyConfig)
	o.put(repo, bundle)
	raw, d := BundleManifest(bundle)
	o.put(repo, raw)
	got, err := PullArtifact(t.Context(), o, repo, d, 1<<20)
	if err != nil || !bytes.Equal(got, bundle) {
		t.Fatalf("%s %v", got, err)
	}
	if _, err := PullArtifact(t.Context(), o, repo, d, 5); api.CodeOf(err) != api.TooLarge {
		t.Fatal(err)
	}
	if _, err := PullArtifact(t.Context(), o, repo, Digest([]byte("no")), 5); api.CodeOf(err) != api.NotFound {
		t.Fatal(err)
	}
	o.set(func() { o.wrong[Digest(bundle)] = []byte(`{"version":1,"app":"evil"}`) })
	if _, err := PullArtifact(t.Context(), o, repo, d, 1<<20); api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
	o.set(func() { o.away = true })
	if _, err := PullArtifact(t.Context(), o, repo, d, 1<<20); api.CodeOf(err) != api.Unavailable {
		t.Fatal(err)
	}
	if _, err := PullArtifact(t.Context(), o, "Bad", d, 1<<20); api.CodeOf(err) != api.Invalid {
		t.Fatal(err)
	}
}

func TestParentMayNotRedirect(t *testing.T) {
	o := newOrigin(t)
	d := o.put(repo, []byte("x"))
	var hit atomic.Bool
	elsewhere := newChild(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit.Store(true) }))
	o.set(func() { o.instead = http.RedirectHandler(elsewhere.base, http.StatusTemporaryRedirect) })
	_, err := pull(t.Context(), o, target{RouteBlob, repo, d, -1}, 10)
	if err == nil || hit.Load() {
		t.Fatalf("followed a parent's redirect: %v", err)
	}
}

func TestOpenRemovesStrangers(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "blobs", ".tmp-1")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openCache(t, newOrigin(t), func(cfg *Config) { cfg.Dir = dir })
	if _, err := os.Stat(stray); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := Open(Config{}); err == nil {
		t.Fatal("a cache without a folder was opened")
	}
}
