package server_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

func (c *core) put(tenant, name, site string, labels map[string]string) {
	c.t.Helper()
	o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: tenant, Name: name, Labels: labels}, Spec: json.RawMessage(`{"approved":true,"site":"` + site + `"}`)}
	if _, err := c.store.Put(c.t.Context(), o, store.PutOptions{Status: api.DeviceStatus{ID: api.DeviceID{byte(len(name))}, Online: true}}); err != nil {
		c.t.Fatal(err)
	}
}

func withFinder(t *testing.T) func(*server.Config) {
	return func(cfg *server.Config) {
		cfg.Finder = server.NewFinder(cfg.Store)
		go func() { _ = cfg.Finder.Run(t.Context()) }()
	}
}

// What was just written is found, whole where a kind is named, and pages go on where the one before ended.
func TestSearch(t *testing.T) {
	c := start(t, withFinder(t))
	type reply struct {
		Items []server.SearchHit
		Next  string
		Total int
	}
	for i, name := range []string{"edge-1", "edge-22", "edge-333"} {
		c.put(api.DefaultTenant, name, []string{"hill", "port", "hill"}[i], nil)
	}
	var r reply
	if code, e := c.call("GET", "/api/v1/search?kind=devices&sort=-name&limit=2", "", &r); code != 200 || r.Total != 3 || len(r.Items) != 2 || r.Items[0].Name != "edge-333" || r.Items[0].Object == nil || r.Next == "" {
		t.Fatalf("%d %v %+v", code, e, r)
	}
	next := r.Next
	r = reply{}
	if code, e := c.call("GET", "/api/v1/search?kind=devices&sort=-name&limit=2&after="+url.QueryEscape(next), "", &r); code != 200 || len(r.Items) != 1 || r.Items[0].Name != "edge-1" || r.Next != "" {
		t.Fatalf("%d %v %+v", code, e, r)
	}
	r = reply{}
	if code, e := c.call("GET", "/api/v1/search?q=HILL&site=hill&state=healthy", "", &r); code != 200 || r.Total != 2 || r.Items[0].Object != nil {
		t.Fatalf("%d %v %+v", code, e, r)
	}
	for _, bad := range []string{"kind=Nothing", "sort=age", "after=x", "selector=%3D", "limit=0", "tenant=nobody"} {
		if code, e := c.call("GET", "/api/v1/search?"+bad, "", nil); code < 400 || code >= 500 || e.Remedy == "" {
			t.Errorf("%s: %d %v", bad, code, e)
		}
	}
}

// A reader hears of what changes within two seconds, nothing of what they may not see, and the stream ends when that changes.
func TestChangesAreHeard(t *testing.T) {
	c := walk(t)
	listen := func(token string) (lines chan string, end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", c.url+"/api/v1/changes", nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines = make(chan string, 100)
		go func() {
			defer close(lines)
			for in := bufio.NewScanner(resp.Body); in.Scan(); {
				if data, ok := strings.CutPrefix(in.Text(), "data: "); ok {
					lines <- data
				}
			}
		}()
		return lines, func() { cancel(); resp.Body.Close() }
	}
	own, done := listen(c.owner)
	defer done()
	other, done := listen(c.strangers["stranger"])
	defer done()
	wait.For(t, "the beginning", own)
	wait.For(t, "the stranger's beginning", other)
	began := time.Now()
	c.put("acme", "heard-of", "hill", nil)
	if text := wait.For(t, "the owner's note", own); !strings.Contains(text, `"Device"`) {
		t.Fatal(text)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v until a change was heard", took)
	}
	c.put("other", "their-own", "hill", nil) // after it, whatever there was to hear has come
	if text := wait.For(t, "the stranger's note", other); !strings.Contains(text, `"Device"`) || len(other) > 0 {
		t.Fatalf("the stranger hears %s and %d more", text, len(other))
	}
	if code, e := c.call("DELETE", "/api/v1/rolebindings/owner?tenant=acme", "", nil); code != 204 {
		t.Fatal(code, e)
	}
	for text := range own {
		if strings.Contains(text, `"code"`) {
			return
		}
	}
	t.Error("the owner hears on though nothing is theirs any more")
}

// echo is a device that says back what is typed.
type echo struct{}

