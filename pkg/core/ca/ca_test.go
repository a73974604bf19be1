package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)} }

func openCA(t *testing.T, dir string, c *clock) *CA {
	t.Helper()
	ca, err := Open(dir, Options{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// registrar is the core's server in small: one token, devices in memory.
type registrar struct {
	mu      sync.Mutex
	token   identity.JoinToken
	uses    int
	seals   map[api.DeviceID][]byte
	retired map[api.DeviceID]bool
	last    Application
}

func (r *registrar) Enrol(_ context.Context, a Application) (Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = a
	if a.TokenID != r.token.ID || a.Secret != r.token.Secret {
		return Grant{}, &api.Error{Code: api.Unauthorized, Message: "unknown token", Remedy: "make one"}
	}
	if r.retired[a.Device] {
		return Grant{}, api.Errorf(api.Forbidden, "retired")
	}
	if _, there := r.seals[a.Device]; !there {
		r.uses++
	}
	r.seals[a.Device] = a.SealKey
	return Grant{Name: a.Name, Tenant: "acme", Labels: map[string]string{"role": "field"}, Approved: true}, nil
}

func (r *registrar) Renew(_ context.Context, a Application) (Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.seals[a.Device]; !there || r.retired[a.Device] {
		return Grant{}, api.Errorf(api.Forbidden, "retired or unknown")
	}
	r.seals[a.Device] = a.SealKey
	return Grant{Name: "box", Tenant: "acme", Approved: true}, nil
}

// site is a core, and a relay that passes /enrol/v1/ on and reads what it can.
type site struct {
	ca    *CA
	reg   *registrar
	core  *httptest.Server
	relay *httptest.Server
	mu    sync.Mutex
	seen  bytes.Buffer
}

func newSite(t *testing.T, c *clock) *site {
	s := &site{ca: openCA(t, t.TempDir(), c), reg: &registrar{seals: map[api.DeviceID][]byte{}, retired: map[api.DeviceID]bool{}}}
	tok, err := identity.NewJoinToken("t1", s.ca.Fingerprint(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.reg.token = tok
	id, err := s.ca.Identity([]string{"localhost", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	s.core = httptest.NewUnstartedServer(s.ca.Handler(s.reg, slog.New(slog.DiscardHandler)))
	s.core.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.core.TLS = id.ServerTLSOptional()
	s.core.StartTLS()
	t.Cleanup(s.core.Close)
	up, _ := url.Parse(s.core.URL)
	proxy := httputil.NewSingleHostReverseProxy(up)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	s.relay = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := httptest.NewRecorder()
		proxy.ServeHTTP(rec, r)
		s.mu.Lock()
		s.seen.Write(body)
		if r.URL.Path != identity.PathTrust {
			s.seen.Write(rec.Body.Bytes())
		}
		s.mu.Unlock()
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
	}))
	t.Cleanup(s.relay.Close)
	return s
}

func newBox(t *testing.T) (key, seal *ecdsa.PrivateKey) {
	t.Helper()
	key, seal, err := identity.LoadOrCreateKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return key, seal
}

func TestEnrolThroughRelay(t *testing.T) {
	c := newClock()
	s := newSite(t, c)
	key, seal := newBox(t)
	cfg := identity.EnrolConfig{ParentURL: s.relay.URL, Token: s.reg.token, Key: key, Seal: seal, Name: "canary-name",
		Hardware: api.Hardware{Arch: "amd64", Serial: "canary-serial"}, Labels: map[string]string{"hw.tributary/arch": "amd64"}, Relay: true, Addresses: []string{"10.0.0.2"}}
	id, reply, err := identity.Enrol(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Name != "canary-name" || reply.Tenant != "acme" || reply.Labels["role"] != "field" || !reply.Approved || reply.Time != c.now().Unix() {
		t.Fatalf("reply %+v", reply)
	}
	leaf := id.Cert[0]
	if leaf.Subject.CommonName != id.ID().String() || leaf.Subject.Organization[0] != "acme" {
		t.Fatalf("subject %v", leaf.Subject)
	}
	if a := s.reg.last; a.Hardware.Serial != "canary-serial" || !a.Relay || a.Addresses[0] != "10.0.0.2" || a.Device != id.ID() {
		t.Fatalf("application %+v", a)
	}
	for _, canary := range []string{s.reg.token.Secret, "canary", "acme", "field", string(leaf.Raw)} {
		if strings.Contains(s.seen.String(), canary) {
			t.Fatalf("the relay read %q", canary)
		}
	}

	// The same box again: a lost reply costs no use of the token.
	if _, _, err := identity.Enrol(t.Context(), cfg); err != nil || s.reg.uses != 1 {
		t.Fatalf("again: %v, %d uses", err, s.reg.uses)
	}
	// Both ends derive the same state key, and a secret opens.
	pub, err := identity.ParsePublicKey(s.reg.seals[id.ID()])
	if err != nil {
		t.Fatal(err)
	}
	ours, _ := identity.StateKey(s.ca.SealingKeys()[0], pub, id.ID())
	theirs, err := id.StateKey()
	if err != nil || ours != theirs {
		t.Fatalf("state keys differ: %v", err)
	}
	info := identity.SealInfo{Device: id.ID(), Name: "db", Generation: 1}
	sealed, err := identity.Seal(pub, info, []byte("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := identity.Open(id.Seal, info, sealed); err != nil || string(got) != "s3cret" {
		t.Fatalf("%q %v", got, err)
	}
	// It comes back from the disk.
	dir := t.TempDir()
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := identity.Load(dir); err != nil || again.ID() != id.ID() {
		t.Fatalf("load: %v", err)
	}
}

func TestEnrolRefusals(t *testing.T) {
	s := newSite(t, newClock())
	key, seal := newBox(t)
	cfg := identity.EnrolConfig{ParentURL: s.core.URL, Token: s.reg.token, Key: key, Seal: seal}

	wrong := cfg
	wrong.Token.Secret = "nonsense"
	if _, _, err := identity.Enrol(t.Context(), wrong); api.CodeOf(err) != api.Unauthorized || !strings.Contains(err.Error(), "make one") {
		t.Errorf("wrong secret: %v", err)
	}
	// A false core, with a CA of its own, gets nothing sealed to it.
	other := newSite(t, newClock())
	false1 := cfg
	false1.ParentURL = other.core.URL
	if _, _, err := identity.Enrol(t.Context(), false1); err == nil || !strings.Contains(err.Error(), "join token") || other.reg.last.Secret != "" {
		t.Errorf("false core: %v", err)
	}
	s.reg.retired[identity.KeyID(&key.PublicKey)] = true
	if _, _, err := identity.Enrol(t.Context(), cfg); api.CodeOf(err) != api.Forbidden {
		t.Errorf("retired: %v", err)
	}
	s.core.Close()
	if _, _, err := identity.Enrol(t.Context(), cfg); api.CodeOf(err) != api.Unavailable {
		t.Errorf("core away: %v", err)
	}
}

func TestOldRequestsAreNotServed(t *testing.T) {
	c := newClock()
	s := newSite(t, c)
	key, seal := newBox(t)
	cfg := identity.EnrolConfig{ParentURL: s.relay.URL, Token: s.reg.token, Key: key, Seal: seal}
	var recorded []byte
	cfg.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPost {
			recorded, _ = io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(recorded))
		}
		return s.relay.Client().Transport.RoundTrip(r)
	})}
	if _, _, err := identity.Enrol(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	replay := func() int {
		resp, err := s.relay.Client().Post(s.relay.URL+identity.PathEnrol, identity.SealedType, bytes.NewReader(recorded))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if got := replay(); got != http.StatusOK { // at once: the same as a retry, and unreadable to the replayer
		t.Fatalf("status %d", got)
	}
	c.add(nonceLife + time.Minute)
	if got := replay(); got != http.StatusConflict {
		t.Fatalf("an old request got status %d", got)
	}
	for i := range recorded {
		bad := bytes.Clone(recorded)
		bad[i] ^= 0x40
		resp, err := s.relay.Client().Post(s.relay.URL+identity.PathEnrol, identity.SealedType, bytes.NewReader(bad))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnprocessableEntity {
			t.Fatalf("byte %d altered: status %d", i, resp.StatusCode)
		}
		if testing.Short() && i > 200 {
			break
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRenewAndExpiry(t *testing.T) {
	c := newClock()
	s := newSite(t, c)
	key, seal := newBox(t)
	id, _, err := identity.Enrol(t.Context(), identity.EnrolConfig{ParentURL: s.relay.URL, Token: s.reg.token, Key: key, Seal: seal})
	if err != nil {
		t.Fatal(err)
	}
	id.Now = c.now
	c.add(DeviceLife + 24*time.Hour) // the uplink was down for long

	coreID, err := s.ca.Identity([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(coreID.ServerTLS(), id.ClientTLS("core")); !errors.Is(err, identity.ErrExpired) {
		t.Fatalf("an expired certificate at a strict server: %v", err)
	}
	if err := handshake(coreID.ServerTLSOptional(), id.ClientTLS("core")); err != nil {
		t.Fatalf("at the server that lets it renew: %v", err)
	}

	// At its own relay it keeps its place for 90 days; not at another's, not once it is
	// retired, and not for longer.
	live := identity.NewLive(device(t, s.ca, c))
	own, refused := map[api.DeviceID]bool{}, false
	live.Lapsed = func(d api.DeviceID) bool { return own[d] }
	live.Refused = func(api.DeviceID) bool { return refused }
	at := func(want bool, when string) {
		t.Helper()
		if err := handshake(live.ServerTLS(), id.ClientTLS("")); (err == nil) != want {
			t.Errorf("%s: %v", when, err)
		}
	}
	at(false, "at a strange relay")
	own[id.ID()] = true
	at(true, "at its own relay")
	refused = true
	at(false, "retired")
	refused = false
	c.add(identity.Grace - 2*24*time.Hour)
	live = identity.NewLive(device(t, s.ca, c))
	live.Lapsed = func(d api.DeviceID) bool { return own[d] }
	at(true, "at its own relay, a day before the end")
	c.add(2 * 24 * time.Hour)
	at(false, "at its own relay, after 90 days")

	_, newSeal := newBox(t)
	oldInfo := identity.SealInfo{Device: id.ID(), Name: "db", Generation: 1}
	toOld, err := identity.Seal(&seal.PublicKey, oldInfo, []byte("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	renewed, reply, err := identity.Renew(t.Context(), identity.RenewConfig{ParentURL: s.core.URL, Identity: id, Seal: newSeal})
	if err != nil {
		t.Fatal(err)
	}
	if renewed.ID() != id.ID() || !renewed.Expires().After(c.now()) || reply.Tenant != "acme" || !renewed.Seal.Equal(newSeal) {
		t.Fatalf("renewed %v until %v", renewed.ID(), renewed.Expires())
	}
	// What was sealed to the old key opens; a power cut between the files of Save leaves
	// a whole identity, old or new.
	if got, err := renewed.OpenSecret(oldInfo, toOld); err != nil || string(got) != "s3cret" {
		t.Fatalf("%q %v", got, err)
	}
	oldCert, err := os.ReadFile(filepath.Join(dir, "device.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := renewed.Save(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := identity.Load(dir); err != nil || !again.Seal.Equal(newSeal) || !again.OldSeal.Equal(seal) {
		t.Fatalf("after renewal: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "device.pem"), oldCert, 0o644); err != nil { // cut before the last file
		t.Fatal(err)
	}
	if again, err := identity.Load(dir); err != nil || !again.Seal.Equal(seal) {
		t.Fatalf("after a cut: %v", err)
	}
	live = identity.NewLive(id)
	cfg := live.ClientTLS("core")
	live.Set(renewed) // configurations made before take the new certificate
	if err := handshake(coreID.ServerTLS(), cfg); err != nil {
		t.Fatal(err)
	}
	s.reg.retired[id.ID()] = true
	if _, _, err := identity.Renew(t.Context(), identity.RenewConfig{ParentURL: s.relay.URL, Identity: renewed}); api.CodeOf(err) != api.Forbidden {
		t.Fatalf("retired: %v", err)
	}
	// A certificate of another core does not renew here.
	foreign := openCA(t, t.TempDir(), c)
	chain, err := foreign.IssueDevice(&key.PublicKey, &seal.PublicKey, "acme")
	if err != nil {
		t.Fatal(err)
	}
	forged := *renewed
	forged.Cert = chain
	if _, _, err := identity.Renew(t.Context(), identity.RenewConfig{ParentURL: s.core.URL, Identity: &forged, HTTP: s.relay.Client()}); err == nil {
		t.Fatal("a foreign certificate renewed")
	}
}

// handshake does one over a pipe and returns the server's error, else the client's.
func handshake(server, client *tls.Config) error {
	a, b := net.Pipe()
	srv, cli := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := srv.Handshake()
		if err == nil {
			_, err = srv.Write([]byte("x")) // TLS 1.3: the client learns of a refusal by its first read
		}
		a.Close()
		done <- err
	}()
	err := cli.Handshake()
	if err == nil {
		_, err = io.ReadFull(cli, make([]byte, 1))
	}
	b.Close()
	if srvErr := <-done; srvErr != nil && !errors.Is(srvErr, io.ErrClosedPipe) {
		return srvErr
	}
	return err
}

func device(t *testing.T, ca *CA, c *clock) *identity.Identity {
	t.Helper()
	key, seal := newBox(t)
	chain, err := ca.IssueDevice(&key.PublicKey, &seal.PublicKey, "acme")
	if err != nil {
		t.Fatal(err)
	}
	return &identity.Identity{Key: key, Seal: seal, Cert: chain, Trust: ca.Trust(), Now: c.now}
}

func TestTLSKnowsWhoIsWho(t *testing.T) {
	c := newClock()
	ca, foreign := openCA(t, t.TempDir(), c), openCA(t, t.TempDir(), c)
	core, err := ca.Identity([]string{"core.example", "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	relay, box := device(t, ca, c), device(t, ca, c)
	stranger := device(t, foreign, c)
	retiring := identity.NewLive(relay)
	retiring.Refused = func(id api.DeviceID) bool { return id == box.ID() }
	// A device of ours whose certificate names another device.
	liar := device(t, ca, c)
	liar.Cert = relay.Cert

	for name, tc := range map[string]struct {
		server, client *tls.Config
		ok             bool
	}{
		"box to core":                 {core.ServerTLS(), box.ClientTLS("core"), true},
		"box to relay by id":          {relay.ServerTLS(), box.ClientTLS(relay.ID().String()), true},
		"box to any":                  {relay.ServerTLS(), box.ClientTLS(""), true},
		"core to relay":               {relay.ServerTLS(), core.ClientTLS(relay.ID().String()), true},
		"relay poses as core":         {relay.ServerTLS(), box.ClientTLS("core"), false},
		"another relay":               {relay.ServerTLS(), box.ClientTLS(box.ID().String()), false},
		"stranger as client":          {core.ServerTLS(), stranger.ClientTLS(""), false},
		"stranger as client, lenient": {core.ServerTLSOptional(), stranger.ClientTLS(""), false},
		"stranger as server":          {stranger.ServerTLS(), box.ClientTLS(""), false},
		"no certificate":              {core.ServerTLS(), &tls.Config{InsecureSkipVerify: true}, false},
		"no certificate, lenient":     {core.ServerTLSOptional(), &tls.Config{InsecureSkipVerify: true}, true},
		"retired":                     {retiring.ServerTLS(), box.ClientTLS(""), false},
		"another's certificate":       {core.ServerTLS(), liar.ClientTLS(""), false},
		"a person by name":            {core.ServerTLSOptional(), &tls.Config{RootCAs: pool(ca), ServerName: "core.example", Time: c.now}, true},
		"a person by wrong name":      {core.ServerTLSOptional(), &tls.Config{RootCAs: pool(ca), ServerName: "evil.example", Time: c.now}, false},
	} {
		if err := handshake(tc.server, tc.client); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A box whose clock stands at its floor meets a parent that has renewed meanwhile.
func TestClockBehind(t *testing.T) {
	c := newClock()
	ca := openCA(t, t.TempDir(), c)
	box := device(t, ca, c)
	floor := c.now()
	box.Now = func() time.Time { return floor }
	c.add(60 * 24 * time.Hour)
	core, err := ca.Identity([]string{"core"})
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(core.ServerTLS(), box.ClientTLS("core")); err != nil {
		t.Fatal(err)
	}
}

func pool(ca *CA) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.root)
	return p
}

func TestRootCanBeMovedAway(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	ca := openCA(t, dir, c)
	rootKey, err := os.ReadFile(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	again := openCA(t, dir, c)
	if again.Fingerprint() != ca.Fingerprint() || again.RootKeyPresent() {
		t.Fatal("another CA")
	}
	device(t, again, c)
	if _, err := again.Identity([]string{"x"}); err != nil {
		t.Fatal(err)
	}
	if err := again.Rotate(identity.RoleSigner); err == nil || !strings.Contains(err.Error(), "root.key") {
		t.Fatalf("rotated without the root: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.key"), rootKey, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.Rotate(identity.RoleSigner); err != nil {
		t.Fatal(err)
	}
}

func TestRotation(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	ca := openCA(t, dir, c)
	aad := []byte("tributary/test")
	sign := func() []byte {
		key, kid := ca.Signer()
		raw, err := identity.SignKID(key, kid, aad, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	verifies := func(tr *identity.Trust, raw []byte) bool { _, err := tr.Verify(raw, aad); return err == nil }
	oldTrust, bySigner1 := ca.Trust(), sign()
	old := device(t, ca, c)
	for _, role := range []string{identity.RoleSigner, identity.RoleIssuer} {
		c.add(time.Second)
		if err := ca.Rotate(role); err != nil {
			t.Fatal(err)
		}
	}
	bySigner2 := sign()
	for _, x := range []*CA{ca, openCA(t, dir, c)} {
		tr := x.Trust()
		if !verifies(tr, bySigner1) || !verifies(tr, bySigner2) || len(tr.Signers) != 2 || len(tr.Issuers) != 2 {
			t.Fatal("both signers must verify while both stand in the trust")
		}
	}
	_, err := oldTrust.Verify(bySigner2, aad)
	if !errors.Is(err, identity.ErrUnknownSigner) {
		t.Fatalf("a box with the old trust: %v", err)
	}
	core, err := ca.Identity([]string{"core"})
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(core.ServerTLS(), old.ClientTLS("core")); err != nil {
		t.Fatalf("a device of the old issuer: %v", err)
	}
	if err := ca.Forget(); err != nil {
		t.Fatal(err)
	}
	if verifies(ca.Trust(), bySigner1) || len(openCA(t, dir, c).Trust().Signers) != 1 {
		t.Fatal("forgotten signer still believed")
	}
}

func TestServerCertificateIsKeptAndRenewed(t *testing.T) {
	c := newClock()
	ca := openCA(t, t.TempDir(), c)
	get := func(names ...string) string {
		id, err := ca.Identity(names)
		if err != nil {
			t.Fatal(err)
		}
		return string(id.Cert[0].Raw)
	}
	a := get("x", "10.0.0.1")
	if get("x", "10.0.0.1") != a {
		t.Fatal("made anew for nothing")
	}
	b := get("x", "y")
	if b == a {
		t.Fatal("kept with other names")
	}
	c.add(tlsLife * 3 / 4)
	if get("x", "y") == b {
		t.Fatal("kept near its end")
	}
}

// Open after a power cut at any point of the first Open ends with a whole CA; a damaged
// folder is refused, never silently remade.
func TestServerFile(t *testing.T) {
	c := newClock()
	ca := openCA(t, t.TempDir(), c)
	path := filepath.Join(t.TempDir(), "tls.pem")
	keep := func(want bool, names ...string) {
		t.Helper()
		until, made, err := ca.ServerFile(path, names)
		if err != nil || made != want || until.Before(c.now()) {
			t.Fatalf("made %t until %s: %v", made, until, err)
		}
	}
	keep(true, "x")
	keep(false, "x")
	keep(true, "y")
	c.add(tlsLife * 3 / 4)
	keep(true, "y")
	own, err := ca.Identity([]string{"y"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := readPair(path)
	if err != nil || p.cert.Subject.CommonName != identity.CoreName || p.key.Equal(own.Key) {
		t.Errorf("%v %+v", err, p.cert.Subject)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(err, info.Mode())
	}
}

func TestOpenAfterCut(t *testing.T) {
	c := newClock()
	whole := t.TempDir()
	ca := openCA(t, whole, c)
	order := []string{"root.key", "root.crt", "issuer.pem", "signer.pem", "sealing.pem"}
	for n := range order {
		dir := t.TempDir()
		for _, name := range order[:n] {
			b, err := os.ReadFile(filepath.Join(whole, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		again := openCA(t, dir, c)
		if n >= 2 && again.Fingerprint() != ca.Fingerprint() {
			t.Fatalf("cut before %s: another root", order[n])
		}
	}
	if err := os.Remove(filepath.Join(whole, "root.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(whole, Options{Now: c.now}); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("a folder without its root: %v", err)
	}
	other := t.TempDir()
	openCA(t, other, c)
	mixed := t.TempDir()
	openCA(t, mixed, c)
	b, err := os.ReadFile(filepath.Join(other, "signer.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mixed, "signer.pem"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(mixed, Options{Now: c.now}); err == nil {
		t.Fatal("a signer of another root accepted")
	}
}

func TestSnapshotRestore(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	ca := openCA(t, dir, c)
	if err := ca.Rotate(identity.RoleSigner); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Identity([]string{"x"}); err != nil {
		t.Fatal(err)
	}
	files, err := Snapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "ca")
	for range 2 {
		if err := Restore(to, files); err != nil {
			t.Fatal(err)
		}
	}
	again := openCA(t, to, c)
	if !bytes.Equal(again.Trust().Encode(), ca.Trust().Encode()) {
		t.Fatal("another trust after restore")
	}
	if err := Restore(to, map[string][]byte{"../evil": nil}); err == nil {
		t.Fatal("wrote outside")
	}
	other := t.TempDir()
	openCA(t, other, c)
	if err := Restore(other, files); err == nil {
		t.Fatal("wrote over another CA")
	}
}

func FuzzEnrolHandler(f *testing.F) {
	ca, err := Open(f.TempDir(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	csr, err := identity.NewCSR(key, &key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	h := ca.Handler(&registrar{seals: map[api.DeviceID][]byte{}}, slog.New(slog.DiscardHandler))
	f.Add([]byte{0x85, 1, 0x40, 0x40, 0x40, 0x40})
	f.Add(csr)
	sum := sha256.Sum256(csr)
	f.Add(sum[:])
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{identity.PathEnrol, identity.PathRenew} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body)))
			if w.Code < 400 || w.Code >= 500 {
				t.Fatalf("status %d", w.Code)
			}
		}
		identity.ParseCSR(body)
	})
}
