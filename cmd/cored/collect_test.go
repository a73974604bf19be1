package main

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/registry"
)

// Collection keeps what is tagged, what an app names and what is young; the rest goes.
func TestCollectRegistry(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "core"))
	now := func(ref string) string {
		pinned, _, err := r.c.registry.ResolvePinned(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		return pinned
	}
	there := func(pinned string) bool {
		_, _, err := r.c.registry.ResolvePinned(t.Context(), pinned)
		return err == nil
	}
	r.push("default/web:v1")
	used := now("default/web:v1")
	r.must("POST", "/api/v1/apply", appDocs, nil)
	var o api.Object
	var s api.AppObjectStatus
	r.must("GET", "/api/v1/apps/web", "", &o)
	if err := json.Unmarshal(o.Status, &s); err != nil {
		t.Fatal(err)
	}
	bundle := func() bool {
		_, err := r.c.registry.Bundle(t.Context(), s.Repo, s.Bundle)
		return err == nil
	}
	r.push("default/web:v1") // the tag moves on, and again: what it named in between nobody names
	unnamed := now("default/web:v1")
	r.push("default/web:v1")
	tagged := now("default/web:v1")

	future := time.Now().Add(time.Hour)
	r.c.collectOnce(t.Context(), time.Now().Add(-collectGrace))
	if !there(used) || !there(unnamed) || !bundle() {
		t.Fatal("what is young was taken")
	}
	if again := r.c.collectOnce(t.Context(), future); again != collectEvery || !there(used) || there(unnamed) || !there(tagged) || !bundle() {
		t.Fatalf("used %v, unnamed %v, tagged %v, bundle %v; again in %s", there(used), there(unnamed), there(tagged), bundle(), again)
	}
	removeAs := func(kind, digest string) int {
		req, err := http.NewRequestWithContext(t.Context(), "DELETE", r.url+"/v2/default/web/"+kind+"/"+digest, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+r.token)
		resp, err := r.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	remove := func(pinned string) int { return removeAs("manifests", pinned[strings.Index(pinned, "@")+1:]) }
	layer := func(pinned string) string {
		d, err := name.NewDigest(strings.TrimPrefix(r.url, "https://") + "/" + pinned)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(d, remote.WithTransport(r.http.Transport), remote.WithAuth(&authn.Basic{Username: "token", Password: r.token}))
		if err != nil {
			t.Fatal(err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		return m.Layers[0].Digest.String()
	}
	if code := removeAs("blobs", layer(used)); code != 403 {
		t.Errorf("a person removes a layer of an image in use: %d", code)
	}
	if code := removeAs("blobs", layer(tagged)); code != 403 {
		t.Errorf("a person removes a layer of an image with a tag: %d", code)
	}
	loose := layer(tagged)
	if code := remove(used); code != 403 || !there(used) {
		t.Errorf("a person removes an image in use: %d", code)
	}
	r.must("DELETE", "/api/v1/fleets/field", "", nil)
	r.must("DELETE", "/api/v1/apps/web", "", nil)
	r.c.collectOnce(t.Context(), future)
	if there(used) || bundle() || !there(tagged) {
		t.Errorf("after the app is gone: image %v, bundle %v, tagged %v", there(used), bundle(), there(tagged))
	}
	if got, err := r.c.registry.Collect(t.Context(), registry.GCOptions{Before: future}); err != nil || got != (registry.GCResult{}) {
		t.Errorf("garbage was left: %+v %v", got, err)
	}
	if code := remove(tagged); code != 202 || there(tagged) {
		t.Errorf("a person removes what nothing names: %d", code)
	}
	if code := removeAs("blobs", loose); code != 202 {
		t.Errorf("a person removes a layer that nothing refers to: %d", code)
	}
}
