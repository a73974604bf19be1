package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// ErrExpired tells that a peer's certificate is genuine but past its time: such a peer
// may renew and do nothing else.
var ErrExpired = errors.New("certificate has expired")

// Live holds the identity in force, so that TLS configurations made once use the
// renewed certificate from the next handshake on. All methods may be called from any
// goroutine.
type Live struct {
	p atomic.Pointer[Identity]
	// Refused, when set before use, names devices that are turned away in the
	// handshake (retired ones).
	Refused func(api.DeviceID) bool
	// Lapsed tells whether a device whose certificate has ended may go on being served by
	// ServerTLS, for Grace: a relay's own children, which it may be alone with for long. nil:
	// nobody. It must be set before anybody is served.
	Lapsed func(api.DeviceID) bool
}

// Grace is how long after its certificate has ended a device keeps its place at its own
// relay.
const Grace = 90 * 24 * time.Hour

// NewLive starts with an identity.
func NewLive(i *Identity) *Live {
	l := &Live{}
	l.p.Store(i)
	return l
}

// Get is the identity in force.
func (l *Live) Get() *Identity { return l.p.Load() }

// Set puts a renewed identity in force.
func (l *Live) Set(i *Identity) { l.p.Store(i) }

// ClientTLS is the configuration to dial a parent with (see Live.ClientTLS).
func (i *Identity) ClientTLS(peer string) *tls.Config { return NewLive(i).ClientTLS(peer) }

// ServerTLS is the configuration to serve children with (see Live.ServerTLS).
func (i *Identity) ServerTLS() *tls.Config { return NewLive(i).ServerTLS() }

// ServerTLSOptional also lets in who shows no certificate (see Live.ServerTLSOptional).
func (i *Identity) ServerTLSOptional() *tls.Config { return NewLive(i).ServerTLSOptional() }

// ClientTLS makes a TLS 1.3 client configuration with the box's own certificate. The
// server is verified by its chain and by who it is, never by host name: peer is a
// device id's text, "core", or "" for any device or core of this CA. Sessions are not
// resumed, so that each handshake proves the certificate again.
func (l *Live) ClientTLS(peer string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The chain is verified below, against the root alone and by identity.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return l.Get().tlsCertificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, role, err := l.verifyPeer(cs, x509.ExtKeyUsageServerAuth)
			if err != nil {
				return err
			}
			switch got := nameOf(id, role); peer {
			case "", got:
				return nil
			default:
				return fmt.Errorf("expected %s at this address, found %s", peer, got)
			}
		},
	}
}

// ServerTLS makes a TLS 1.3 server configuration that lets in devices and the core of
// this CA alone: no certificate, a foreign, expired or refused one ends the handshake. Of
// the expired ones Lapsed may let some in.
func (l *Live) ServerTLS() *tls.Config {
	return l.serverTLS(tls.RequireAnyClientCert, func(cs tls.ConnectionState) error {
		id, role, err := l.verifyPeer(cs, x509.ExtKeyUsageClientAuth)
		if errors.Is(err, ErrExpired) && role == RoleDevice && l.lapsed(id, cs.PeerCertificates[0]) {
			return nil
		}
		return err
	})
}

// lapsed tells whether an expired device keeps its place.
func (l *Live) lapsed(id api.DeviceID, leaf *x509.Certificate) bool {
	return l.Lapsed != nil && l.Lasts(leaf) >= 0 && (l.Refused == nil || !l.Refused(id)) && l.Lapsed(id)
}

// Lasts is how long a session may last at most that begins with a device's certificate now.
func (l *Live) Lasts(leaf *x509.Certificate) time.Duration {
	return leaf.NotAfter.Add(Grace).Sub(l.Get().now())
}

// ServerTLSOptional also lets in peers without a certificate (people, boxes that
// enrol) and devices whose certificate has expired. Handlers ask PeerID, which tells
// the expired ones by ErrExpired. A certificate that is shown must be of this CA.
func (l *Live) ServerTLSOptional() *tls.Config {
	return l.serverTLS(tls.RequestClientCert, func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		_, _, err := l.verifyPeer(cs, x509.ExtKeyUsageClientAuth)
		if errors.Is(err, ErrExpired) {
			return nil
		}
		return err
	})
}

func (l *Live) serverTLS(auth tls.ClientAuthType, verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return l.Get().tlsCertificate(), nil
		},
		ClientAuth:             auth,
		VerifyConnection:       verify,
		SessionTicketsDisabled: true,
	}
}

func (i *Identity) tlsCertificate() *tls.Certificate {
	return &tls.Certificate{Certificate: ders(i.Cert), PrivateKey: i.Key, Leaf: i.Cert[0]}
}

func (l *Live) verifyPeer(cs tls.ConnectionState, usage x509.ExtKeyUsage) (id api.DeviceID, role string, err error) {
	i := l.Get()
	id, role, err = i.Trust.VerifyChain(cs.PeerCertificates, usage, i.now())
	if err != nil {
		return id, role, err
	}
	if l.Refused != nil && role == RoleDevice && l.Refused(id) {
		return id, role, fmt.Errorf("device %s is retired, waits for approval, or is not known here", id)
	}
	return id, role, nil
}

// VerifyChain checks a chain (leaf first) up to the root and reads whom it speaks for.
// A chain that is genuine but whose leaf is past its time gives the id, the role and
// ErrExpired. A leaf whose time has not come is taken: a box without a clock starts at
// its floor, weeks behind a parent that renewed meanwhile, and learns the time only from
// that parent. Issuers from the trust help out where the peer sent none.
func (t *Trust) VerifyChain(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id api.DeviceID, role string, err error) {
	if len(chain) == 0 {
		return id, "", errors.New("peer shows no certificate")
	}
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, c := range t.Issuers {
		between.AddCert(c)
	}
	for _, c := range chain[1:min(len(chain), 8)] {
		between.AddCert(c)
	}
	expired := now.After(leaf.NotAfter)
	at := now
	switch {
	case expired:
		at = leaf.NotAfter // was it genuine while it lasted?
	case now.Before(leaf.NotBefore):
		at = leaf.NotBefore
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: t.roots(), Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return id, "", fmt.Errorf("peer's certificate: %w", err)
	}
	if id, role, err = CertID(leaf); err != nil {
		return id, role, err
	}
	if expired {
		return id, role, fmt.Errorf("%w on %s (%s)", ErrExpired, leaf.NotAfter.UTC().Format(time.DateOnly), nameOf(id, role))
	}
	return id, role, nil
}

// PeerID tells who is at the other end of a connection that was made with one of this
// package's configurations, which have verified the chain. It fails when the peer
// showed no certificate, and with ErrExpired (beside id and role) when it is past its
// time by this machine's clock.
func PeerID(cs tls.ConnectionState) (id api.DeviceID, role string, err error) {
	return PeerIDAt(cs, time.Now())
}

// PeerIDAt is PeerID by another clock.
func PeerIDAt(cs tls.ConnectionState, now time.Time) (id api.DeviceID, role string, err error) {
	if len(cs.PeerCertificates) == 0 {
		return id, "", errors.New("peer shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if id, role, err = CertID(leaf); err != nil {
		return id, role, err
	}
	if now.After(leaf.NotAfter) {
		return id, role, ErrExpired
	}
	return id, role, nil
}

func nameOf(id api.DeviceID, role string) string {
	if role == RoleCore {
		return CoreName
	}
	return id.String()
}
