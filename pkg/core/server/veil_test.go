package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/wait"
)

// A viewer cannot try guesses of a Secret: no dry run's answer depends on what is stored.
func TestViewerCannotGuessSecrets(t *testing.T) {
	c := start(t, nil)
	secret := func(value string) string {
		return `{"apiVersion":"tributary/v1","kind":"Secret","metadata":{"name":"s"},"spec":{"data":{"pin":"` + value + `"}}}`
	}
	if code, e := c.call("POST", "/api/v1/secrets", secret("1234"), nil); code != 201 {
		t.Fatal(code, e)
	}
	const site = `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"}}`
	ask := func(token, body string) (string, []server.ApplyResult) {
		var r struct{ Results []server.ApplyResult }
		if code, e := c.callAs(token, "POST", "/api/v1/apply?dryRun=true", body, &r); code != 200 {
			t.Fatal(code, e)
		}
		for i := range r.Results {
			r.Results[i].Object = nil // a new one gets a number and a time each time
		}
		return fmt.Sprint(r.Results), r.Results
	}
	right, results := ask(c.viewer, secret("1234")+site)
	if wrong, _ := ask(c.viewer, secret("0000")+site); right != wrong {
		t.Errorf("a right guess and a wrong one differ:\n%s\n%s", right, wrong)
	}
	if len(results) != 2 || results[0].Kind != "Site" || results[0].Action != "created" || results[1].Action != "unknown" {
		t.Errorf("the rest of the file is not told: %+v", results)
	}
	if _, results := ask(c.admin, secret("1234")); results[0].Action != "unchanged" {
		t.Errorf("an admin: %+v", results)
	}
}

// A yes may be written in every way that the description of the API allows.
func TestYesInAQuery(t *testing.T) {
	c := start(t, func(cfg *server.Config) { cfg.Ledger = audits{} })
	const doc = `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"}}`
	for _, yes := range []string{"true", "1", "t", "TRUE", "True"} {
		for _, path := range []string{"sites", "events"} {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", c.url+"/api/v1/"+path+"?watch="+yes, nil)
			req.Header.Set("Authorization", "Bearer "+c.viewer)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if kind := resp.Header.Get("Content-Type"); kind != "text/event-stream" {
				t.Errorf("%s?watch=%s: %s", path, yes, kind)
			}
			cancel()
			resp.Body.Close()
		}
		if code, e := c.callAs(c.viewer, "POST", "/api/v1/apply?dryRun="+yes, doc, nil); code != 200 {
			t.Errorf("dryRun=%s: %d %v", yes, code, e)
		}
	}
	for no, want := range map[string]int{"0": 403, "false": 403, "yes": 422, "": 403} {
		if code, _ := c.callAs(c.viewer, "POST", "/api/v1/apply?dryRun="+no, doc, nil); code != want {
			t.Errorf("dryRun=%q: %d", no, code)
		}
	}
	if code, e := c.call("GET", "/api/v1/sites?watch=maybe", "", nil); code != 422 || e.Field != "query.watch" {
		t.Errorf("watch=maybe: %d %+v", code, e)
	}
}

// The log names who was refused.
func TestRefusedAreNamed(t *testing.T) {
	var mu sync.Mutex
	var out bytes.Buffer
	c := start(t, func(cfg *server.Config) {
		cfg.Log = slog.New(slog.NewJSONHandler(lockedWriter{&mu, &out}, nil))
		cfg.Routes = []server.Route{{Pattern: "POST /room", Needs: server.Needs{Action: access.Govern, On: server.Platform}, Handler: http.NotFoundHandler()}}
	})
	for _, path := range []string{"/api/v1/sites", "/room"} {
		mu.Lock()
		out.Reset()
		mu.Unlock()
		if code, _ := c.callAs(c.viewer, "POST", path, `{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"hill"}}`, nil); code != 403 {
			t.Fatal(code)
		}
		// The line follows the answer.
		wait.Seen(t, "the log names who was refused "+path, func() (any, bool) {
			mu.Lock()
			defer mu.Unlock()
			text := out.String()
			return text, strings.Contains(text, `"code":403`) && strings.Contains(text, `"who":"viewer"`)
		})
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	to io.Writer
}

func (w lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(b)
}

// audits is a ledger of one exec with a password among its arguments.
type audits struct{}

var ran = api.Event{Name: "exec.opened", Subject: "shop/db", Actor: "ann", Message: "psql --password hunter2"}

func (audits) Usage(context.Context, api.DeviceID) (*server.UsageReport, error) {
	return &server.UsageReport{}, nil
}
func (audits) Records(context.Context, api.DeviceID, uint64, int) ([]server.RecordEntry, error) {
	e := ran
	return []server.RecordEntry{{Seq: 1, Kind: "audit", Event: &e}, {Seq: 2, Kind: "audit", Data: []byte("hunter2"), Poison: "not CBOR"}}, nil
}
func (audits) Events(context.Context, server.EventScope, int) ([]server.EventEntry, error) {
	return []server.EventEntry{{Seq: 1, Audit: true, Tenant: api.DefaultTenant, Event: ran}}, nil
}

// What was run in a container is told to viewers by the program's name alone.
func TestViewersSeeNoArguments(t *testing.T) {
	c := start(t, func(cfg *server.Config) { cfg.Ledger = audits{} })
	box := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: api.DefaultTenant, Name: "field-1"}, Spec: json.RawMessage(`{}`)}
	if _, err := c.store.Put(t.Context(), box, store.PutOptions{Status: api.DeviceStatus{ID: api.DeviceID{1}}}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/v1/events", "/api/v1/events?watch=true", "/api/v1/records?device=field-1"} {
		if text := c.read(c.viewer, "GET", path, ""); strings.Contains(text, "hunter2") || !strings.Contains(text, "psql …") {
			t.Errorf("a viewer reads %s: %s", path, text)
		}
		if text := c.read(c.admin, "GET", path, ""); !strings.Contains(text, "hunter2") {
			t.Errorf("an admin reads %s: %s", path, text)
		}
	}
}

// read is an answer as text; of a stream, what comes until all that is there has come.
func (c *core) read(token, method, path, body string) string {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		c.t.Fatalf("%s: %s", path, resp.Status)
	}
	if !strings.Contains(path, "watch") {
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	var text []byte
	for b := make([]byte, 512); !bytes.Contains(text, []byte("synced")); {
		n, err := resp.Body.Read(b)
		if text = append(text, b[:n]...); err != nil {
			break
		}
	}
	return string(text)
}
