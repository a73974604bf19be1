package identity

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Trust is what a box believes: the offline root, and what the root has certified.
// Lists have the newest first; several entries stand side by side while one is being
// replaced, so that what the older signed still verifies.
type Trust struct {
	Root *x509.Certificate
	// Issuers are the CAs of device and TLS certificates.
	Issuers []*x509.Certificate
	// Signers are the core's online keys for manifests, acknowledgements and commands.
	Signers []*x509.Certificate
	// Sealing is the core's P-256 key-agreement key.
	Sealing *x509.Certificate
}

// Bounds of an encoded trust.
const (
	MaxTrust      = 64 << 10
	maxTrustCerts = 16
)

// trustWire is the encoded form, a CBOR map with integer keys; certificates in DER.
type trustWire struct {
	Version uint     `cbor:"1,keyasint"`
	Root    []byte   `cbor:"2,keyasint"`
	Issuers [][]byte `cbor:"3,keyasint"`
	Signers [][]byte `cbor:"4,keyasint"`
	Sealing []byte   `cbor:"5,keyasint"`
}

// encMode is deterministic CBOR (RFC 8949 section 4.2.1).
var encMode = must(cbor.CoreDetEncOptions().EncMode())

// decMode refuses what deterministic CBOR never holds, and bounds the rest.
var decMode = must(cbor.DecOptions{
	DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
	MaxNestedLevels: 8, MaxArrayElements: 4096, MaxMapPairs: 4096, UTF8: cbor.UTF8RejectInvalid,
}.DecMode())

// must turns options that are constants of this package into modes; they are right or
// no test passes.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// Encode is the trust in deterministic CBOR, at most MaxTrust bytes.
func (t *Trust) Encode() []byte {
	w := trustWire{Version: 1, Root: t.Root.Raw, Issuers: ders(t.Issuers), Signers: ders(t.Signers), Sealing: t.Sealing.Raw}
	b, err := encMode.Marshal(w)
	if err != nil { // byte strings always encode
		return nil
	}
	return b
}

// DecodeTrust reads and verifies a trust: the root against its fingerprint (SHA-256 of
// its DER; nil takes the root as given), each other certificate against the root, each
// for its role. Validity in time is not looked at: the root's word stands, and a box
// without a clock must be able to begin.
func DecodeTrust(b, rootFingerprint []byte) (*Trust, error) {
	if len(b) > MaxTrust {
		return nil, fmt.Errorf("trust of %d bytes is larger than %d", len(b), MaxTrust)
	}
	var w trustWire
	if err := decMode.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("trust: %w", err)
	}
	if w.Version != 1 {
		return nil, fmt.Errorf("trust has version %d; this build knows 1", w.Version)
	}
	if fp := sha256.Sum256(w.Root); rootFingerprint != nil && !bytes.Equal(fp[:], rootFingerprint) {
		return nil, errors.New("the root certificate is not the one that the join token names")
	}
	root, err := x509.ParseCertificate(w.Root)
	if err != nil {
		return nil, fmt.Errorf("trust: root: %w", err)
	}
	if !root.IsCA || root.CheckSignatureFrom(root) != nil {
		return nil, errors.New("trust: root is not a self-signed CA")
	}
	t := &Trust{Root: root}
	if t.Issuers, err = parseCertified(w.Issuers, root, RoleIssuer); err != nil {
		return nil, err
	}
	if t.Signers, err = parseCertified(w.Signers, root, RoleSigner); err != nil {
		return nil, err
	}
	sealing, err := parseCertified([][]byte{w.Sealing}, root, RoleSealing)
	if err != nil {
		return nil, err
	}
	t.Sealing = sealing[0]
	return t, nil
}

func parseCertified(list [][]byte, root *x509.Certificate, role string) ([]*x509.Certificate, error) {
	if len(list) == 0 || len(list) > maxTrustCerts {
		return nil, fmt.Errorf("trust: %d certificates of role %s, want 1 to %d", len(list), role, maxTrustCerts)
	}
	var out []*x509.Certificate
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("trust: %s: %w", role, err)
		}
		if err := c.CheckSignatureFrom(root); err != nil {
			return nil, fmt.Errorf("trust: %s is not certified by the root: %w", role, err)
		}
		if got := RoleOf(c); got != role {
			return nil, fmt.Errorf("trust: certificate of role %q stands where %q belongs", got, role)
		}
		if _, err := p256(c.PublicKey); err != nil {
			return nil, fmt.Errorf("trust: %s: %w", role, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// SignerKeys are the public keys of Signers, newest first.
func (t *Trust) SignerKeys() []crypto.PublicKey {
	var keys []crypto.PublicKey
	for _, c := range t.Signers {
		keys = append(keys, c.PublicKey)
	}
	return keys
}

// SignerKey finds a signer by key id.
func (t *Trust) SignerKey(kid []byte) (crypto.PublicKey, bool) {
	for _, c := range t.Signers {
		if pub, err := p256(c.PublicKey); err == nil && bytes.Equal(KID(pub), kid) {
			return pub, true
		}
	}
	return nil, false
}

// ErrUnknownSigner tells that a message names a signer that the trust does not hold:
// fetch the trust again (FetchTrust) and retry.
var ErrUnknownSigner = errors.New("signer is not in the trust")

// Verify checks a COSE_Sign1 by the core's online signer that its header names, and
// returns the payload. It fails with ErrUnknownSigner or ErrSignature (wrapped).
func (t *Trust) Verify(raw, aad []byte) ([]byte, error) {
	return VerifyBy(t, raw, aad)
}

// Keys finds the public key of a signer by its key id.
type Keys interface {
	SignerKey(kid []byte) (crypto.PublicKey, bool)
}

// VerifyBy is Trust.Verify over any set of keys.
func VerifyBy(keys Keys, raw, aad []byte) ([]byte, error) {
	m, err := parseSign1(raw)
	if err != nil {
		return nil, err
	}
	pub, ok := keys.SignerKey(kidOf(m))
	if !ok {
		return nil, fmt.Errorf("%w: %x", ErrUnknownSigner, kidOf(m))
	}
	return verify(pub, m, aad)
}

func (t *Trust) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(t.Root)
	return pool
}

func ders(certs []*x509.Certificate) [][]byte {
	var out [][]byte
	for _, c := range certs {
		out = append(out, c.Raw)
	}
	return out
}
