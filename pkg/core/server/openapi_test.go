package server_test

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/link/stream"
)

// noStreams lets nobody through.
type noStreams struct{}

func (noStreams) Open(context.Context, api.DeviceID, stream.Command) (*stream.Conn, error) {
	return nil, api.Errorf(api.Unavailable, "nobody there")
}

// The description tells of watches, streams and protocols of their own, and of each stream
// just the parameters that it takes.
func TestOpenAPIOfStreams(t *testing.T) {
	c := start(t, func(cfg *server.Config) {
		cfg.Streams = noStreams{}
		cfg.Routes = []server.Route{{Pattern: "/v2/", Handler: http.NotFoundHandler(), Doc: "The OCI registry."}}
	})
	b, err := c.server.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	type operation struct {
		Summary    string
		Parameters []struct {
			Name, In string
			Required bool
		}
		Responses map[string]struct{ Content map[string]any }
		Security  []map[string]any
	}
	var doc struct {
		Paths map[string]map[string]operation
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	all := stream.Command{App: "a", Service: "s", Argv: []string{"x"}, TTY: true, Follow: true, Tail: 1, Port: 1, Size: stream.Size{Columns: 1, Rows: 1}}
	unsaid := all.Query()
	for name, want := range map[string][]string{"logs": {"app", "follow", "service", "tail", "tenant"}, "exec": {"app", "argv", "columns", "rows", "service", "tenant", "tty"},
		"port-forward": {"app", "port", "service", "tenant"}, "top": {"follow", "tenant"}} {
		op, ok := doc.Paths["/api/v1/devices/{name}/"+name]["get"]
		if !ok || op.Responses["101"].Content != nil || op.Responses["default"].Content == nil {
			t.Errorf("%s is not described: %+v", name, op)
		}
		var got []string
		for _, p := range op.Parameters {
			if p.In == "query" {
				got = append(got, p.Name)
				unsaid.Del(p.Name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s takes %v, want %v", name, got, want)
		}
		if code, e := c.call("GET", "/api/v1/devices/x/"+name+"?container=1", "", nil); code != 400 || !strings.Contains(e.Remedy, want[0]) {
			t.Errorf("%s with a parameter that it does not know: %d %v", name, code, e)
		}
	}
	if len(unsaid) > 0 {
		t.Errorf("no stream is said to take %v", unsaid)
	}
	for _, k := range api.Kinds {
		list := doc.Paths["/api/v1/"+k.Plural]["get"]
		if list.Responses["200"].Content["text/event-stream"] == nil || list.Responses["410"].Content == nil ||
			!slices.ContainsFunc(list.Parameters, func(p struct {
				Name, In string
				Required bool
			}) bool {
				return p.Name == "Last-Event-ID" && p.In == "header"
			}) {
			t.Errorf("the watch of %s is not described", k.Plural)
		}
	}
	for path, open := range map[string]bool{"/v2/": true, "/healthz": true, "/metrics": false, "/schemas/{file}": true} {
		op, ok := doc.Paths[path]["get"]
		if !ok || op.Summary == "" || open != (len(op.Security) == 1) {
			t.Errorf("%s: %+v", path, op)
		}
	}
}
