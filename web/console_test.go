package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func device(name string, id byte, parent string, relay bool) *api.Object {
	spec, _ := json.Marshal(api.DeviceSpec{Approved: true})
	status, _ := json.Marshal(api.DeviceStatus{ID: api.DeviceID{id}, Parent: parent, Relay: relay, Online: true, Desired: 2, Applied: 2,
		Apps: []api.AppStatus{{Name: "web", State: api.Running}}})
	return &api.Object{Kind: api.KindDevice, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: spec, Status: status}
}

// Whatever parents devices name, each is drawn exactly once, and drawing ends.
func TestDrawEachDeviceOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(t, "devices")
		var devices []*api.Object
		for i := range n {
			parent := "core"
			switch p := rapid.IntRange(-2, n).Draw(t, "parent"); {
			case p == -2:
				parent = ""
			case p >= 0:
				parent = api.DeviceID{byte(p)}.String()
			}
			devices = append(devices, device(string(rune('a'+i)), byte(i), parent, true))
		}
		v := draw(devices, time.Now())
		seen := map[string]int{}
		var walk func(list []*node) int
		walk = func(list []*node) (all int) {
			for _, c := range list {
				seen[c.Name]++
				below := walk(c.Children)
				if below != c.Below {
					t.Fatalf("%s has %d below, counted %d", c.Name, below, c.Below)
				}
				all += below + 1
			}
			return all
		}
		walk(v.Roots)
		walk(v.Detached)
		if len(seen) != n || v.Devices != n || v.Online != n || v.Running != n {
			t.Fatalf("%d of %d drawn: %v", len(seen), n, seen)
		}
		for name, times := range seen {
			if times != 1 {
				t.Fatalf("%s drawn %d times", name, times)
			}
		}
	})
}

func TestStateOf(t *testing.T) {
	warn := func(s api.Severity) []api.Warning { return []api.Warning{{Severity: s}} }
	for want, c := range map[string]struct {
		spec api.DeviceSpec
		s    api.DeviceStatus
	}{
		"ok":   {api.DeviceSpec{Approved: true}, api.DeviceStatus{Online: true, Health: warn(api.Info)}},
		"warn": {api.DeviceSpec{Approved: true}, api.DeviceStatus{Online: true, Health: warn(api.Degraded)}},
		"bad":  {api.DeviceSpec{Approved: true}, api.DeviceStatus{Online: true, Health: append(warn(api.Degraded), warn(api.Critical)...)}},
		"off":  {api.DeviceSpec{Approved: true}, api.DeviceStatus{Health: warn(api.Critical)}},
		"wait": {api.DeviceSpec{}, api.DeviceStatus{Online: true}},
	} {
		if got, _ := stateOf(&c.spec, &c.s); got != want {
			t.Errorf("%+v is %s, want %s", c, got, want)
		}
	}
}

type source struct {
	mu      sync.Mutex
	devices []*api.Object
	changes chan struct{}
}

func (s *source) List(_ context.Context, kind string) ([]*api.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind != api.KindDevice {
		return nil, nil
	}
	return s.devices, nil
}

func (s *source) Events(context.Context, int) ([]Event, error) {
	return []Event{{Device: "d1", Event: api.Event{Name: "app.started", Message: "<b>not bold</b>"}}}, nil
}

func (s *source) Changes(context.Context) <-chan struct{} { return s.changes }

