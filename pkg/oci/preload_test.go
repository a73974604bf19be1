package oci

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// layout writes a repository's image layout that holds one bundle, and gives the bundle's digest.
func layout(t *testing.T, folder, repo string, bundle []byte) string {
	t.Helper()
	dir := filepath.Join(folder, filepath.FromSlash(repo))
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	manifest, digest := BundleManifest(bundle)
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []Descriptor{{MediaType: TypeManifest, Digest: digest, Size: int64(len(manifest))}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		filepath.Join(dir, "oci-layout"): []byte(`{"imageLayoutVersion":"1.0.0"}`), filepath.Join(dir, "index.json"): index,
		filepath.Join(blobs, digest[7:]): manifest, filepath.Join(blobs, Digest(bundle)[7:]): bundle, filepath.Join(blobs, Digest(EmptyConfig)[7:]): EmptyConfig,
	} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return digest
}

// What the folder holds is not asked of the parent, and is there without one; all else is the parent's.
func TestPreload(t *testing.T) {
	o := newOrigin(t)
	folder := t.TempDir()
	here, there := []byte(`{"here":1}`), []byte(`{"there":2}`)
	digest := layout(t, folder, "default/web", here)
	up := Preload(folder, o)
	get := func(repo, digest string) (string, error) {
		b, err := PullArtifact(t.Context(), up, repo, digest, 1<<20)
		return string(b), err
	}
	for _, away := range []bool{false, true} {
		o.set(func() { o.away = away })
		if got, err := get("default/web", digest); err != nil || got != string(here) {
			t.Errorf("parent away: %v: %q, %v", away, got, err)
		}
	}
	o.set(func() {
		if len(o.asked) > 0 {
			t.Errorf("the parent was asked: %v", o.asked)
		}
	})
	if _, err := get("other/web", digest); err == nil {
		t.Error("served by another repository's name")
	}
	if _, err := get("default/web", Digest(there)); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("a parent that is away: %v", err)
	}
	o.set(func() { o.away = false })
	manifest, far := BundleManifest(there)
	for _, b := range [][]byte{manifest, there, EmptyConfig} {
		o.put("default/web", b)
	}
	if got, err := get("default/web", far); err != nil || got != string(there) {
		t.Errorf("from the parent: %q, %v", got, err)
	}
	if Preload(filepath.Join(folder, "none"), o) != Upstream(o) || Preload("", o) != Upstream(o) {
		t.Error("without a folder nothing stands before the parent")
	}
}

// A folder that was damaged after it was checked gives no wrong bytes.
func TestPreloadDamaged(t *testing.T) {
	o := newOrigin(t)
	o.set(func() { o.away = true })
	folder := t.TempDir()
	bundle := []byte(`{"app":1}`)
	digest := layout(t, folder, "default/web", bundle)
	file := filepath.Join(folder, "default/web/blobs/sha256", Digest(bundle)[7:])
	if err := os.WriteFile(file, []byte(`{"app":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := PullArtifact(t.Context(), Preload(folder, o), "default/web", digest, 1<<20); err == nil {
		t.Errorf("%q is taken", b)
	}
}

// A relay's cache takes from the folder as from a parent, and serves ranges of it.
func TestPreloadBehindCache(t *testing.T) {
	o := newOrigin(t)
	o.set(func() { o.away = true })
	folder := t.TempDir()
	bundle := []byte(strings.Repeat("bundle ", 9000))
	digest := layout(t, folder, "default/web", bundle)
	c, err := Open(Config{Dir: t.TempDir(), Upstream: Preload(folder, o)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if got, err := PullArtifact(t.Context(), c.Upstream(), "default/web", digest, 1<<20); err != nil || string(got) != string(bundle) {
		t.Fatal(err)
	}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	req, err := http.NewRequest(http.MethodGet, srv.URL+Route{RouteBlob, "default/web", Digest(bundle)}.Path(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=7-12")
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "bundle" || res.StatusCode != http.StatusPartialContent {
		t.Errorf("%d %q %v", res.StatusCode, b, err)
	}
}

func TestCheckLayout(t *testing.T) {
	folder := t.TempDir()
	bundle := []byte(`{"app":1}`)
	digest := layout(t, folder, "a/b", bundle)
	dir := filepath.Join(folder, "a/b")
	if got, err := CheckLayout(dir); err != nil || len(got) != 1 || got[0] != digest {
		t.Fatalf("%v %v", got, err)
	}
	blob := filepath.Join(dir, "blobs/sha256", Digest(bundle)[7:])
	for what, do := range map[string]func() error{
		"altered":   func() error { return os.WriteFile(blob, []byte(`{"app":2}`), 0o644) },
		"cut":       func() error { return os.WriteFile(blob, bundle[:4], 0o644) },
		"missing":   func() error { return os.Remove(blob) },
		"no index":  func() error { return os.Remove(filepath.Join(dir, "index.json")) },
		"no layout": func() error { return os.Remove(filepath.Join(dir, "oci-layout")) },
	} {
		layout(t, folder, "a/b", bundle)
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if _, err := CheckLayout(dir); err == nil {
			t.Errorf("%s: nothing is said", what)
		}
	}
}
