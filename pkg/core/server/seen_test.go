package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
)

// A device that is there was seen just now, however long ago its object last changed; one
// that is away, when it was last heard.
func TestSeenIsOfNow(t *testing.T) {
	away, there := api.DeviceID{1}, api.DeviceID{2}
	before, now := time.Unix(1_764_000_000, 0).UTC(), time.Unix(1_764_009_000, 7).UTC()
	c := start(t, func(cfg *server.Config) {
		cfg.Heard = func(id api.DeviceID) (time.Time, bool) { return now, id == there }
	})
	for name, id := range map[string]api.DeviceID{"away": away, "there": there} {
		o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: name}, Spec: json.RawMessage(`{}`)}
		if _, err := c.store.Put(t.Context(), o, store.PutOptions{Status: api.DeviceStatus{ID: id, Online: id == there, LastSeen: &before, Version: "v"}}); err != nil {
			t.Fatal(err)
		}
	}
	var list struct{ Items []api.Object }
	c.call("GET", "/api/v1/devices", "", &list)
	for _, want := range []time.Time{before, now.Truncate(time.Second)} {
		var one api.Object
		o := list.Items[0]
		list.Items = list.Items[1:]
		c.call("GET", "/api/v1/devices/"+o.Metadata.Name, "", &one)
		for how, raw := range map[string]json.RawMessage{"listed": o.Status, "read": one.Status} {
			var s api.DeviceStatus
			if err := json.Unmarshal(raw, &s); err != nil || s.LastSeen == nil || !s.LastSeen.Equal(want) || s.Version != "v" {
				t.Errorf("%s, %s: %s, want %s", o.Metadata.Name, how, raw, want)
			}
		}
	}
}

// HTTP's own way of saying at which version a write was meant.
func TestIfMatch(t *testing.T) {
	c := start(t, nil)
	send := func(method, path, body, match string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, c.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.admin)
		if match != "" {
			req.Header.Set("If-Match", match)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 400 {
			var e api.Error
			if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Message == "" || e.Remedy == "" {
				t.Errorf("%s with If-Match %s: %+v %v", method, match, e, err)
			}
		}
		return resp.StatusCode, resp.Header.Get("ETag")
	}
	const motd = "/api/v1/configs/motd"
	other := strings.Replace(configBody, "hello", "bye", 1)
	if code, _ := send("PUT", motd, configBody, "*"); code != 412 {
		t.Errorf("* of what is not there: %d", code)
	}
	code, made := send("POST", "/api/v1/configs", configBody, "")
	if code != 201 || made == "" {
		t.Fatalf("%d %q", code, made)
	}
	if _, got := send("GET", motd, "", ""); got != made {
		t.Errorf("ETag %s, want %s", got, made)
	}
	for _, match := range []string{`"99"`, "99", `W/` + made} {
		if code, _ := send("PUT", motd, other, match); code != 412 {
			t.Errorf("PUT with %s: %d", match, code)
		}
		if code, _ := send("DELETE", motd, "", match); code != 412 {
			t.Errorf("DELETE with %s: %d", match, code)
		}
	}
	code, next := send("PUT", motd, other, `"99", `+made)
	if code != 200 || next == made {
		t.Errorf("PUT at its revision: %d %s", code, next)
	}
	if code, _ := send("PUT", motd, configBody, made); code != 412 {
		t.Errorf("PUT at the revision before: %d", code)
	}
	if code, _ := send("PUT", motd, configBody, "*"); code != 200 {
		t.Errorf("PUT with *: %d", code)
	}
	_, next = send("GET", motd, "", "")
	if code, _ := send("DELETE", motd, "", next); code != 204 {
		t.Errorf("DELETE at its revision: %d", code)
	}
}

// Each refusal of a request's form says what to do.
func TestFormsOfRequests(t *testing.T) {
	c := start(t, nil)
	for _, r := range []struct{ method, path, says string }{
		{"GET", "/api/v1/sites?limit=0", "1 to 1000"},
		{"GET", "/api/v1/sites?limit=many", "1 to 1000"},
		{"POST", "/api/v1/apply", "body"},
		{"GET", "/api/v1/sites?from=-1", "openapi.json"},
	} {
		if code, e := c.call(r.method, r.path, "", nil); code < 400 || code > 422 || !strings.Contains(e.Error(), r.says) {
			t.Errorf("%s: %d %v", r.path, code, e)
		}
	}
	if _, e := c.call("DELETE", "/api/v1/tenants/default", "", nil); e == nil || strings.Contains(e.Message, "in tenant") {
		t.Errorf("%v", e)
	}
}
