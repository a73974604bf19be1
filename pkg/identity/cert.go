package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// The private extensions of our certificates. The arc is 2.25 (UUID-derived, ITU-T
// X.667) with the number of the letters TRIB: no enterprise number is registered.
var (
	// OIDRole holds the role as an ASN.1 UTF8String.
	OIDRole = asn1.ObjectIdentifier{2, 25, 0x54524942, 1}
	// OIDSealKey holds the PKIX form of a device's P-256 key-agreement key.
	OIDSealKey = asn1.ObjectIdentifier{2, 25, 0x54524942, 2}
)

// The roles that a certificate may give. A certificate has exactly one, so that a
// device's certificate can sign no manifest however its chain verifies.
const (
	RoleDevice  = "device"
	RoleCore    = "core"
	RoleIssuer  = "issuer"
	RoleSigner  = "signer"
	RoleSealing = "sealing"
)

// RoleOf reads a certificate's role; empty when it has none.
func RoleOf(c *x509.Certificate) string {
	for _, e := range c.Extensions {
		if e.Id.Equal(OIDRole) {
			var s string
			if rest, err := asn1.UnmarshalWithParams(e.Value, &s, "utf8"); err == nil && len(rest) == 0 {
				return s
			}
		}
	}
	return ""
}

// RoleExtension makes the extension that RoleOf reads. It is not critical, so that
// ordinary tools still verify the chain.
func RoleExtension(role string) (pkix.Extension, error) {
	v, err := asn1.MarshalWithParams(role, "utf8")
	return pkix.Extension{Id: OIDRole, Value: v}, err
}

// SealKey reads the seal key from a device's certificate.
func SealKey(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	return sealKeyIn(c.Extensions)
}

func sealKeyIn(exts []pkix.Extension) (*ecdsa.PublicKey, error) {
	for _, e := range exts {
		if e.Id.Equal(OIDSealKey) {
			return ParsePublicKey(e.Value)
		}
	}
	return nil, errors.New("no seal key in certificate")
}

// SealKeyExtension makes the extension that SealKey reads.
func SealKeyExtension(pub *ecdsa.PublicKey) (pkix.Extension, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	return pkix.Extension{Id: OIDSealKey, Value: der}, err
}

// ParsePublicKey reads a P-256 public key in PKIX DER form.
func ParsePublicKey(der []byte) (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	return p256(k)
}

func p256(k any) (*ecdsa.PublicKey, error) {
	pub, ok := k.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 public key")
	}
	return pub, nil
}

// KID is the key id that COSE headers carry for a signer: the first 8 bytes of the
// SHA-256 of the public key in PKIX form.
func KID(pub *ecdsa.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(der)
	return sum[:8]
}

// CertID reads which device or core a verified leaf certificate speaks for. A
// device's common name must be the hash of its own key, so that not even the
// issuing CA's mistake gives one device the name of another.
func CertID(leaf *x509.Certificate) (id api.DeviceID, role string, err error) {
	switch role = RoleOf(leaf); role {
	case RoleCore:
		return id, role, nil
	case RoleDevice:
		if id, err = api.ParseDeviceID(leaf.Subject.CommonName); err != nil {
			return id, role, err
		}
		pub, err := p256(leaf.PublicKey)
		if err != nil {
			return id, role, err
		}
		if KeyID(pub) != id {
			return id, role, fmt.Errorf("certificate names device %s but its key is that of %s", id, KeyID(pub))
		}
		return id, role, nil
	}
	return id, role, fmt.Errorf("certificate of role %q is neither a device's nor the core's", role)
}
