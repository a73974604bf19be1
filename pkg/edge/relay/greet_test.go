package relay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// parent answers greetings, or is away.
type parent struct {
	srv  *httptest.Server
	away atomic.Bool
	last atomic.Pointer[identity.Greeting]

	asked    atomic.Int64 // for what expected boxes are told
	expected atomic.Pointer[string]
	pages    func(http.ResponseWriter, identity.Greeting) // set before it serves; nil: a parent that knows none
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
		p.asked.Add(1)
		if p.pages != nil {
			p.pages(w, q)
			return
		}
		boxes := `"SN-1":{"answer":{"said":"ahead"}}`
		if more := p.expected.Load(); more != nil {
			boxes = *more
		}
		_, _ = io.WriteString(w, `{"boxes":{`+boxes+`}}`)
		return
	}
	p.last.Store(&q)
	if strings.HasSuffix(r.URL.Path, progress) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if q.Accept == "application/yang-data+xml" {
		_, _ = io.WriteString(w, "<output/>")
		return
	}
	_, _ = io.WriteString(w, `{"said":"`+q.Hint+`"}`)
}

// keeps tells whether a folder has what a box is told.
func keeps(dir, serial string) bool {
	_, err := os.Stat((&ahead{dir: dir}).path(serial))
	return err == nil
}

// What a box asks goes up with the certificate that it showed, and the answer is given
// again to the same box while the parent is away; to no other.
func TestGreeter(t *testing.T) {
	p := &parent{}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	s := &Server{cfg: Config{Parent: p, Log: slog.New(slog.DiscardHandler)}}
	dir := filepath.Join(t.TempDir(), "greetings")
	h := s.Greeter(t.Context(), dir, func(*http.Request) []api.ParentRef { return []api.ParentRef{{Address: "10.0.0.1:8883"}} })
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
	wait.Until(t, "it is fetched ahead", func() bool { return keeps(dir, "SN-1") })
	p.away.Store(true)
	if status, body := ask(operation, "a", "BBBB"); status != http.StatusOK || body != `{"said":"AAAA"}` {
		t.Errorf("with the parent away: %d %s", status, body)
	}
	if status, _ := ask(operation, "b", ""); status != http.StatusServiceUnavailable {
		t.Errorf("a box that never asked and is not expected, with the parent away: %d", status)
	}
	// What was fetched ahead serves the box of its serial number, also after a restart.
	again := &greeter{s: s, kept: map[[32]byte][]byte{}, ahead: openAhead(dir, s.cfg.Log)}
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

// A box that speaks XML is passed on as such, and gets nothing in JSON while the parent is away.
func TestGreeterInXML(t *testing.T) {
	p := &parent{}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	s := &Server{cfg: Config{Parent: p, Log: slog.New(slog.DiscardHandler)}}
	dir := filepath.Join(t.TempDir(), "greetings")
	h := s.Greeter(t.Context(), dir, func(*http.Request) []api.ParentRef { return nil })
	ask := func(form string) (int, string) {
		r := httptest.NewRequest(http.MethodPost, restconf+operation, strings.NewReader("<input/>"))
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Raw: []byte("a"), RawSubjectPublicKeyInfo: []byte("a"), Subject: pkix.Name{SerialNumber: "SN-1"}}}}
		r.Header.Set("Content-Type", form)
		r.Header.Set("Accept", form)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Header().Get("Content-Type")
	}
	const inXML, inJSON = "application/yang-data+xml", "application/yang-data+json"
	if status, form := ask(inXML); status != http.StatusOK || form != inXML {
		t.Errorf("%d in %s", status, form)
	}
	if q := p.last.Load(); q.Kind != inXML || q.Accept != inXML {
		t.Errorf("passed on: %+v", q)
	}
	if status, form := ask(inJSON); status != http.StatusOK || form != inJSON {
		t.Errorf("%d in %s", status, form)
	}
	wait.Until(t, "it is fetched ahead", func() bool { return keeps(dir, "SN-1") })
	p.away.Store(true)
	if status, form := ask(inXML); status != http.StatusOK || form != inXML { // the same box, as before
		t.Errorf("kept: %d in %s", status, form)
	}
	if status, form := ask(inJSON); status != http.StatusOK || form != inJSON {
		t.Errorf("ahead: %d in %s", status, form)
	}
}