func (echo) Open(context.Context, api.DeviceID, stream.Command) (*stream.Conn, error) {
	near, far := net.Pipe()
	go func() {
		c := stream.NewConn(far, 0)
		defer c.Close()
		for {
			f, err := c.Read()
			if err != nil || c.Write(stream.Stdout, append([]byte("said "), f.Payload...)) != nil {
				return
			}
		}
	}()
	return stream.NewConn(near, 0), nil
}

const shellPath = "/api/v1/devices/edge-1/exec?app=a&argv=sh&tty=true"

func (c *core) socket(token, origin, path string) (*stream.Conn, *http.Response, error) {
	header := http.Header{}
	if origin != "" {
		header.Set("Origin", origin)
	}
	conn, resp, err := websocket.Dial(c.t.Context(), c.url+path, &websocket.DialOptions{HTTPHeader: header, Subprotocols: []string{stream.Protocol, "bearer." + token}})
	if err != nil {
		return nil, resp, err
	}
	return stream.NewConn(websocket.NetConn(c.t.Context(), conn, websocket.MessageBinary), 0), resp, nil
}

// A browser's WebSocket carries the frames of a stream.
func TestSocket(t *testing.T) {
	c := start(t, func(cfg *server.Config) { cfg.Streams = echo{} })
	c.put(api.DefaultTenant, "edge-1", "", nil)
	for _, origin := range []string{"", c.url} {
		s, _, err := c.socket(c.admin, origin, shellPath)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(stream.Stdin, []byte("ls")); err != nil {
			t.Fatal(err)
		}
		if f, err := s.Read(); err != nil || string(f.Payload) != "said ls" {
			t.Fatal(f, err)
		}
		s.Close()
	}
}

// A page of another origin opens no stream, whoever's browser it is in; nor does a viewer.
func TestSocketRefuses(t *testing.T) {
	c := start(t, func(cfg *server.Config) { cfg.Streams = echo{} })
	c.put(api.DefaultTenant, "edge-1", "", nil)
	for name, x := range map[string]struct{ token, origin string }{"another origin": {c.admin, "https://evil.example"}, "an origin that is none": {c.admin, "null"}, "a viewer": {c.viewer, c.url}} {
		if s, resp, err := c.socket(x.token, x.origin, shellPath); err == nil {
			s.Close()
			t.Errorf("%s is seen to open a stream", name)
		} else if resp == nil || resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A stream ends soon after whoever opened it may not have it any more, and says why.
func TestStreamsEndWithTheRight(t *testing.T) {
	s := start(t, func(cfg *server.Config) { cfg.Streams = echo{} })
	s.put(api.DefaultTenant, "edge-1", "", nil)
	docs := doc("ServiceAccount", "default", "worker", `{}`) + doc("RoleBinding", "default", "worker", `{"role":"operator","subjects":[{"serviceAccount":"worker"}]}`)
	if code, e := s.call("POST", "/api/v1/apply", docs, nil); code != 200 {
		t.Fatal(code, e)
	}
	token, err := s.store.CreateTokenOf(t.Context(), "worker", api.Key{Tenant: "default", Kind: api.KindServiceAccount, Name: "worker"}, time.Time{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := s.socket(token, s.url, shellPath)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if code, e := s.call("DELETE", "/api/v1/rolebindings/worker", "", nil); code != 204 {
		t.Fatal(code, e)
	}
	last := make(chan stream.Frame, 1)
	go func() {
		for {
			f, err := conn.Read()
			if err != nil {
				return
			}
			if f.Type == stream.Failure {
				last <- stream.Frame{Type: f.Type, Payload: append([]byte{}, f.Payload...)}
			}
		}
	}()
	select {
	case f := <-last:
		if !strings.Contains(string(f.Payload), `"code"`) {
			t.Errorf("%s", f.Payload)
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream is seen to go on")
	}
}

// TestSocketsCount: without its checks, a stream opens to other pages, and outlives the right to it.
func TestSocketsCount(t *testing.T) {
	checks := mutation.Marked(t, "^TestSocketRefuses$", "socket.go")
	checks = append(checks, mutation.Marked(t, "^TestStreamsEndWithTheRight$", "streams.go")...)
	if len(checks) != 2 {
		t.Fatal(checks)
	}
	for i := range checks {
		checks[i].Says = "is seen to"
	}
	mutation.Prove(t, checks...)
}
