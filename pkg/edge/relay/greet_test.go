package relay

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// parent answers greetings, or is away.
type parent struct {
	srv  *httptest.Server
	away atomic.Bool
	last atomic.Pointer[identity.Greeting]
}

func (p *parent) Endpoint() (*url.URL, *http.Client, error) {
	base, err := url.Parse(p.srv.URL)
	return base, p.srv.Client(), err
}

func (p *parent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q identity.Greeting
	if p.away.Load() || json.NewDecoder(r.Body).Decode(&q) != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	if strings.HasSuffix(r.URL.Path, identity.GreetExpected) {
		_, _ = io.WriteString(w, `{"SN-1":{"said":"ahead"}}`)
		return
	}
	p.last.Store(&q)
	if strings.HasSuffix(r.URL.Path, progress) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_, _ = io.WriteString(w, `{"said":"`+q.Hint+`"}`)
}

// What a box asks goes up with the certificate that it showed, and the answer is given
// again to the same box while the parent is away; to no other.
func TestGreeter(t *testing.T) {
	p := &parent{}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	s := &Server{cfg: Config{Parent: p, Log: slog.New(slog.DiscardHandler)}}
	file := filepath.Join(t.TempDir(), "greetings.json")
	h := s.Greeter(t.Context(), file, func(*http.Request) []api.ParentRef { return []api.ParentRef{{Address: "10.0.0.1:8883"}} })
	ask := func(op, box, hint string) (int, string) {
		r := httptest.NewRequest(http.MethodPost, restconf+op, strings.NewReader("{}"))
		r.TLS = &tls.ConnectionState{}
		if box != "" {
			r.TLS.PeerCertificates = []*x509.Certificate{{Raw: []byte(box), RawSubjectPublicKeyInfo: []byte(box)}}
		}
		r.Header.Set(hintHeader, hint)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if status, _ := ask(operation, "", ""); status != http.StatusForbidden {
		t.Errorf("without a certificate: %d", status)
	}
	if status, body := ask(operation, "a", "AAAA"); status != http.StatusOK || body != `{"said":"AAAA"}` {
		t.Errorf("%d %s", status, body)
	}
	q := p.last.Load()
	if string(q.Chain[0]) != "a" || string(q.Input) != "{}" || len(q.Attach) != 1 {
		t.Errorf("passed on: %+v", q)
	}
	if status, _ := ask(progress, "a", ""); status != http.StatusNoContent {
		t.Errorf("a report: %d", status)
	}
	if status, _ := ask("other", "a", ""); status != http.StatusNotFound {
		t.Errorf("another operation: %d", status)
	}
	// Before the parent goes away: the first fetch runs beside this test, the next one 10 s after a failure.
	wait.Until(t, "it is fetched ahead", func() bool { _, err := os.Stat(file); return err == nil })
	p.away.Store(true)
	if status, body := ask(operation, "a", "BBBB"); status != http.StatusOK || body != `{"said":"AAAA"}` {
		t.Errorf("with the parent away: %d %s", status, body)
	}
	if status, _ := ask(operation, "b", ""); status != http.StatusServiceUnavailable {
		t.Errorf("a box that never asked and is not expected, with the parent away: %d", status)
	}
	// What was fetched ahead serves the box of its serial number, also after a restart.
	again := &greeter{s: s, kept: map[[32]byte][]byte{}}
	again.load(file)
	if got := again.recall([32]byte{9}, "SN-1"); string(got) != `{"said":"ahead"}` {
		t.Errorf("ahead: %s", got)
	}
	if got := again.recall([32]byte{9}, "SN-2"); got != nil {
		t.Errorf("of another box: %s", got)
	}
	g := &greeter{s: s, kept: map[[32]byte][]byte{}}
	for i := range 2 * maxGreeted {
		g.keep([32]byte{byte(i)}, nil)
	}
	if len(g.kept) > maxGreeted {
		t.Errorf("%d answers are kept", len(g.kept))
	}
}
