package relay

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/mutation"
)

// A device that is retired while its connection is open gets no artifact over it.
func TestRetiredDevicesGetNothing(t *testing.T) {
	leaf, id := child(t)
	var gone atomic.Bool
	s, _ := newServer(t, newUpstream(t), func(cfg *Config) {
		cfg.Live.Refused = func(retired api.DeviceID) bool { return gone.Load() && retired == id }
	})
	ask := func() int {
		r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code
	}
	if got := ask(); got != http.StatusOK {
		t.Fatalf("a device in good standing gets %d", got)
	}
	gone.Store(true)
	if got := ask(); got != http.StatusForbidden {
		t.Errorf("a retired device gets %d", got)
	}
}

// A device whose certificate has ended, by the relay's clock, may renew and fetches nothing: its place for 90 days is
// that of its topics alone (pkg/link/mqtt).
func TestExpiredDevicesRenewAlone(t *testing.T) {
	u := newUpstream(t)
	leaf, _ := child(t)
	s, _ := newServer(t, u, func(cfg *Config) { cfg.Now = func() time.Time { return leaf.NotAfter.Add(time.Second) } })
	for path, want := range map[string]int{"/v2/": http.StatusUnauthorized, identity.GreetPrefix + "get-bootstrapping-data": http.StatusUnauthorized, identity.PathTrust: http.StatusNotFound} {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
		w := httptest.NewRecorder()
		if s.Handler().ServeHTTP(w, r); w.Code != want { // the parent of this test knows no trust
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.asked["trust"] != 1 {
		t.Errorf("the parent was asked for the trust %d times", u.asked["trust"])
	}
}

func TestExpiryIsTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "in its time", Test: "^TestExpiredDevicesRenewAlone$", File: "relay.go", From: "		if err != nil {\n			fail(w, &api.Error{Code: api.Unauthorized, Message: \"a valid", To: "		if err != nil && !GONE {\n			fail(w, &api.Error{Code: api.Unauthorized, Message: \"a valid"})
}

// child is a device's certificate.
func child(t *testing.T) (*x509.Certificate, api.DeviceID) {
	t.Helper()
	key := newKey(t)
	role, err := identity.RoleExtension(identity.RoleDevice)
	if err != nil {
		t.Fatal(err)
	}
	id := identity.KeyID(&key.PublicKey)
	return certify(t, &x509.Certificate{Subject: pkix.Name{CommonName: id.String()}, ExtraExtensions: []pkix.Extension{role}}, nil, key, key), id
}
