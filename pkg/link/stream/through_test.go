package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// testCA issues real identities for the tests.
type testCA struct {
	t      testing.TB
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	signer *ecdsa.PrivateKey
	trust  *identity.Trust
}

func newCA(t testing.TB) *testCA {
	ca := &testCA{t: t, key: newKey(t), signer: newKey(t)}
	ca.root = ca.cert(&ca.key.PublicKey, "root", "", nil)
	issue := func(role string, pub *ecdsa.PublicKey) *x509.Certificate { return ca.cert(pub, role, role, ca.root) }
	ca.trust = &identity.Trust{Root: ca.root,
		Issuers: []*x509.Certificate{issue(identity.RoleIssuer, &newKey(t).PublicKey)},
		Signers: []*x509.Certificate{issue(identity.RoleSigner, &ca.signer.PublicKey)},
		Sealing: issue(identity.RoleSealing, &newKey(t).PublicKey)}
	return ca
}

func (ca *testCA) cert(pub *ecdsa.PublicKey, cn, role string, parent *x509.Certificate) *x509.Certificate {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	if parent == nil {
		parent = tmpl
		tmpl.IsCA, tmpl.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	if role != "" {
		ext, err := identity.RoleExtension(role)
		if err != nil {
			ca.t.Fatal(err)
		}
		tmpl.ExtraExtensions = []pkix.Extension{ext}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return c
}

func (ca *testCA) identity(role string) *identity.Identity {
	key := newKey(ca.t)
	cn := identity.CoreName
	if role == identity.RoleDevice {
		cn = identity.KeyID(&key.PublicKey).String()
	}
	return &identity.Identity{Key: key, Trust: ca.trust, Cert: []*x509.Certificate{ca.cert(&key.PublicKey, cn, role, ca.root)}}
}

// listen serves h over TLS as id and returns its base address.
func listen(t testing.TB, id *identity.Identity, h http.Handler) *url.URL {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", id.ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return &url.URL{Scheme: "https", Host: l.Addr().String()}
}

// tree is a core, relays in a row below it, and a device below the last.
type tree struct {
	ca      *testCA
	core    *identity.Identity
	hub     *Hub
	device  *identity.Identity
	parent  Parent
	splices []*Splice
	sent    chan []byte
}

// newTree makes one; narrow changes the bounds of the relays, the uppermost is number 0.
func newTree(t testing.TB, relays int, tap func(http.Handler) http.Handler, narrow ...func(relay int, conf *SpliceConfig)) *tree {
	ca := newCA(t)
	tr := &tree{ca: ca, core: ca.identity(identity.RoleCore), device: ca.identity(identity.RoleDevice), sent: make(chan []byte, 16)}
	log := slog.New(slog.DiscardHandler)
	tr.hub = NewHub(HubConfig{Identity: tr.core, Signer: ca.signer, Wait: wait.Limit, Log: log,
		Send: func(dev api.DeviceID, raw []byte) error { tr.sent <- raw; return nil }})
	base := listen(t, tr.core, tr.hub)
	for n := range relays {
		id := ca.identity(identity.RoleDevice)
		at := base
		conf := SpliceConfig{Log: log, PerChild: 4, Parent: func() (*url.URL, *tls.Config, error) { return at, id.ClientTLS(""), nil }}
		for _, change := range narrow {
			change(n, &conf)
		}
		s := NewSplice(conf)
		tr.splices = append(tr.splices, s)
		base = listen(t, id, tap(s))
	}
	tr.parent = func() (*url.URL, *tls.Config, error) { return base, tr.device.ClientTLS(""), nil }
	return tr
}

func plain(h http.Handler) http.Handler { return h }

// beside runs f beside the test, which does not end before it.
func beside(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	t.Cleanup(func() { wait.For(t, "the device's end of a stream", done) })
}

// command is the next that was sent to the device, verified; nil when there is none.
func (tr *tree) command(t testing.TB) *Command {
	select {
	case raw := <-tr.sent:
		c, err := Verify(raw, tr.ca.trust, tr.device.ID(), time.Now(), &Replay{})
		if err == nil {
			return c
		}
		t.Error(err)
	case <-t.Context().Done():
		t.Error("no command came")
	}
	return nil
}

// answer plays the device once, beside the test: it serves the next command with do.
func (tr *tree) answer(t testing.TB, do func(c *Command, conn *Conn) (int, error)) {
	t.Helper()
	beside(t, func() {
		c := tr.command(t)
		if c == nil {
			return
		}
		// Not the test's context: the end of a stream may come after the test's last line.
		conn, err := Answer(context.WithoutCancel(t.Context()), tr.device, tr.parent, c)
		if err != nil {
			t.Error(err)
			return
		}
		code, err := do(c, conn)
		if err := conn.Finish(code, err, wait.Limit); err != nil {
			t.Error(err)
		}
	})
}

func TestExecThroughTwoRelays(t *testing.T) {
	tr := newTree(t, 2, plain)
	payload := bytes.Repeat([]byte("all that a person types "), 20_000) // 480 kB: many frames
	tr.answer(t, func(c *Command, conn *Conn) (int, error) {
		in := conn.Input()
		n, err := io.Copy(conn.Writer(Stdout), in.Stdin)
		if n != int64(len(payload)) || err != nil {
			t.Errorf("device read %d of %d: %v", n, len(payload), err)
		}
		if s := <-in.Resize; s != (Size{132, 43}) {
			t.Errorf("size %v", s)
		}
		_, _ = io.WriteString(conn.Writer(Stderr), "done "+strings.Join(c.Argv, " "))
		return 7, nil
	})
	conn, err := tr.hub.Open(t.Context(), tr.device.ID(), Command{Verb: Exec, App: "shop", Argv: []string{"cat", "-"}})
	if err != nil {
		t.Fatal(err)
	}
	resize := make(chan Size, 1)
	resize <- Size{132, 43}
	var out, errs bytes.Buffer
	code, err := Run(t.Context(), conn, Local{Stdin: bytes.NewReader(payload), Stdout: &out, Stderr: &errs, Resize: resize})
	if code != 7 || err != nil || !bytes.Equal(out.Bytes(), payload) || errs.String() != "done cat -" {
		t.Fatalf("exit %d, %v, %d bytes out, stderr %q", code, err, out.Len(), errs.String())
	}
	wait.Until(t, "the relays let go", func() bool { return tr.splices[0].Active() == 0 && tr.splices[1].Active() == 0 })
	wait.Until(t, "the hub lets go", func() bool { tr.hub.mu.Lock(); defer tr.hub.mu.Unlock(); return tr.hub.open == 0 })
}

func TestPersonThroughCoreToDevice(t *testing.T) {
	tr := newTree(t, 1, plain)
	core := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := FromQuery(Logs, r.URL.Query())
		if err != nil {
			WriteError(w, err)
			return
		}
		far, err := tr.hub.Open(r.Context(), tr.device.ID(), c)
		if err != nil {
			WriteError(w, err)
			return
		}
		defer far.Close()
		near, err := Accept(w, r)
		if err != nil {
			WriteError(w, err)
			return
		}
		_, _, _ = Join(near, far)
	}))
	defer core.Close()
	u, _ := url.Parse(core.URL)
	ask := Command{App: "shop", Follow: true}
	u.RawQuery = ask.Query().Encode()
	trust := core.Client().Transport.(*http.Transport).TLSClientConfig

	tr.answer(t, func(c *Command, conn *Conn) (int, error) {
		_, _ = io.WriteString(conn.Writer(Stdout), "one line\n")
		return 0, &api.Error{Code: api.NotFound, Message: "no such app here", Remedy: "see edgectl get apps", Err: errors.New("kept from people")}
	})
	conn, err := Dial(t.Context(), u, trust, http.Header{"Authorization": {"Bearer x"}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	_, err = Run(t.Context(), conn, Local{Stdout: &out})
	if api.CodeOf(err) != api.NotFound || out.String() != "one line\n" || strings.Contains(err.Error(), "kept") {
		t.Fatalf("%q, %v", out.String(), err)
	}

	u.RawQuery = "app=shop&wrong=1"
	if _, err := Dial(t.Context(), u, trust, nil); api.CodeOf(err) != api.Invalid {
		t.Fatalf("a wrong parameter: %v", err)
	}
}

func TestRelaySeesNothing(t *testing.T) {
	const canary = "canary-4f1d2c"
	var seen lockedBuffer
	tr := newTree(t, 1, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(tapWriter{w, &seen}, r) })
	})
	tr.answer(t, func(c *Command, conn *Conn) (int, error) {
		_, err := io.WriteString(conn.Writer(Stdout), canary)
		return 0, err
	})
	conn, err := tr.hub.Open(t.Context(), tr.device.ID(), Command{Verb: Logs, App: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := Run(t.Context(), conn, Local{Stdout: &out}); err != nil || out.String() != canary {
		t.Fatalf("%q, %v", out.String(), err)
	}
	if seen.Len() == 0 || bytes.Contains(seen.Bytes(), []byte(canary)) {
		t.Fatalf("the relay's tap of %d bytes is empty or holds the canary", seen.Len())
	}
}

func TestHubRefuses(t *testing.T) {
	tr := newTree(t, 0, plain)
	ctx, cancel := context.WithCancel(t.Context())
	opened := make(chan error, 1)
	go func() {
		conn, err := tr.hub.Open(ctx, tr.device.ID(), Command{Verb: Top})
		if conn != nil {
			conn.Close()
		}
		opened <- err
	}()
	raw := <-tr.sent
	c, err := Verify(raw, tr.ca.trust, tr.device.ID(), time.Now(), &Replay{})
	if err != nil {
		t.Fatal(err)
	}

	thief := tr.ca.identity(identity.RoleDevice)
	if conn, err := Answer(t.Context(), thief, tr.parent, c); err == nil {
		if _, err := conn.Read(); err == nil {
			t.Error("another device was let into the stream")
		}
		conn.Close()
	}
	other := *c
	other.Session[0] ^= 1
	if _, err := Answer(t.Context(), tr.device, tr.parent, &other); api.CodeOf(err) != api.NotFound {
		t.Errorf("a session that nobody opened: %v", err)
	}

	conn, err := Answer(t.Context(), tr.device, tr.parent, c)
	if err != nil {
		t.Fatalf("the right device after the thief: %v", err)
	}
	conn.Close()
	if err := <-opened; err != nil {
		t.Errorf("open: %v", err)
	}
	if _, err := Answer(t.Context(), tr.device, tr.parent, c); api.CodeOf(err) != api.NotFound {
		t.Errorf("the same session twice: %v", err)
	}
	cancel()
	if _, err := tr.hub.Open(ctx, tr.device.ID(), Command{Verb: Top}); !errors.Is(err, context.Canceled) {
		t.Errorf("open after cancel: %v", err)
	}
	tr.hub.mu.Lock()
	defer tr.hub.mu.Unlock()
	if tr.hub.open != 0 || len(tr.hub.wait) != 0 {
		t.Errorf("%d open, %d waiting are left", tr.hub.open, len(tr.hub.wait))
	}
}

func TestHubTimesOut(t *testing.T) {
	ca := newCA(t)
	hub := NewHub(HubConfig{Identity: ca.identity(identity.RoleCore), Signer: ca.signer, Wait: 10 * time.Millisecond,
		Max: 1, Send: func(api.DeviceID, []byte) error { return nil }, Log: slog.New(slog.DiscardHandler)})
	if _, err := hub.Open(t.Context(), api.DeviceID{1}, Command{Verb: Top}); api.CodeOf(err) != api.Unavailable {
		t.Fatalf("nobody answered: %v", err)
	}
	if _, err := hub.Open(t.Context(), api.DeviceID{1}, Command{Verb: "dance"}); api.CodeOf(err) != api.Invalid {
		t.Fatalf("unknown verb: %v", err)
	}
}

func TestSpliceBoundsAndIdle(t *testing.T) {
	ca := newCA(t)
	relay, device := ca.identity(identity.RoleDevice), ca.identity(identity.RoleDevice)
	hold := make(chan struct{})
	defer close(hold)
	above := listen(t, ca.identity(identity.RoleCore), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := Hijack(w, r)
		if err != nil {
			WriteError(w, err)
			return
		}
		<-hold
		conn.Close()
	}))
	conf := SpliceConfig{Log: slog.New(slog.DiscardHandler), PerChild: 2, Idle: wait.Limit,
		Parent: func() (*url.URL, *tls.Config, error) { return above, relay.ClientTLS(""), nil }}
	open := func(base *url.URL, path string) (net.Conn, error) {
		u := *base
		u.Path = path
		return Upgrade(t.Context(), &u, device.ClientTLS(""), nil, nil)
	}
	base := listen(t, relay, NewSplice(conf))
	for _, path := range []string{"/stream/v1/zz", "/stream/v1/", "/other/" + (SessionID{}).String()} {
		if _, err := open(base, path); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
	for range 2 {
		c, err := open(base, SessionID{1}.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := open(base, SessionID{1}.Path()); api.CodeOf(err) != api.Unavailable {
		t.Errorf("a third stream of one child: %v", err)
	}

	conf.Idle = 500 * time.Millisecond
	soon := NewSplice(conf)
	c, err := open(listen(t, relay, soon), SessionID{1}.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(wait.Limit))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an idle stream was kept: %v", err)
	}
	wait.Until(t, "its place comes back", func() bool { return soon.Active() == 0 })
}

func TestDeadPeerIsNoticed(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	conn := NewConn(a, 30*time.Millisecond)
	in := conn.Input()
	go func() { _, _ = io.CopyN(io.Discard, b, headerSize) }() // hears one ping, then is gone
	wait.For(t, "a silent peer to be noticed", in.Gone)
}

func TestSlowReaderMakesTheWriterWait(t *testing.T) {
	a, b := net.Pipe()
	near, far := NewConn(a, 0), NewConn(b, 0)
	defer near.Close()
	in := far.Input()
	wrote := make(chan struct{})
	go func() {
		_ = near.Write(Stdin, make([]byte, 3*MaxPayload))
		close(wrote)
	}()
	buf := make([]byte, MaxPayload)
	if _, err := io.ReadFull(in.Stdin, buf); err != nil {
		t.Fatal(err)
	}
	select {
	case <-wrote:
		t.Fatal("three frames were taken while one was read")
	default:
	}
	if _, err := io.ReadFull(in.Stdin, buf); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in.Stdin, buf); err != nil {
		t.Fatal(err)
	}
	<-wrote
}

func TestMain(m *testing.M) { wait.Leaks(m) }
