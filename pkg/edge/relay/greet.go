package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/oci"
)

const (
	// restconf is where boxes without an owner ask (RFC 8572 section 7).
	restconf   = "/restconf/operations/ietf-sztp-bootstrap-server:"
	operation  = "get-bootstrapping-data"
	progress   = "report-progress"
	hintHeader = "Tributary-Pairing-Hint"

	maxQuestion = 16 << 10
	maxAnswer   = 2 << 20
	maxGreeted  = 64 // boxes whose answer is kept
	greetTime   = 8 * time.Second
)

// greeter answers boxes that look for their owner in the core's place: it passes on what
// they ask, with the certificate that they showed, and keeps the answers for the time in
// which the parent is away. None of them is a secret, and a box believes their signatures
// alone.
type greeter struct {
	s      *Server
	attach func(*http.Request) []api.ParentRef

	mu    sync.Mutex
	kept  map[[32]byte][]byte // by key of the box, and the form that it takes
	ahead *ahead              // before any box asked
}

// Greeter is the handler of a port of its own, whose TLS asks for a certificate of anyone
// and verifies none. attach tells where the box that asks reaches this relay; without a
// request, where any box may. dir is a folder for what boxes are told while the parent is
// away; it is kept until ctx ends.
func (s *Server) Greeter(ctx context.Context, dir string, attach func(*http.Request) []api.ParentRef) http.Handler {
	g := &greeter{s: s, attach: attach, kept: map[[32]byte][]byte{}, ahead: openAhead(dir, s.cfg.Log)}
	g.dropFile(dir + ".json")
	go g.prefetch(ctx, g.pin(nil))
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", g.guests)
	for _, op := range []string{operation, progress} {
		mux.HandleFunc("POST "+restconf+op, func(w http.ResponseWriter, r *http.Request) { g.greet(w, r, op) })
	}
	return mux
}

func (g *greeter) greet(w http.ResponseWriter, r *http.Request, op string) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || len(r.TLS.PeerCertificates) > 8 {
		turnAway(w, http.StatusForbidden, "access-denied", "the box shows no certificate of its birth (IDevID)")
		return
	}
	input, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err != nil {
		turnAway(w, http.StatusRequestEntityTooLarge, "too-big", "the request cannot be read, or is too long")
		return
	}
	q := identity.Greeting{Hint: r.Header.Get(hintHeader), Input: input, Kind: r.Header.Get("Content-Type"), Accept: r.Header.Get("Accept"), Attach: g.attach(r)}
	for _, c := range r.TLS.PeerCertificates {
		q.Chain = append(q.Chain, c.Raw)
	}
	key := sha256.Sum256(append([]byte(q.Kind+"\x00"+q.Accept+"\x00"), r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo...))
	status, answer, err := g.pass(r.Context(), op, q)
	switch {
	case err != nil || status >= 500:
		serial := r.TLS.PeerCertificates[0].Subject.SerialNumber
		if onlyXML(q) {
			serial = "" // what was fetched ahead is in JSON
		}
		if kept := g.recall(key, serial); op == operation && kept != nil {
			g.s.cfg.Log.Info("a box that looks for its owner hears what was said before; the parent is away", "remote", r.RemoteAddr)
			status, answer = http.StatusOK, kept
			break
		}
		g.s.cfg.Log.Info("a box that looks for its owner is not answered; the parent is away", "remote", r.RemoteAddr, "status", status, "err", err)
		turnAway(w, http.StatusServiceUnavailable, "operation-failed", "the relay does not reach the core now")
		return
	case status == http.StatusOK && op == operation:
		g.keep(key, answer)
	}
	w.Header().Set("Content-Type", formOf(answer))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

// formOf is the media type of an answer in either of RESTCONF's forms.
func formOf(answer []byte) string {
	if bytes.HasPrefix(answer, []byte("<")) {
		return "application/yang-data+xml"
	}
	return "application/yang-data+json"
}

