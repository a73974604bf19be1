package server_test

import (
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
)

// What a fleet or an app names is not deleted under it.
func TestInUse(t *testing.T) {
	c := start(t, func(cfg *server.Config) {
		apps := &server.Apps{Store: cfg.Store}
		cfg.Removal = map[string]server.Removal{api.KindApp: apps.MayRemove, api.KindConfig: apps.MayRemove, api.KindSecret: apps.MayRemove}
	})
	put := func(kind, name, spec string, status any) {
		if _, err := c.store.Put(t.Context(), &api.Object{APIVersion: api.Version, Kind: kind, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: []byte(spec)}, store.PutOptions{Status: status}); err != nil {
			t.Fatal(err)
		}
	}
	put(api.KindApp, "web", `{}`, api.AppObjectStatus{Configs: []string{"motd"}, Secrets: []string{"door"}})
	put(api.KindConfig, "motd", `{}`, nil)
	put(api.KindConfig, "other", `{}`, nil)
	put(api.KindSecret, "door", `{}`, nil)
	put(api.KindFleet, "field", `{"apps":["web"]}`, nil)
	put(api.KindFleet, "hill", `{"apps":["web"],"configs":["other"]}`, nil)
	for path, users := range map[string]string{"apps/web": "Fleet field, Fleet hill name it", "configs/motd": "App web names it", "secrets/door": "App web names it", "configs/other": "Fleet hill names it"} {
		if code, e := c.call("DELETE", "/api/v1/"+path, "", nil); code != 409 || !strings.Contains(e.Message, users) || e.Remedy == "" {
			t.Errorf("%s: %d %v", path, code, e)
		}
	}
	for _, path := range []string{"fleets/hill", "fleets/field", "apps/web", "configs/motd", "configs/other", "secrets/door"} {
		if code, e := c.call("DELETE", "/api/v1/"+path, "", nil); code != 204 {
			t.Errorf("%s: %d %v", path, code, e)
		}
	}
}

// An object belongs to a tenant that exists, and to the one that the path of a PUT names.
func TestTenantOfAWrite(t *testing.T) {
	c := start(t, nil)
	doc := func(tenant string) string {
		return `{"apiVersion":"tributary/v1","kind":"Config","metadata":{"name":"motd","tenant":"` + tenant + `"},"spec":{"files":{"a":"b"}}}`
	}
	const acme = `{"apiVersion":"tributary/v1","kind":"Tenant","metadata":{"name":"acme"}}`
	refused := func(what, method, path, body, message string) {
		t.Helper()
		if code, e := c.call(method, path, body, nil); code != 422 || !strings.Contains(e.Error(), message) {
			t.Errorf("%s: %d %v", what, code, e)
		}
	}
	refused("a tenant that is not there", "POST", "/api/v1/configs", doc("acme"), "there is no tenant acme")
	refused("the same by apply", "POST", "/api/v1/apply", doc("acme"), "there is no tenant acme")
	if code, e := c.call("POST", "/api/v1/apply", doc("acme")+acme, nil); code != 200 {
		t.Errorf("a tenant that comes along: %d %v", code, e)
	}
	refused("another tenant than the path's", "PUT", "/api/v1/configs/motd", doc("acme"), "in the body")
	refused("a tenant of a tenant", "POST", "/api/v1/apply", `{"apiVersion":"tributary/v1","kind":"Tenant","metadata":{"name":"sub","tenant":"acme"}}`, "belongs to no other")
	if code, e := c.call("PUT", "/api/v1/configs/motd?tenant=acme", doc("acme"), nil); code != 200 {
		t.Errorf("the path's own tenant: %d %v", code, e)
	}
	refused("one object twice", "POST", "/api/v1/apply", doc("acme")+doc("acme"), "twice")
}

// A viewer may ask what an apply would change, and nothing that changes anything.
func TestViewerAsks(t *testing.T) {
	c := start(t, nil)
	const doc = `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"}}`
	for query, want := range map[string]int{"?dryRun=true": 200, "": 403, "?dryRun=false": 403, "?dryRun=true&dryRun=false": 403} {
		if code, _ := c.callAs(c.viewer, "POST", "/api/v1/apply"+query, doc, nil); code != want {
			t.Errorf("apply%s: %d, want %d", query, code, want)
		}
	}
	for _, path := range []string{"/api/v1/sites?dryRun=true", "/api/v1/devices/x/retire?dryRun=true"} {
		if code, _ := c.callAs(c.viewer, "POST", path, doc, nil); code != 403 && code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _ := c.call("GET", "/api/v1/sites/hill", "", nil); code != 404 {
		t.Errorf("asking wrote: %d", code)
	}
}
