package mqtt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/identity"
)

// pki is a CA in memory. The real one, pkg/core/ca, belongs to the core's wing, which
// the ground floor does not import.
type pki struct {
	root, issuer       *x509.Certificate
	rootKey, issuerKey *ecdsa.PrivateKey
	trust              *identity.Trust
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{rootKey: newKey(t), issuerKey: newKey(t)}
	p.root = p.sign(t, "root", "", nil, &p.rootKey.PublicKey, p.rootKey, true)
	p.issuer = p.sign(t, "issuer", identity.RoleIssuer, p.root, &p.issuerKey.PublicKey, p.rootKey, true)
	signer := p.sign(t, "signer", identity.RoleSigner, p.root, &newKey(t).PublicKey, p.rootKey, false)
	sealing := p.sign(t, "sealing", identity.RoleSealing, p.root, &newKey(t).PublicKey, p.rootKey, false)
	p.trust = &identity.Trust{Root: p.root, Issuers: []*x509.Certificate{p.issuer}, Signers: []*x509.Certificate{signer}, Sealing: sealing}
	return p
}

func (p *pki) sign(t testing.TB, name, role string, parent *x509.Certificate, pub *ecdsa.PublicKey, by *ecdsa.PrivateKey, ca bool, exts ...pkix.Extension) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: exts,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if ca {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	}
	if role == identity.RoleCore {
		tmpl.DNSNames, tmpl.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	if role != "" {
		ext, err := identity.RoleExtension(role)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, ext)
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (p *pki) device(t testing.TB) *identity.Identity {
	t.Helper()
	key, seal := newKey(t), newKey(t)
	ext, err := identity.SealKeyExtension(&seal.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := p.sign(t, identity.KeyID(&key.PublicKey).String(), identity.RoleDevice, p.issuer, &key.PublicKey, p.issuerKey, false, ext)
	return &identity.Identity{Key: key, Seal: seal, Cert: []*x509.Certificate{leaf, p.issuer}, Trust: p.trust}
}

func (p *pki) core(t testing.TB) *identity.Identity {
	t.Helper()
	key := newKey(t)
	leaf := p.sign(t, identity.CoreName, identity.RoleCore, p.issuer, &key.PublicKey, p.issuerKey, false)
	return &identity.Identity{Key: key, Cert: []*x509.Certificate{leaf, p.issuer}, Trust: p.trust}
}