// onlyXML tells whether a box takes no answer in JSON.
func onlyXML(q identity.Greeting) bool {
	if q.Accept == "" {
		return strings.HasPrefix(q.Kind, "application/yang-data+xml")
	}
	return strings.Contains(q.Accept, "yang-data+xml") && !strings.Contains(q.Accept, "json") && !strings.Contains(q.Accept, "*")
}

// pass asks the parent.
func (g *greeter) pass(ctx context.Context, op string, q identity.Greeting) (status int, answer []byte, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return 0, nil, err
	}
	base, client, err := g.s.cfg.Parent.Endpoint()
	if err != nil {
		return 0, nil, err
	}
	patience := greetTime
	if op == identity.GreetExpected {
		patience = aheadTime
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.JoinPath(identity.GreetPrefix, op).String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	most := int64(maxAnswer)
	if op == identity.GreetExpected {
		most = maxAheadPage
	}
	answer, err = io.ReadAll(io.LimitReader(resp.Body, most))
	return resp.StatusCode, answer, err
}

func (g *greeter) keep(key [32]byte, answer []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k := range g.kept {
		if len(g.kept) < maxGreeted {
			break
		}
		delete(g.kept, k) // any: it is asked for again
	}
	g.kept[key] = answer
}

func (g *greeter) recall(key [32]byte, serial string) []byte {
	if answer := g.ahead.answer(serial); answer != nil { // which names what to run until the parent is back
		return answer
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kept[key]
}

// guests lets boxes fetch what their first apps need, which are expected, not yet members,
// and certified by a manufacturer whom the core knows. As for members, a digest is the
// permission; nothing is fetched that the relay does not have or may get.
func (g *greeter) guests(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil || !g.guest(r.TLS.PeerCertificates) {
		fail(w, api.Errorf(api.Forbidden, "no box that is expected"))
		return
	}
	g.s.cfg.Cache.ServeHTTP(w, r)
}

func (g *greeter) guest(chain []*x509.Certificate) bool {
	if len(chain) == 0 || len(chain) > 8 {
		return false
	}
	makers, expected := g.ahead.expects(chain[0].Subject.SerialNumber)
	if !expected {
		return false
	}
	roots, between, at := x509.NewCertPool(), x509.NewCertPool(), chain[0].NotBefore // births are not undone by time
	for _, der := range makers {
		if c, err := x509.ParseCertificate(der); err == nil {
			roots.AddCert(c)
			if c.NotBefore.After(at) {
				at = c.NotBefore
			}
		}
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
		if c.NotBefore.After(at) {
			at = c.NotBefore
		}
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// pin has the cache fetch what expected boxes need, and forget what those needed that are
// expected no more. old is what it was told of before. Most boxes need the same, which is pinned once.
func (g *greeter) pin(old map[string][]oci.Ref) (now map[string][]oci.Ref) {
	now = g.ahead.needs()
	if g.s.cfg.Cache == nil {
		return now
	}
	for name := range old {
		if now[name] == nil {
			g.s.cfg.Cache.Pin(name, nil)
		}
	}
	for name, refs := range now {
		if old[name] == nil {
			g.s.cfg.Cache.Pin(name, refs)
		}
	}
	g.s.fetch.wake()
	return now
}

const (
	// aheadEvery is how often the parent is asked for what boxes are to be told, besides when the relay's manifest
	// says that others are expected: seldom, since a handshake is most of what it costs on a narrow uplink. aheadFold
	// is for how long more of these are waited for, since people import lists. aheadRetry is the pause after a
	// failure, doubled up to the first.
	aheadEvery = 6 * time.Hour
	aheadFold  = time.Second
	aheadRetry = 10 * time.Second
	// aheadTime bounds the fetch of one page, on a narrow uplink. aheadRate is, over time, the most bytes a second:
	// after a fetch of more the next one waits.
	aheadTime = time.Minute
	aheadRate = 128 << 10
	// maxAheadPage bounds a page: of a parent that knows no pages it is all.
	maxAheadPage = 8 << 20
)

// dropFile ends what a release before this one kept, in one file, and its pins.
func (g *greeter) dropFile(file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	var old identity.Ahead
	if json.Unmarshal(text, &old) == nil && g.s.cfg.Cache != nil {
		for serial := range old.Boxes {
			g.s.cfg.Cache.Pin(pinPrefix+serial, nil)
		}
	}
	_ = os.Remove(file) // tried again at the next start
}

// prefetch keeps what expected boxes are to be told, until ctx ends. needs are pinned.
func (g *greeter) prefetch(ctx context.Context, needs map[string][]oci.Ref) {
	retry, known := aheadRetry, ""
	for {
		pause := aheadEvery
		read, err := g.fetch(ctx)
		needs = g.pin(needs)
		if err != nil {
			g.s.cfg.Log.Debug("what expected boxes are told is not fetched ahead", "err", err)
			pause, retry = retry, min(2*retry, aheadEvery)
		} else {
			retry = aheadRetry
		}
		fold := max(aheadFold, time.Duration(read)*time.Second/aheadRate)
		t := time.NewTimer(pause)
		for due := false; !due; {
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
				due = true
			case word := <-g.s.expected:
				if word != known {
					known, retry = word, aheadRetry
					t.Reset(fold)
				}
			}
		}
	}
}

// Expected tells the greeter the newest word for the boxes that are expected: when it is another than before, what
// they are to be told is fetched at once. It returns at once.
func (s *Server) Expected(word string) {
	for {
		select {
		case s.expected <- word:
			return
		default:
		}
		select {
		case <-s.expected: // nobody took the one before
		default:
		}
	}
}

// fetch asks for all pages of what expected boxes are told that is new. It tells how many bytes
// that took.
func (g *greeter) fetch(ctx context.Context) (read int, err error) {
	fresh := 0
	for after := ""; ; {
		q := identity.Greeting{Attach: g.attach(nil), Page: &identity.AheadPage{After: after, Have: g.ahead.tags(after, 2*identity.AheadBoxes)}}
		status, answer, err := g.pass(ctx, identity.GreetExpected, q)
		read += len(answer)
		if err != nil {
			return read, err
		}
		if status != http.StatusOK {
			return read, fmt.Errorf("the parent answers %d", status)
		}
		var page identity.Ahead
		if err := json.Unmarshal(answer, &page); err != nil {
			return read, err
		}
		if page.Next != "" && page.Next <= after {
			return read, fmt.Errorf("the parent goes on from %q with %q", after, page.Next)
		}
		if err := g.ahead.take(after, page); err != nil {
			return read, err
		}
		fresh += len(page.Boxes)
		if page.Next == "" {
			break
		}
		if after = page.Next; g.ahead.full() {
			g.s.cfg.Log.Warn("more boxes are expected here than this relay can greet while its parent is away", "most", maxAheadBoxes, "remedy", "give each its site: edgectl device expect --site")
			break
		}
	}
	if fresh > 0 {
		return read, g.ahead.sync()
	}
	return read, nil
}

// turnAway is an error as RESTCONF has it (RFC 8040 section 7).
func turnAway(w http.ResponseWriter, status int, tag, message string) {
	w.Header().Set("Content-Type", "application/yang-data+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"ietf-restconf:errors": map[string]any{
		"error": []map[string]string{{"error-type": "application", "error-tag": tag, "error-message": message}}}})
}

// greetings passes on what a relay below passes on.
func (s *Server) greetings(w http.ResponseWriter, r *http.Request) {
	op := strings.TrimPrefix(r.URL.Path, identity.GreetPrefix)
	if r.Method != http.MethodPost || op != operation && op != progress && op != identity.GreetExpected {
		fail(w, api.Errorf(api.NotFound, "no such path"))
		return
	}
	var q identity.Greeting
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, identity.MaxGreeting)).Decode(&q); err != nil {
		fail(w, &api.Error{Code: api.Invalid, Message: "no greeting", Err: err})
		return
	}
	status, answer, err := (&greeter{s: s}).pass(r.Context(), op, q)
	if err != nil {
		s.cfg.Log.Log(r.Context(), slog.LevelDebug, "a greeting is not passed on", "err", err)
		fail(w, &api.Error{Code: api.Unavailable, Message: "the parent cannot be reached"})
		return
	}
	w.Header().Set("Content-Type", formOf(answer))
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}
