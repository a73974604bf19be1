package onboard

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// core is the far end of enrolment over real HTTPS, with a CA of its own.
type core struct {
	t        *testing.T
	key      *ecdsa.PrivateKey
	sealing  *ecdsa.PrivateKey
	trust    *identity.Trust
	url      string
	life     atomic.Int64 // of a certificate, ns
	refuse   atomic.Pointer[identity.EnrolError]
	enrolled atomic.Int32
	renewed  atomic.Int32
	asked    atomic.Int32
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (c *core) issue(pub *ecdsa.PublicKey, cn, role string, life time.Duration, more ...pkix.Extension) *x509.Certificate {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	parent := tmpl
	if c.trust != nil {
		parent = c.trust.Root
	} else {
		tmpl.IsCA, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	}
	if role != "" {
		ext, err := identity.RoleExtension(role)
		if err != nil {
			c.t.Error(err)
		}
		tmpl.ExtraExtensions = append(more, ext)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, c.key)
	if err != nil {
		c.t.Error(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Error(err)
	}
	return cert
}

func newCore(t *testing.T) *core {
	c := &core{t: t, key: newKey(t), sealing: newKey(t)}
	c.life.Store(int64(time.Hour))
	root := c.issue(&c.key.PublicKey, "root", "", time.Hour)
	c.trust = &identity.Trust{Root: root}
	c.trust.Issuers = []*x509.Certificate{c.issue(&newKey(t).PublicKey, "issuer", identity.RoleIssuer, time.Hour)}
	c.trust.Signers = []*x509.Certificate{c.issue(&newKey(t).PublicKey, "signer", identity.RoleSigner, time.Hour)}
	c.trust.Sealing = c.issue(&c.sealing.PublicKey, "sealing", identity.RoleSealing, time.Hour)
	s := httptest.NewUnstartedServer(c)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *core) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.asked.Add(1)
	if r.URL.Path == identity.PathTrust {
		w.Header().Set(identity.NonceHeader, base64.RawURLEncoding.EncodeToString([]byte("nonce")))
		_, _ = w.Write(c.trust.Encode())
		return
	}
	body, err := io.ReadAll(r.Body)
	var csr []byte
	var reply func(*identity.EnrolReply) ([]byte, error)
	answer := &identity.EnrolReply{Name: "box", Approved: true, Time: time.Now().Unix()}
	switch {
	case err != nil:
	case r.URL.Path == identity.PathRenew:
		var q identity.RenewRequest
		_, reply, err = identity.OpenRequest([]*ecdsa.PrivateKey{c.sealing}, r.URL.Path, body, &q)
		csr = q.CSR
		if answer.Error = c.refuse.Load(); answer.Error == nil {
			c.renewed.Add(1)
		}
	default:
		var q identity.EnrolRequest
		_, reply, err = identity.OpenRequest([]*ecdsa.PrivateKey{c.sealing}, r.URL.Path, body, &q)
		csr = q.CSR
		if answer.Error = c.refuse.Load(); answer.Error == nil {
			c.enrolled.Add(1)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if answer.Error == nil {
		key, seal, err := identity.ParseCSR(csr)
		if err != nil {
			c.t.Error(err)
			return
		}
		ext, err := identity.SealKeyExtension(seal)
		if err != nil {
			c.t.Error(err)
		}
		answer.Chain = [][]byte{c.issue(key, identity.KeyID(key).String(), identity.RoleDevice, time.Duration(c.life.Load()), ext).Raw}
		answer.Trust = c.trust.Encode()
	}
	sealed, err := reply(answer)
	if err != nil {
		c.t.Error(err)
	}
	w.Header().Set("Content-Type", identity.SealedType)
	_, _ = w.Write(sealed)
}

func (c *core) config(dir string) Config {
	token := identity.JoinToken{ID: "t1", Secret: "s", RootFP: identity.Fingerprint(c.trust.Root)}
	return Config{Dir: dir, Parents: func() []string { return []string{"https://127.0.0.1:1", c.url} },
		Token:    func() (identity.JoinToken, error) { return token, nil },
		Describe: func() identity.EnrolConfig { return identity.EnrolConfig{Name: "box"} },
		Now:      time.Now, Raise: func(time.Time) error { return nil },
		Pace: Pace{Min: time.Millisecond, Max: 5 * time.Millisecond}, Log: slog.New(slog.DiscardHandler)}
}

func TestJoinSurvivesWhatComesFirst(t *testing.T) {
	c := newCore(t)
	dir := filepath.Join(t.TempDir(), "identity")
	cfg := c.config(dir)
	c.refuse.Store(&identity.EnrolError{Code: api.Forbidden, Message: "the token is used up"})
	tries, good := 0, cfg.Token
	cfg.Token = func() (identity.JoinToken, error) {
		switch tries++; {
		case tries < 3:
			return identity.JoinToken{}, errors.New("no token file yet")
		case tries == 6:
			c.refuse.Store(nil)
		}
		return good()
	}
	m, err := Join(t.Context(), cfg)
	if err != nil || c.enrolled.Load() != 1 {
		t.Fatalf("%v after %d enrolments", err, c.enrolled.Load())
	}
	id := m.Live.Get().ID()

	m, err = Join(t.Context(), c.config(dir))
	if err != nil || m.Live.Get().ID() != id || c.enrolled.Load() != 1 {
		t.Fatalf("the second start: %v, %d enrolments", err, c.enrolled.Load())
	}
}

// A token that cannot be used is waited for without a single request, a refused one is
// tried again and given up at once for another, and one that cannot change ends it.
func TestJoinWithBadTokens(t *testing.T) {
	c := newCore(t)
	cfg := c.config(t.TempDir())
	cfg.Pace = Pace{Min: 5 * time.Millisecond, Max: time.Hour}
	good, err := cfg.Token()
	if err != nil {
		t.Fatal(err)
	}
	unreadable := &api.Error{Code: api.Unavailable, Message: "the file holds no join token"}
	var looks int
	var reasons []string
	refused := good
	refused.ID = "t0"
	c.refuse.Store(&identity.EnrolError{Code: api.Forbidden, Message: "the token is used up"})
	cfg.Token = func() (identity.JoinToken, error) {
		switch looks++; {
		case looks < 20:
			if c.asked.Load() != 0 {
				t.Error("asked a parent without a token")
			}
			return identity.JoinToken{}, unreadable
		case len(reasons) < 2: // until it was refused
			return refused, nil
		}
		c.refuse.Store(nil)
		return good, nil
	}
	cfg.Waiting = func(err error) { reasons = append(reasons, err.Error()) }
	if _, err := Join(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if len(reasons) != 2 || !strings.Contains(reasons[0], "no join token") || !strings.Contains(reasons[1], "used up") {
		t.Errorf("told %q", reasons)
	}

	cfg = c.config(t.TempDir())
	cfg.Token = func() (identity.JoinToken, error) { return identity.ParseJoinToken("tj1.cut") }
	if _, err := Join(t.Context(), cfg); api.CodeOf(err) != api.Invalid {
		t.Errorf("a token that will never be one: %v", err)
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	c := newCore(t)
	c.refuse.Store(&identity.EnrolError{Code: api.Forbidden, Message: "no"})
	ctx, cancel := context.WithCancel(t.Context())
	cfg := c.config(t.TempDir())
	good := cfg.Token
	cfg.Token = func() (identity.JoinToken, error) { cancel(); return good() }
	if _, err := Join(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestRenewalInTime(t *testing.T) {
	c := newCore(t)
	c.life.Store(int64(6 * time.Second)) // renewed after 4 s; it must not end while a busy machine joins
	cfg := c.config(t.TempDir())
	m, err := Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := m.Live.Get()
	c.life.Store(int64(time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	wait.Until(t, "it is renewed", func() bool { return m.Live.Get() != first })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	again, err := identity.Load(cfg.Dir)
	if err != nil || !again.Expires().Equal(m.Live.Get().Expires()) || again.ID() != first.ID() || c.renewed.Load() != 1 {
		t.Errorf("on disk: %v, %v; %d renewals", again, err, c.renewed.Load())
	}
}

func TestPause(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pace{Min: time.Duration(rapid.Int64Range(1, 1e10).Draw(t, "min")), Max: time.Duration(rapid.Int64Range(1, 1e12).Draw(t, "max"))}
		n := rapid.IntRange(0, 1000).Draw(t, "failures")
		d := p.pause(n, rapid.Float64Range(0, 1).Draw(t, "r"))
		if d < p.Min/2 || d > max(p.Min, p.Max, time.Minute) || p.pause(n+1, 0) < p.pause(n, 0) {
			t.Fatalf("pause %s after %d failures with %+v", d, n, p)
		}
	})
}

func TestFinding(t *testing.T) {
	now := time.Unix(1e9, 0)
	i := &identity.Identity{Cert: []*x509.Certificate{{NotBefore: now, NotAfter: now.Add(90 * time.Hour)}}}
	for _, c := range []struct {
		after time.Duration
		err   error
		want  string
	}{{10 * time.Hour, io.EOF, ""}, {70 * time.Hour, io.EOF, "certificate-expiring"}, {91 * time.Hour, io.EOF, "certificate-expired"}, {91 * time.Hour, nil, ""}} {
		w := finding(i, now.Add(c.after), c.err)
		if got := (w != nil); got != (c.want != "") || got && w.Name != c.want {
			t.Errorf("after %s with %v: %+v", c.after, c.err, w)
		}
	}
}

// A member whom the core turns away asks why, once in a while and no more, says what it
// was told, and takes that back when the core answers again.
func TestTurnedAway(t *testing.T) {
	c := newCore(t)
	cfg := c.config(t.TempDir())
	var ahead atomic.Int64
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	m, err := Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- m.Run(ctx) }()
	defer func() { cancel(); <-over }()
	until := func(what string, ok func() bool) {
		t.Helper()
		wait.Seen(t, what, func() (any, bool) { return m.Warnings(), ok() })
	}
	c.refuse.Store(&identity.EnrolError{Code: api.Forbidden, Message: "this core does not know the box", Remedy: "enrol"})
	m.TurnedAway()
	until("the warning", func() bool {
		w := m.Warnings()
		return len(w) == 1 && w[0].Name == "not-a-member" && w[0].Remedy == "enrol"
	})
	asked := c.asked.Load()
	for range 100 {
		m.TurnedAway()
	}
	m.mu.Lock()
	pause := m.askPause
	m.mu.Unlock()
	if pause != time.Minute || c.asked.Load() != asked {
		t.Errorf("asked again at once: %d requests after %d, pause %s", c.asked.Load(), asked, pause)
	}
	ahead.Store(int64(90 * time.Second))
	c.refuse.Store(nil)
	m.TurnedAway()
	until("the renewal", func() bool { return c.renewed.Load() == 1 && len(m.Warnings()) == 0 })

	m.mu.Lock()
	m.warn = finding(m.Live.Get(), cfg.Now(), &api.Error{Code: api.Unauthorized, Message: "wait"})
	m.mu.Unlock()
	if len(m.Warnings()) != 1 {
		t.Fatal("no warning for a box that waits")
	}
	if m.Welcome(); len(m.Warnings()) != 0 {
		t.Errorf("the core answers, and still %+v", m.Warnings())
	}
}
