package server_test

import (
	"net/http"
	"slices"
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
	for query, want := range map[string]int{"?dryRun=true": 200, "": 403, "?dryRun=false": 403, "?dryRun=true&dryRun=false": 200} {
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

// A list of a tenant that is not there is told from an empty one, and so is what devices told.
func TestNoSuchTenant(t *testing.T) {
	c := start(t, func(cfg *server.Config) { cfg.Ledger = audits{} })
	if code, e := c.call("POST", "/api/v1/tenants", `{"apiVersion":"tributary/v1","kind":"Tenant","metadata":{"name":"acme"}}`, nil); code != 201 {
		t.Fatal(code, e)
	}
	for _, path := range []string{"devices?tenant=nope", "devices?tenant=nope&watch=true", "events?tenant=nope", "events?tenant=nope&watch=true", "events?tenant=nope&device=x",
		"records?tenant=nope&device=x", "usage?tenant=nope&device=x"} {
		if code, e := c.callAs(c.viewer, "GET", "/api/v1/"+path, "", nil); code != 404 || !strings.Contains(e.Message, "no tenant nope") || e.Remedy == "" {
			t.Errorf("%s: %d %+v", path, code, e)
		}
	}
	for _, path := range []string{"devices?tenant=acme", "devices", "devices?tenant=*", "events?tenant=acme", "events?tenant=*"} {
		if code, e := c.callAs(c.viewer, "GET", "/api/v1/"+path, "", nil); code != 200 {
			t.Errorf("%s: %d %v", path, code, e)
		}
	}
}

// A tenant goes when it has nothing left.
func TestTenantInUse(t *testing.T) {
	c := start(t, nil)
	docs := `{"apiVersion":"tributary/v1","kind":"Tenant","metadata":{"name":"acme"}}`
	for _, name := range []string{"hill", "valley"} {
		docs += `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"` + name + `","tenant":"acme"}}`
	}
	if code, e := c.call("POST", "/api/v1/apply", docs, nil); code != 200 {
		t.Fatal(code, e)
	}
	if code, e := c.call("DELETE", "/api/v1/tenants/acme", "", nil); code != 409 || !strings.Contains(e.Message, "Site hill, Site valley") || !strings.Contains(e.Remedy, "--tenant acme") {
		t.Errorf("%d %v", code, e)
	}
	for _, path := range []string{"sites/hill?tenant=acme", "sites/valley?tenant=acme", "tenants/acme"} {
		if code, e := c.call("DELETE", "/api/v1/"+path, "", nil); code != 204 {
			t.Errorf("%s: %d %v", path, code, e)
		}
	}
}

// A parameter that means nothing is refused, so that a mistyped one does no harm.
func TestUnknownParameters(t *testing.T) {
	c := start(t, nil)
	const doc = `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"}}`
	for _, r := range []struct{ method, path, body, known string }{
		{"POST", "/api/v1/apply?dry-run=true", doc, "dryRun"},
		{"POST", "/api/v1/sites?dryrun=true", doc, "dryRun"},
		{"PUT", "/api/v1/sites/hill?force=1", doc, "dryRun"},
		{"GET", "/api/v1/sites?labelSelector=a", "", "selector"},
		{"GET", "/api/v1/sites?watch=true&since=3", "", "from"},
		{"GET", "/api/v1/whoami?x=1", "", "tenant"},
	} {
		code, e := c.call(r.method, r.path, r.body, nil)
		if code != 400 || e.Code != api.Invalid || !strings.HasPrefix(e.Field, "query.") || !strings.Contains(e.Remedy, r.known) {
			t.Errorf("%s: %d %+v", r.path, code, e)
		}
	}
	if code, _ := c.call("GET", "/api/v1/sites/hill", "", nil); code != 404 {
		t.Errorf("a refused request wrote: %d", code)
	}
}

// A PUT that makes an object says so, and where it is.
func TestCreatedByPut(t *testing.T) {
	c := start(t, nil)
	for i, want := range []struct {
		query    string
		code     int
		location string
	}{{"?dryRun=true", 201, ""}, {"", 201, "/api/v1/configs/motd"}, {"", 200, ""}} {
		req, err := http.NewRequestWithContext(t.Context(), "PUT", c.url+"/api/v1/configs/motd"+want.query, strings.NewReader(configBody))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.admin)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != want.code || got != want.location {
			t.Errorf("%d: %d %q, want %d %q", i, resp.StatusCode, got, want.code, want.location)
		}
	}
}

// Who goes on from a revision that this life of the store never had is told to list again.
func TestWatchFromTheFuture(t *testing.T) {
	c := start(t, nil)
	c.call("POST", "/api/v1/configs", configBody, nil)
	if code, e := c.call("GET", "/api/v1/configs?watch=true&from=99", "", nil); code != 410 || e.Code != api.Gone || e.Remedy == "" {
		t.Errorf("from=99: %d %v", code, e)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", c.url+"/api/v1/configs?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.admin)
	req.Header.Set("Last-Event-ID", "99")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 410 {
		t.Errorf("Last-Event-ID 99: %d", resp.StatusCode)
	}
	// A restore leaves revisions out, so that one of before it is never taken for one of after.
	if err := c.store.SetEpoch(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	c.call("PUT", "/api/v1/configs/motd", strings.Replace(configBody, "hello", "bye", 1), nil)
	if code, e := c.call("GET", "/api/v1/configs?watch=true&from=1", "", nil); code != 410 {
		t.Errorf("from before the restore: %d %v", code, e)
	}
}

// Tenants lie below one another, in whatever order they are applied, and in no loop; one that
// has others below it stays.
func TestTenantTree(t *testing.T) {
	c := start(t, nil)
	doc := func(name, parent string) string {
		return `{"apiVersion":"tributary/v1","kind":"Tenant","metadata":{"name":"` + name + `"},"spec":{"parent":"` + parent + `"}}`
	}
	for _, docs := range []string{doc("leaf", "branch") + doc("branch", "trunk") + doc("trunk", ""), doc("trunk", "twig") + doc("leaf", "") + doc("twig", "leaf")} {
		if code, e := c.call("POST", "/api/v1/apply", docs, nil); code != 200 {
			t.Fatal(code, e)
		}
	}
	for why, docs := range map[string]string{"a loop": doc("leaf", "branch"), "two that make a loop": doc("a", "b") + doc("b", "a"), "nowhere": doc("a", "none"), "the root": doc("platform", "")} {
		if code, e := c.call("POST", "/api/v1/apply", docs, nil); code != 422 || e.Line == 0 && len(e.Causes) == 0 {
			t.Errorf("%s: %d %+v", why, code, e)
		}
	}
	if code, e := c.call("PUT", "/api/v1/tenants/leaf", doc("leaf", "branch"), nil); code != 422 || e.Field != "spec.parent" {
		t.Errorf("a loop by itself: %d %v", code, e)
	}
	tree, err := c.store.Tenants(t.Context())
	if err != nil || !slices.Equal(tree.Path("branch"), []string{"branch", "trunk", "twig", "leaf", "platform"}) {
		t.Errorf("the tree: %v, %v", tree, err)
	}
	if code, e := c.call("DELETE", "/api/v1/tenants/trunk", "", nil); code != 409 || !strings.Contains(e.Message, "branch") {
		t.Errorf("one with another below it: %d %v", code, e)
	}
	for _, name := range []string{"branch", "trunk"} {
		if code, e := c.call("DELETE", "/api/v1/tenants/"+name, "", nil); code != 204 {
			t.Errorf("%s: %d %v", name, code, e)
		}
	}
}
