package server_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/people"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/tests/mutation"
)

// browser is somebody at a browser, or a page of another origin in it.
type browser struct {
	c      *core
	cookie *http.Cookie
	site   string // Sec-Fetch-Site
}

// do gives the status, the error if any, and whatever else was answered in out.
func (b *browser) do(method, path string, in, out any) (int, *api.Error) {
	b.c.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		b.c.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(b.c.t.Context(), method, b.c.url+path, bytes.NewReader(body))
	if err != nil {
		b.c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Sec-Fetch-Site", b.site)
	if b.cookie != nil {
		req.AddCookie(b.cookie)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.c.t.Fatal(err)
	}
	for _, c := range resp.Cookies() {
		if !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Name != server.SessionCookie || c.Path != "/" {
			b.c.t.Errorf("a cookie that scripts, other pages or listeners get: %s", c)
		}
		if b.cookie = c; c.MaxAge < 0 {
			b.cookie = nil
		}
	}
	if resp.StatusCode >= 400 {
		e := &api.Error{}
		if err := json.Unmarshal(text, e); err != nil {
			b.c.t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, text)
		}
		return resp.StatusCode, e
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			b.c.t.Fatalf("%s %s: %s: %v", method, path, text, err)
		}
	}
	return resp.StatusCode, nil
}

func (b *browser) must(want int, method, path string, in, out any) {
	b.c.t.Helper()
	if code, e := b.do(method, path, in, out); code != want {
		b.c.t.Fatalf("%s %s: %d %v, want %d", method, path, code, e, want)
	}
}

type fields map[string]any

const secret = "correct horse battery"

// first is the first administrator at a browser.
func first(t *testing.T) *browser {
	b := &browser{c: start(t, nil), site: "same-origin"}
	token, err := b.c.people.AdminToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ways struct{ Setup bool }
	if b.must(200, "GET", "/api/v1/login", nil, &ways); !ways.Setup {
		t.Error("nobody is there, and it is not said")
	}
	b.must(200, "POST", "/api/v1/setup", fields{"token": token, "login": "root", "password": secret}, nil)
	if b.must(200, "GET", "/api/v1/login", nil, &ways); ways.Setup || b.cookie == nil {
		t.Error("somebody is there, and it is not said; or they are not in")
	}
	return b
}

// The way of a person: made by an administrator, they set a password, get in, may what they are
// bound to and nothing before, and are out at once when they are disabled.
func TestPeople(t *testing.T) {
	root := first(t)
	var who struct {
		Person, Account, Name string
		Bindings              []struct{ Role, Tenant string }
	}
	if root.must(200, "GET", "/api/v1/whoami", nil, &who); who.Name != "root" || who.Account != "" || len(who.Bindings) != 1 || who.Bindings[0].Role != "platform-admin" {
		t.Errorf("%+v", who)
	}
	var made struct {
		Person people.Person
		Token  string
	}
	root.must(200, "POST", "/api/v1/people", fields{"login": "ann", "name": "Ann"}, &made)
	ann := &browser{c: root.c, site: "same-origin"}
	ann.must(204, "POST", "/api/v1/password", fields{"token": made.Token, "new": secret}, nil)
	if code, e := ann.do("POST", "/api/v1/login", fields{"login": "ann", "password": "correct horse batterx"}, nil); code != 401 || e.Field != "" || ann.cookie != nil {
		t.Errorf("a wrong password: %d %v", code, e)
	}
	ann.must(200, "POST", "/api/v1/login", fields{"login": "ann", "password": secret}, nil)
	if code, _ := ann.do("GET", "/api/v1/tenants?tenant=*", nil, nil); code != 200 {
		t.Errorf("tenants: %d", code)
	}
	config := json.RawMessage(configBody)
	if code, _ := ann.do("POST", "/api/v1/configs", config, nil); code == 201 {
		t.Error("who is bound to nothing makes a Config")
	}
	binding := func(uid string) json.RawMessage {
		return json.RawMessage(doc("RoleBinding", "default", "ann", `{"role":"operator","subjects":[{"person":"`+uid+`"}]}`))
	}
	if code, e := root.do("POST", "/api/v1/rolebindings", binding("nobody"), nil); code != 422 || e.Field != "spec.subjects" {
		t.Errorf("a binding to nobody: %d %v", code, e)
	}
	root.must(201, "POST", "/api/v1/rolebindings", binding(made.Person.UID), nil)
	ann.must(201, "POST", "/api/v1/configs", config, nil)

	var list struct{ Items []people.Session }
	if ann.must(200, "GET", "/api/v1/sessions", nil, &list); len(list.Items) != 1 || !list.Items[0].Current || list.Items[0].Address == "" {
		t.Errorf("%+v", list)
	}
	if code, _ := root.do("DELETE", "/api/v1/sessions/"+list.Items[0].ID, nil, nil); code != 404 {
		t.Errorf("another's session is ended: %d", code)
	}
	if code, _ := root.do("PATCH", "/api/v1/people/"+who.Person, fields{"disabled": true}, nil); code != 409 {
		t.Errorf("root shuts itself out: %d", code)
	}
	old := *ann
	root.must(200, "PATCH", "/api/v1/people/"+made.Person.UID, fields{"disabled": true}, nil)
	if code, _ := ann.do("GET", "/api/v1/whoami", nil, nil); code != 401 {
		t.Errorf("who is disabled is in: %d", code)
	}
	root.must(200, "PATCH", "/api/v1/people/"+made.Person.UID, fields{"disabled": false}, nil)
	if code, _ := old.do("GET", "/api/v1/whoami", nil, nil); code != 401 {
		t.Errorf("a session comes back: %d", code)
	}
	ann.must(200, "POST", "/api/v1/login", fields{"login": "ann", "password": secret}, nil)
	before := *ann
	ann.must(204, "POST", "/api/v1/logout", nil, nil)
	if code, _ := before.do("GET", "/api/v1/whoami", nil, nil); code != 401 || ann.cookie != nil {
		t.Errorf("after the logout: %d", code)
	}
}

