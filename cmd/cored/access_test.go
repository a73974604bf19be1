package main

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// What belongs to a tenant is not in the registry, the console, the metrics or the data for a
// stick as another tenant's people see them; its own people see it there.
func TestAnotherTenantsPeople(t *testing.T) {
	r := start(t, t.TempDir())
	docs := ""
	for _, tenant := range []string{"acme", "other"} {
		docs += `{"apiVersion":"tributary/v1","kind":"Tenant","metadata":{"name":"` + tenant + `"}}
			{"apiVersion":"tributary/v1","kind":"ServiceAccount","metadata":{"tenant":"` + tenant + `","name":"ci"}}
			{"apiVersion":"tributary/v1","kind":"RoleBinding","metadata":{"tenant":"` + tenant + `","name":"ci"},"spec":{"role":"tenant-admin","subjects":[{"serviceAccount":"ci"}]}}`
	}
	if e := r.call("POST", "/api/v1/apply", docs, nil); e != nil {
		t.Fatal(e)
	}
	box := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: "acme", Name: "canary"}, Spec: []byte(`{}`)}
	if _, err := r.c.store.Put(t.Context(), box, store.PutOptions{Status: api.DeviceStatus{ID: api.DeviceID{1}}}); err != nil {
		t.Fatal(err)
	}
	token := func(tenant string) string {
		out, err := r.c.store.CreateTokenOf(t.Context(), "ci", api.Key{Tenant: tenant, Kind: api.KindServiceAccount, Name: "ci"}, time.Time{}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	owner, stranger := token("acme"), token("other")
	ref, err := name.ParseReference(strings.TrimPrefix(r.url, "https://") + "/acme/web:1")
	if err != nil {
		t.Fatal(err)
	}
	image, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	push := func(token string) error {
		return remote.Write(ref, image, remote.WithTransport(r.http.Transport), remote.WithAuth(&authn.Basic{Username: "x", Password: token}))
	}
	if err := push(owner); err != nil {
		t.Fatal("the owner does not push: ", err)
	}
	if err := push(stranger); err == nil || !strings.Contains(err.Error(), "there is no tenant acme") {
		t.Error("another's push: ", err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	get := func(token, method, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := r.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for _, p := range []struct {
		method, path    string
		owner, stranger int
	}{
		{"GET", "/v2/acme/web/manifests/1", 200, 404}, {"GET", "/v2/acme/web/manifests/" + digest.String(), 200, 404}, {"GET", "/v2/acme/web/blobs/" + layer.String(), 200, 404},
		{"GET", "/v2/acme/web/tags/list", 200, 404}, {"DELETE", "/v2/acme/web/manifests/" + digest.String(), 202, 404},
		// Of no tenant alone, they are the platform's.
		{"GET", "/v2/_catalog", 403, 403}, {"GET", "/metrics", 403, 403},
	} {
		if code, text := get(stranger, p.method, p.path); code != p.stranger || strings.Contains(text, "canary") {
			t.Errorf("another gets %d by %s %s: %s", code, p.method, p.path, text)
		}
		if code, text := get(owner, p.method, p.path); code != p.owner {
			t.Errorf("the owner gets %d by %s %s: %s", code, p.method, p.path, text)
		}
	}
	// A blob that is known by its digest is not taken over by a mount.
	if code, text := get(stranger, "POST", "/v2/other/mine/blobs/uploads/?mount="+layer.String()+"&from=acme/web"); code != 202 {
		t.Errorf("another's mount: %d %s", code, text)
	}
	for token, sees := range map[string]bool{owner: true, stranger: false, r.token: true} {
		// What the console shows.
		if code, found := get(token, "GET", "/api/v1/search?q=canary&tenant=*"); code != 200 || strings.Contains(found, `"canary"`) != sees {
			t.Errorf("a search: %d, sees it %v, not %v: %s", code, strings.Contains(found, `"canary"`), sees, found)
		}
		var who struct{ Account, Role string }
		if _, text := get(token, "GET", "/api/v1/whoami"); json.Unmarshal([]byte(text), &who) != nil || who.Account == "" || who.Role == "" {
			t.Errorf("whoami: %s", text)
		}
	}
}