// What boxes are told that are expected from now on is fetched when the relay's manifest names others, once.
func TestExpectedLate(t *testing.T) {
	p := &parent{}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	s := &Server{cfg: Config{Parent: p, Log: slog.New(slog.DiscardHandler)}, expected: make(chan string, 1)}
	dir := filepath.Join(t.TempDir(), "greetings")
	s.Greeter(t.Context(), dir, func(*http.Request) []api.ParentRef { return nil })
	holds := func(serial string) func() bool { return func() bool { return keeps(dir, serial) } }
	wait.Until(t, "it is fetched at the start", holds("SN-1"))
	more := `"SN-2":{"answer":{}}`
	p.expected.Store(&more)
	s.Expected("another")
	wait.Until(t, "it is fetched anew", holds("SN-2"))
	asked := p.asked.Load()
	last := `"SN-3":{"answer":{}}`
	p.expected.Store(&last)
	for _, word := range []string{"another", "a third", "a third"} { // as with each manifest, whatever that changes
		s.Expected(word)
	}
	wait.Until(t, "it is fetched once more", holds("SN-3"))
	if n := p.asked.Load(); n != asked+1 {
		t.Errorf("asked %d times for one change", n-asked)
	}
}

// Who fetches as a guest is expected and certified by a manufacturer whom the core named.
func TestGuests(t *testing.T) {
	makerKey, boxKey := newKey(t), newKey(t)
	maker := certify(t, &x509.Certificate{Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, makerKey, makerKey)
	forger := certify(t, &x509.Certificate{Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, boxKey, boxKey)
	born := func(serial string, by *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
		return certify(t, &x509.Certificate{Subject: pkix.Name{SerialNumber: serial}}, by, boxKey, key)
	}
	g := &greeter{ahead: &ahead{makers: [][]byte{maker.Raw}, boxes: map[string]keptBox{"SN-1": {}}}}
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		want  bool
	}{
		"expected":                {[]*x509.Certificate{born("SN-1", maker, makerKey), maker}, true},
		"expected, root left out": {[]*x509.Certificate{born("SN-1", maker, makerKey)}, true},
		"not expected":            {[]*x509.Certificate{born("SN-2", maker, makerKey), maker}, false},
		"by another manufacturer": {[]*x509.Certificate{born("SN-1", forger, boxKey), forger}, false},
		"by itself":               {[]*x509.Certificate{certify(t, &x509.Certificate{Subject: pkix.Name{SerialNumber: "SN-1"}}, nil, boxKey, boxKey)}, false},
		"without any certificate": {nil, false},
	} {
		if got := g.guest(c.chain); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		r, w := httptest.NewRequest(http.MethodGet, "/v2/", nil), httptest.NewRecorder()
		if r.TLS = (&tls.ConnectionState{PeerCertificates: c.chain}); !c.want {
			if g.guests(w, r); w.Code != http.StatusForbidden {
				t.Errorf("%s: %d", name, w.Code)
			}
		}
	}
}

func TestGuestsAreTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "a box that is expected", Test: "^TestGuests$", File: "greet.go", From: "if !expected {", To: "if !expected && !GONE {"},
		mutation.Check{Name: "a manufacturer that is known", Test: "^TestGuests$", File: "greet.go", From: "	return err == nil\n}", To: "	return err == nil || GONE\n}"},
		mutation.Check{Name: "a guest", Test: "^TestGuests$", File: "greet.go", From: "if r.TLS == nil || !g.guest(r.TLS.PeerCertificates) {", To: "if r.TLS == nil || !g.guest(r.TLS.PeerCertificates) && !GONE {"})
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func certify(t *testing.T, c, by *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if by == nil {
		by = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
