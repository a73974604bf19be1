package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
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
	greetTime   = 15 * time.Second
)

// greeter answers boxes that look for their owner in the core's place: it passes on what
// they ask, with the certificate that they showed, and keeps the answers for the time in
// which the parent is away. None of them is a secret, and a box believes their signatures
// alone.
type greeter struct {
	s      *Server
	attach func(*http.Request) []api.ParentRef

	mu   sync.Mutex
	kept map[[32]byte][]byte // by key of the box
}

// Greeter is the handler of a port of its own, whose TLS asks for a certificate of anyone
// and verifies none. attach tells where the box that asks reaches this relay.
func (s *Server) Greeter(attach func(*http.Request) []api.ParentRef) http.Handler {
	g := &greeter{s: s, attach: attach, kept: map[[32]byte][]byte{}}
	mux := http.NewServeMux()
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
	q := identity.Greeting{Hint: r.Header.Get(hintHeader), Input: input, Attach: g.attach(r)}
	for _, c := range r.TLS.PeerCertificates {
		q.Chain = append(q.Chain, c.Raw)
	}
	key := sha256.Sum256(r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo)
	status, answer, err := g.pass(r.Context(), op, q)
	switch {
	case err != nil || status >= 500:
		if kept := g.recall(key); op == operation && kept != nil {
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
	w.Header().Set("Content-Type", "application/yang-data+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(answer)
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
	ctx, cancel := context.WithTimeout(ctx, greetTime)
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
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
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

func (g *greeter) recall(key [32]byte) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kept[key]
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
	if r.Method != http.MethodPost || op != operation && op != progress {
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
	w.Header().Set("Content-Type", "application/yang-data+json")
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}
