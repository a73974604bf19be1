package identity

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/veraison/go-cose"
)

// MaxSigned bounds a COSE_Sign1 message that Verify and KeyIDOf look at.
const MaxSigned = 2 << 20

// ErrSignature tells that a message was signed by another key, for another purpose,
// or was altered.
var ErrSignature = errors.New("signature does not verify")

// Sign makes a tagged COSE_Sign1 (RFC 9052 section 4.2) with ES256 over payload. aad is
// the external data: every use names its own purpose there (such as
// "tributary/manifest/1"), so that a signature of one purpose verifies for no other.
// The protected header holds the algorithm alone.
func Sign(key crypto.Signer, aad, payload []byte) ([]byte, error) {
	return SignKID(key, nil, aad, payload)
}

// SignKID is Sign with the key id in the protected header (label 4), by which
// Trust.Verify picks the key.
func SignKID(key crypto.Signer, kid, aad, payload []byte) ([]byte, error) {
	signer, err := cose.NewSigner(cose.AlgorithmES256, key)
	if err != nil {
		return nil, err
	}
	if payload == nil {
		payload = []byte{} // nil would mean a detached payload
	}
	m := cose.Sign1Message{Payload: payload}
	m.Headers.Protected = cose.ProtectedHeader{cose.HeaderLabelAlgorithm: cose.AlgorithmES256}
	if kid != nil {
		m.Headers.Protected[cose.HeaderLabelKeyID] = kid
	}
	if err := m.Sign(rand.Reader, aad, signer); err != nil {
		return nil, err
	}
	return m.MarshalCBOR()
}

// Verify checks a COSE_Sign1 against one key and returns its payload. It fails with ErrSignature (wrapped).
func Verify(pub crypto.PublicKey, raw, aad []byte) ([]byte, error) {
	m, err := parseSign1(raw)
	if err != nil {
		return nil, err
	}
	return verify(pub, m, aad)
}

// KeyIDOf reads the key id of a COSE_Sign1 without verifying it; nil when there is
// none.
func KeyIDOf(raw []byte) ([]byte, error) {
	m, err := parseSign1(raw)
	if err != nil {
		return nil, err
	}
	return kidOf(m), nil
}

// Payload reads the payload of a COSE_Sign1 without verifying it. It is for relays,
// which carry what they need not believe.
func Payload(raw []byte) ([]byte, error) {
	m, err := parseSign1(raw)
	if err != nil {
		return nil, err
	}
	return m.Payload, nil
}

func parseSign1(raw []byte) (*cose.Sign1Message, error) {
	if len(raw) > MaxSigned {
		return nil, fmt.Errorf("signed message of %d bytes is larger than %d", len(raw), MaxSigned)
	}
	m := &cose.Sign1Message{}
	if err := m.UnmarshalCBOR(raw); err != nil {
		return nil, fmt.Errorf("not a COSE_Sign1: %w", err)
	}
	if m.Payload == nil {
		return nil, errors.New("COSE_Sign1 without its payload")
	}
	return m, nil
}

func kidOf(m *cose.Sign1Message) []byte {
	kid, _ := m.Headers.Protected[cose.HeaderLabelKeyID].([]byte)
	return kid
}

func verify(pub crypto.PublicKey, m *cose.Sign1Message, aad []byte) ([]byte, error) {
	key, err := p256(pub)
	if err != nil {
		return nil, err
	}
	v, err := cose.NewVerifier(cose.AlgorithmES256, key)
	if err != nil {
		return nil, err
	}
	if err := m.Verify(aad, v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return m.Payload, nil
}