// What a page of another origin has the browser send does nothing, whoever is logged in there.
func TestCrossOrigin(t *testing.T) {
	root := first(t)
	for _, site := range []string{"cross-site", "same-site"} {
		page := &browser{c: root.c, cookie: root.cookie, site: site}
		for _, r := range []struct{ method, path, body string }{{"POST", "/api/v1/configs", configBody}, {"POST", "/api/v1/logout", `{}`}, {"POST", "/api/v1/login", `{"login":"root","password":"` + secret + `"}`},
			{"POST", "/api/v1/apply", configBody}, {"DELETE", "/api/v1/configs/motd", `{}`}} {
			if code, _ := page.do(r.method, r.path, json.RawMessage(r.body), nil); code != 403 {
				t.Errorf("from %s %s %s is seen to be %d", site, r.method, r.path, code)
			}
		}
	}
	root.must(201, "POST", "/api/v1/configs", json.RawMessage(configBody), nil)
}

func TestCrossOriginCounts(t *testing.T) {
	var checks []mutation.Check
	for _, m := range mutation.Marked(t, "^TestCrossOrigin$", "people.go") {
		m.Says = "is seen to be"
		checks = append(checks, m)
	}
	mutation.Prove(t, checks...)
}

// People are kept by platform-admins alone: whoever runs a tenant, or reads all, hears of none.
func TestPeopleAreThePlatforms(t *testing.T) {
	c := walk(t)
	p, _, err := c.people.Create(t.Context(), people.Profile{Login: canary})
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{c.owner, c.strangers["stranger"], c.viewer} {
		for _, r := range []struct{ method, path, body string }{{"GET", "/api/v1/people", ""}, {"GET", "/api/v1/people/" + p.UID, ""}, {"POST", "/api/v1/people", `{"login":"eve"}`}, {"PATCH", "/api/v1/people/" + p.UID, `{"disabled":true}`},
			{"POST", "/api/v1/people/" + p.UID + "/reset", `{}`}, {"DELETE", "/api/v1/people/" + p.UID + "/sessions", ""}, {"GET", "/api/v1/people/nobody", ""}} {
			if code, text := c.ask(token, r.method, r.path, r.body); code != 403 || strings.Contains(text, canary) {
				t.Errorf("%s %s: %d %s", r.method, r.path, code, text)
			}
		}
	}
	if code, text := c.ask(c.admin, "GET", "/api/v1/people", ""); code != 200 || !strings.Contains(text, canary) {
		t.Errorf("the platform's admin: %d %s", code, text)
	}
}
