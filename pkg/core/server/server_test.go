package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/wait"
)

type core struct {
	t             *testing.T
	url           string
	store         *store.SQL
	people        *people.Room
	server        *server.Server
	admin, viewer string
}

func start(t *testing.T, change func(*server.Config)) *core {
	t.Helper()
	var uid atomic.Int64
	key, err := audit.CreateKey(filepath.Join(t.TempDir(), "audit.key"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain := audit.NewChain(key, time.Now)
	db, err := store.Open(t.Context(), store.Config{Now: time.Now, NewUID: func() string { return fmt.Sprint("uid-", uid.Add(1)) }, Auditor: chain, Rooms: audit.Migrate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := people.Migrate(t.Context(), db.Database()); err != nil {
		t.Fatal(err)
	}
	as := func(_ string, b []byte) []byte { return b }
	room, err := people.New(people.Config{DB: db.Database(), Now: time.Now, NewUID: func() string { return fmt.Sprint("person-", uid.Add(1)) }, Random: rand.Reader, Epoch: 1, Cost: people.Cost{Memory: 64, Passes: 1, Lanes: 1},
		Seal: as, Open: func(_ string, b []byte) ([]byte, error) { return b, nil }})
	if err != nil {
		t.Fatal(err)
	}
	notes := audit.NewNotes(chain, db.Database(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(func() { notes.Close() })
	cfg := server.Config{Store: db, People: room, Admission: map[string]server.Admission{api.KindRoleBinding: server.AdmitBinding(room)}, Access: access.New(db), Audit: notes, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: time.Now, Version: "test"}
	if change != nil {
		change(&cfg)
	}
	s := server.New(cfg)
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	c := &core{t: t, url: web.URL, store: db, people: room, server: s}
	for role, token := range map[store.Role]*string{store.Admin: &c.admin, store.Viewer: &c.viewer} {
		if *token, err = db.CreateToken(t.Context(), string(role), role, time.Time{}, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// call sends a request as admin and reads the answer into out.
func (c *core) call(method, path, body string, out any) (int, *api.Error) {
	c.t.Helper()
	return c.callAs(c.admin, method, path, body, out)
}

func (c *core) callAs(token, method, path, body string, out any) (int, *api.Error) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode >= 400 {
		e := &api.Error{}
		if err := json.Unmarshal(b, e); err != nil || e.Code == "" || e.Message == "" {
			c.t.Fatalf("%s %s: %d with a body that is no error: %s", method, path, resp.StatusCode, b)
		}
		return resp.StatusCode, e
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			c.t.Fatalf("%s %s: %s: %v", method, path, b, err)
		}
	}
	return resp.StatusCode, nil
}

const configBody = `{"apiVersion":"tributary/v1","kind":"Config","metadata":{"name":"motd","labels":{"for":"web"}},"spec":{"env":{"GREETING":"hello"}}}`

func TestObjects(t *testing.T) {
	c := start(t, nil)
	var created, got api.Object
	if code, e := c.call("POST", "/api/v1/configs", configBody, &created); code != 201 || created.Metadata.UID == "" {
		t.Fatalf("create: %d %v", code, e)
	}
	if code, _ := c.call("GET", "/api/v1/configs/motd", "", &got); code != 200 || got.Metadata.Revision != created.Metadata.Revision || string(got.Spec) != string(created.Spec) {
		t.Fatalf("get: %d %+v", code, got)
	}
	var list struct {
		Items    []api.Object
		Next     string
		Revision int64
	}
	if code, _ := c.call("GET", "/api/v1/configs?selector=for%3Dweb", "", &list); code != 200 || len(list.Items) != 1 || list.Revision == 0 {
		t.Fatalf("list: %d %+v", code, list)
	}
	if code, _ := c.call("GET", "/api/v1/sites", "", &list); code != 200 || list.Items == nil || len(list.Items) != 0 {
		t.Fatalf("an empty list: %d %+v", code, list)
	}
	yaml := "apiVersion: tributary/v1\nkind: Config\nmetadata: {name: motd}\nspec: {env: {GREETING: bye}}\n"
	if code, e := c.call("PUT", "/api/v1/configs/motd?dryRun=true", yaml, &got); code != 200 || got.Metadata.Generation != 2 {
		t.Fatalf("dry run: %d %v %+v", code, e, got)
	}
	if code, e := c.call("PUT", "/api/v1/configs/motd", yaml, &got); code != 200 || got.Metadata.Generation != 2 {
		t.Fatalf("put: %d %v %+v", code, e, got)
	}
	if code, e := c.call("DELETE", fmt.Sprintf("/api/v1/configs/motd?revision=%d", created.Metadata.Revision), "", nil); code != 409 || e.Code != api.Conflict {
		t.Fatalf("stale delete: %d %v", code, e)
	}
	if code, e := c.call("DELETE", "/api/v1/configs/motd", "", nil); code != 204 {
		t.Fatalf("delete: %d %v", code, e)
	}
}

func TestRefusals(t *testing.T) {
	c := start(t, nil)
	c.call("POST", "/api/v1/configs", configBody, nil)
	for name, r := range map[string]struct {
		method, path, body string
		status             int
		code               api.Code
		field              string
	}{
		"unknown field":        {"POST", "/api/v1/configs", `{"apiVersion":"tributary/v1","kind":"Config","metadata":{"name":"a"},"spec":{"envv":{}}}`, 422, api.Invalid, "spec.envv"},
		"not JSON, not YAML":   {"POST", "/api/v1/configs", "{", 422, api.Invalid, ""},
		"another kind":         {"POST", "/api/v1/apps", configBody, 422, api.Invalid, "kind"},
		"another name":         {"PUT", "/api/v1/configs/other", configBody, 422, api.Invalid, "metadata.name"},
		"exists":               {"POST", "/api/v1/configs", configBody, 409, api.Conflict, ""},
		"missing":              {"GET", "/api/v1/configs/none", "", 404, api.NotFound, ""},
		"bad selector":         {"GET", "/api/v1/configs?selector=a+b", "", 422, api.Invalid, "selector"},
		"bad limit":            {"GET", "/api/v1/configs?limit=x", "", 422, api.Invalid, "query.limit"},
		"no empty body":        {"POST", "/api/v1/configs", "", 400, api.Invalid, ""},
		"too large":            {"POST", "/api/v1/configs", strings.Repeat(" ", 2<<20), 413, api.TooLarge, ""},
		"a device by hand":     {"POST", "/api/v1/devices", `{"apiVersion":"tributary/v1","kind":"Device","metadata":{"name":"box"},"spec":{}}`, 404, api.NotFound, "metadata.name"},
		"watch from nonsense":  {"GET", "/api/v1/configs?watch=true&from=x", "", 422, api.Invalid, "from"},
		"two objects in a PUT": {"PUT", "/api/v1/configs/motd", configBody + configBody, 422, api.Invalid, ""},
	} {
		code, e := c.call(r.method, r.path, r.body, nil)
		if code != r.status || e == nil || e.Code != r.code || r.field != "" && e.Field != r.field {
			t.Errorf("%s: %d %+v, want %d %s at %q", name, code, e, r.status, r.code, r.field)
		}
	}
}

func TestAccess(t *testing.T) {
	c := start(t, func(cfg *server.Config) {
		ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
		cfg.Routes = []server.Route{{Pattern: "GET /admins", Needs: server.Needs{Action: access.Govern, On: server.Platform}, Handler: ok}, {Pattern: "/people", Needs: server.Needs{On: server.Everybody}, Handler: ok}, {Pattern: "/open", Handler: ok, Doc: "For all."}}
	})
	for _, r := range []struct {
		token, method, path, body string
		want                      int
	}{
		{"", "GET", "/api/v1/configs", "", 401},
		{"tp1.a.b", "GET", "/api/v1/configs", "", 401},
		{c.viewer, "GET", "/api/v1/configs", "", 200},
		{c.viewer, "POST", "/api/v1/configs", configBody, 403},
		{c.viewer, "POST", "/api/v1/apply", configBody, 403},
		{c.admin, "POST", "/api/v1/apply", configBody, 200},
		{"", "GET", "/metrics", "", 401},
		{"", "GET", "/open", "", 200},
		{"", "GET", "/people", "", 401},
		{c.viewer, "GET", "/people", "", 200},
		{c.viewer, "GET", "/admins", "", 403},
		{c.admin, "GET", "/admins", "", 200},
	} {
		if code, e := c.callAs(r.token, r.method, r.path, r.body, nil); code != r.want {
			t.Errorf("%.6s %s %s: %d %v, want %d", r.token, r.method, r.path, code, e, r.want)
		}
	}
	// A session's cookie reads, and never writes.
	for method, want := range map[string]int{"GET": 200, "POST": 401} {
		req, _ := http.NewRequestWithContext(t.Context(), method, c.url+"/api/v1/configs", strings.NewReader(configBody))
		req.AddCookie(&http.Cookie{Name: server.SessionCookie, Value: c.admin})
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s by cookie: %d, want %d", method, resp.StatusCode, want)
		}
	}
	resp, err := http.Get(c.url + "/healthz")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("healthz: %v %v", resp, err)
	}
	resp.Body.Close()
}

func TestSecretsAreNotReadBack(t *testing.T) {
	c := start(t, nil)
	const canary = "canary-7f3a"
	secret := `{"apiVersion":"tributary/v1","kind":"Secret","metadata":{"name":"s"},"spec":{"data":{"password":"` + canary + `"}}}`
	for _, r := range []struct{ method, path, body string }{
		{"POST", "/api/v1/secrets", secret},
		{"PUT", "/api/v1/secrets/s", secret},
		{"GET", "/api/v1/secrets/s", ""},
		{"GET", "/api/v1/secrets", ""},
		{"POST", "/api/v1/apply?dryRun=true", strings.ReplaceAll(secret, "password", "other")},
	} {
		var raw json.RawMessage
		if code, e := c.call(r.method, r.path, r.body, &raw); code >= 300 || bytes.Contains(raw, []byte(canary)) {
			t.Errorf("%s %s: %d %v %s", r.method, r.path, code, e, raw)
		}
	}
	// Written as read back, it keeps its data.
	if code, e := c.call("PUT", "/api/v1/secrets/s", `{"apiVersion":"tributary/v1","kind":"Secret","metadata":{"name":"s"},"spec":{}}`, nil); code != 200 {
		t.Fatalf("%d %v", code, e)
	}
	kept, err := c.store.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindSecret, Name: "s"})
	if err != nil || !bytes.Contains(kept.Spec, []byte(canary)) {
		t.Fatalf("%v %v", kept, err)
	}
}

func TestApply(t *testing.T) {
	c := start(t, nil)
	type reply struct{ Results []server.ApplyResult }
	two := configBody + `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"},"spec":{"displayName":"Hill"}}`
	var r reply
	if code, e := c.call("POST", "/api/v1/apply?dryRun=true", two, &r); code != 200 || len(r.Results) != 2 || r.Results[0].Action != "created" {
		t.Fatalf("dry run: %d %v %+v", code, e, r)
	}
	r = reply{}
	if code, e := c.call("POST", "/api/v1/apply", two, &r); code != 200 || r.Results[0].Kind != "Site" || r.Results[0].Action != "created" {
		t.Fatalf("apply: %d %v %+v", code, e, r)
	}
	r = reply{}
	if c.call("POST", "/api/v1/apply", strings.Replace(two, "Hill", "High hill", 1), &r); r.Results[0].Action != "configured" || r.Results[1].Action != "unchanged" {
		t.Fatalf("again: %+v", r)
	}
	if ch := r.Results[0].Changes; len(ch) != 1 || ch[0].Path != "spec.displayName" || ch[0].Old != "Hill" || ch[0].New != "High hill" {
		t.Fatalf("changes: %+v", ch)
	}
	// A fault anywhere leaves everything unwritten, and every fault is told with its line.
	bad := "apiVersion: tributary/v1\nkind: Site\nmetadata: {name: valley}\n---\napiVersion: tributary/v1\nkind: Config\nmetadata: {name: x}\nspec:\n  files: 3\n"
	if code, e := c.call("POST", "/api/v1/apply", bad, nil); code != 422 || e.Line != 9 {
		t.Fatalf("bad apply: %d %+v", code, e)
	}
	if code, _ := c.call("GET", "/api/v1/sites/valley", "", nil); code != 404 {
		t.Fatalf("half of a bad apply was written: %d", code)
	}
}

func TestAdmission(t *testing.T) {
	c := start(t, func(cfg *server.Config) {
		cfg.Admission = map[string]server.Admission{api.KindApp: func(_ context.Context, ch server.Change) (server.Decision, error) {
			if ch.New.Metadata.Name == "bad" {
				return server.Decision{}, &api.Error{Code: api.Invalid, Field: "spec.compose", Message: "no"}
			}
			return server.Decision{Status: api.AppObjectStatus{Bundle: "sha256:x"}, Warnings: []string{"watch out"}, Reply: func(o *api.Object) { o.Metadata.Annotations = map[string]string{"once": "yes"} }}, nil
		}}
		cfg.Removal = map[string]server.Removal{api.KindApp: func(context.Context, *api.Object) error { return api.Errorf(api.Conflict, "in use") }}
	})
	app := func(name string) string {
		return `{"apiVersion":"tributary/v1","kind":"App","metadata":{"name":"` + name + `"},"spec":{"compose":"services: {}"}}`
	}
	var o api.Object
	if code, e := c.call("POST", "/api/v1/apps", app("good"), &o); code != 201 || !strings.Contains(string(o.Status), "sha256:x") || o.Metadata.Annotations["once"] != "yes" {
		t.Fatalf("%d %v %+v", code, e, o)
	}
	o = api.Object{}
	if c.call("GET", "/api/v1/apps/good", "", &o); !strings.Contains(string(o.Status), "sha256:x") || o.Metadata.Annotations != nil {
		t.Fatalf("%+v", o)
	}
	if code, e := c.call("POST", "/api/v1/apply", app("good")+app("bad"), nil); code != 422 || e.Field != "spec.compose" {
		t.Fatalf("%d %+v", code, e)
	}
	if code, _ := c.call("DELETE", "/api/v1/apps/good", "", nil); code != 409 {
		t.Fatalf("removal: %d", code)
	}
}

func TestWatch(t *testing.T) {
	c := start(t, nil)
	c.call("POST", "/api/v1/configs", configBody, nil)
	ctx, cancel := context.WithTimeout(t.Context(), wait.Limit)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", c.url+"/api/v1/configs?watch=true&selector=for%3Dweb", nil)
	req.Header.Set("Authorization", "Bearer "+c.viewer)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%v %v", resp, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() (event, data string) {
		for lines.Scan() {
			line := lines.Text()
			switch {
			case strings.HasPrefix(line, "event: "):
				event = line[7:]
			case strings.HasPrefix(line, "data: "):
				data = line[6:]
			case line == "" && event != "":
				return event, data
			}
		}
		t.Fatal("the stream ended: ", lines.Err())
		return
	}
	expect := func(event, part string) {
		t.Helper()
		if e, data := next(); e != event || !strings.Contains(data, part) {
			t.Fatalf("event %s %s, want %s with %s", e, data, event, part)
		}
	}
	expect("changed", `"motd"`)
	expect("synced", `"revision"`)
	c.call("POST", "/api/v1/sites", `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"}}`, nil)
	c.call("PUT", "/api/v1/configs/motd", strings.Replace(configBody, "hello", "bye", 1), nil)
	expect("changed", "bye")
	c.call("PUT", "/api/v1/configs/motd", strings.Replace(configBody, `"for":"web"`, `"for":"other"`, 1), nil)
	expect("deleted", `"motd"`)
	c.call("DELETE", "/api/v1/configs/motd", "", nil)
	expect("deleted", `"motd"`)
}

func TestOpenAPI(t *testing.T) {
	c := start(t, nil)
	b, err := c.server.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]json.RawMessage
		Components struct{ Schemas map[string]json.RawMessage }
	}
	if err := json.Unmarshal(b, &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("%s %v", doc.OpenAPI, err)
	}
	for _, k := range api.Kinds {
		if len(doc.Paths["/api/v1/"+k.Plural]) != 2 || len(doc.Paths["/api/v1/"+k.Plural+"/{name}"]) != 3 || doc.Components.Schemas[k.Name] == nil {
			t.Errorf("%s is not described", k.Name)
		}
	}
	if !bytes.Contains(doc.Paths["/api/v1/fleets"]["post"], []byte("#/components/schemas/Fleet")) {
		t.Errorf("the body of a Fleet is not described: %s", doc.Paths["/api/v1/fleets"]["post"])
	}
	resp, err := http.Get(c.url + "/openapi.json")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("openapi.json: %v %v", resp, err)
	}
	resp.Body.Close()
}

// Editors fetch the schema of one kind, or of all, without a token.
func TestSchemas(t *testing.T) {
	c := start(t, nil)
	names := []string{"tributary"}
	for _, k := range api.Kinds {
		names = append(names, strings.ToLower(k.Name))
	}
	for _, name := range append(names, "gadget") {
		resp, err := http.Get(c.url + "/schemas/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			ID string `json:"$id"`
		}
		err = json.NewDecoder(resp.Body).Decode(&doc)
		resp.Body.Close()
		if name == "gadget" {
			if resp.StatusCode != 404 {
				t.Errorf("an unknown kind: %d", resp.StatusCode)
			}
			continue
		}
		if err != nil || resp.StatusCode != 200 || doc.ID != api.SchemaBase+name+".json" {
			t.Errorf("%s: %d %q %v", name, resp.StatusCode, doc.ID, err)
		}
	}
}