func TestPage(t *testing.T) {
	src := &source{devices: []*api.Object{device("relay-one", 1, "core", true), device("<script>", 2, api.DeviceID{1}.String(), false)}, changes: make(chan struct{})}
	check := func(_ context.Context, token string) error {
		if token != "good" {
			return errors.New("unknown")
		}
		return nil
	}
	c, err := New(Config{Source: src, Check: check, Cookie: "session", Version: "v", Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Who: func(r *http.Request) (context.Context, string, error) {
			k, err := r.Cookie("session")
			if err != nil {
				return r.Context(), "", err
			}
			return r.Context(), "somebody", check(r.Context(), k.Value)
		}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(c)
	defer web.Close()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	get := func(path, session string) (*http.Response, string) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", web.URL+path, nil)
		if session != "" {
			req.AddCookie(&http.Cookie{Name: "session", Value: session})
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	for _, session := range []string{"", "bad"} {
		if resp, _ := get("/", session); resp.StatusCode != 303 || resp.Header.Get("Location") != "/console/login" {
			t.Errorf("session %q: %d", session, resp.StatusCode)
		}
		if resp, _ := get("/console/live", session); resp.StatusCode != 401 {
			t.Errorf("live with session %q: %d", session, resp.StatusCode)
		}
	}
	for token, want := range map[string]int{"bad": 401, "good": 303} {
		resp, err := client.PostForm(web.URL+"/console/login", url.Values{"token": {token}})
		if err != nil || resp.StatusCode != want {
			t.Fatalf("login with %q: %v %v", token, resp, err)
		}
		resp.Body.Close()
		if set := resp.Header.Get("Set-Cookie"); want == 303 && (!strings.Contains(set, "HttpOnly") || !strings.Contains(set, "Secure") || !strings.Contains(set, "SameSite=Strict")) {
			t.Errorf("cookie %q", set)
		}
	}
	resp, body := get("/", "good")
	if resp.StatusCode != 200 || !strings.Contains(body, "relay-one") || !strings.Contains(body, "somebody") || strings.Contains(body, "<script>\n") || strings.Contains(body, "<b>not bold") {
		t.Errorf("page: %d %s", resp.StatusCode, body)
	}
	for _, path := range []string{"style.css", "live.js", "mark.svg"} {
		if resp, _ := get("/console/static/"+path, ""); resp.StatusCode != 200 {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	for _, path := range []string{"", "..", "%2e%2e/page.html", "nothing.css"} { // no list of the folder, nothing beside it
		if resp, body := get("/console/static/"+path, ""); resp.StatusCode == 200 {
			t.Errorf("/console/static/%s: %s", path, body)
		}
	}
	if resp, _ := get("/nothing", "good"); resp.StatusCode != 404 {
		t.Errorf("an unknown page: %d", resp.StatusCode)
	}
}

func TestLive(t *testing.T) {
	src := &source{devices: []*api.Object{device("first", 1, "core", false)}, changes: make(chan struct{}, 1)}
	var revoked atomic.Bool
	c, err := New(Config{Source: src, Now: time.Now, Log: slog.New(slog.DiscardHandler), Who: func(r *http.Request) (context.Context, string, error) {
		if revoked.Load() {
			return r.Context(), "", errors.New("revoked")
		}
		return r.Context(), "x", nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(c)
	defer web.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", web.URL+"/console/live", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	until := func(name string) {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var html string
				if err := json.Unmarshal([]byte(data), &html); err != nil || !strings.Contains(html, name) {
					t.Fatalf("%v %s", err, html)
				}
				return
			}
		}
		t.Fatalf("%s never came: %v", name, lines.Err())
	}
	until("first")
	src.mu.Lock()
	src.devices = append(src.devices, device("second", 2, "core", false))
	src.mu.Unlock()
	src.changes <- struct{}{}
	until("second")

	// A page that is open when its token is revoked is sent to the login.
	ask := func() int {
		resp, err := http.Head(web.URL + "/console/live")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := ask(); code != 200 {
		t.Errorf("a good session: %d", code)
	}
	revoked.Store(true)
	src.changes <- struct{}{}
	last := ""
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			last = name
		}
	}
	if code := ask(); last != "login" || code != 401 {
		t.Errorf("a revoked session: the last event was %q, asking gives %d", last, code)
	}
}

// A fleet without apps does not look like one whose apps do not run; an app that does not
// exist is named.
func TestFleets(t *testing.T) {
	c, err := New(Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for spec, want := range map[string]bool{`{}`: false, `{"apps":["web","ghost"]}`: true} {
		f := fleetOf(&api.Object{Kind: api.KindFleet, Metadata: api.Meta{Name: "f"}, Spec: []byte(spec), Status: []byte(`{"devices":2,"current":2}`)})
		if want {
			f.Missing = []string{"ghost"}
		}
		var b strings.Builder
		if err := c.tmpl.ExecuteTemplate(&b, "view", &view{Fleets: []fleet{f}}); err != nil {
			t.Fatal(err)
		}
		html := b.String()
		if strings.Contains(html, "0 of 2 running") != want || strings.Contains(html, "app ghost does not exist") != want || strings.Contains(html, "no apps") == want {
			t.Errorf("%s: %s", spec, html)
		}
	}
}
