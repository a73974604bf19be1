package identity

import (
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// The HPKE suite everywhere: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-128-GCM
// (RFC 9180 section 7). P-256 because a TPM 2.0 has no X25519.
func suite() (hpke.KDF, hpke.AEAD) { return hpke.HKDFSHA256(), hpke.AES128GCM() }

// SealInfo is what a sealed secret is bound to. Opening with any other fails, so that
// a relay can neither give one device's secret to another, nor one secret under the
// name of another, nor an old value for a new one.
type SealInfo struct {
	Device     api.DeviceID
	Name       string
	Generation uint64
}

func (s SealInfo) bytes() []byte {
	b := append([]byte("tributary/secret/1\x00"), s.Device[:]...)
	b = binary.BigEndian.AppendUint64(b, s.Generation)
	return append(b, s.Name...) // last, so that its length needs no mark
}

// MaxSealed bounds what Open looks at.
const MaxSealed = 1 << 20

// Seal encrypts plaintext to the recipient's seal key (HPKE base mode, single shot:
// encapsulated key, then ciphertext; 81 bytes longer than plaintext).
func Seal(recipient *ecdsa.PublicKey, info SealInfo, plaintext []byte) ([]byte, error) {
	pk, err := hpkePublic(recipient)
	if err != nil {
		return nil, err
	}
	kdf, aead := suite()
	return hpke.Seal(pk, kdf, aead, info.bytes(), plaintext)
}

// Open decrypts what Seal made for the same info. Only the recipient's key opens it.
func Open(key *ecdsa.PrivateKey, info SealInfo, sealed []byte) ([]byte, error) {
	if len(sealed) > MaxSealed {
		return nil, fmt.Errorf("sealed value of %d bytes is larger than %d", len(sealed), MaxSealed)
	}
	sk, err := hpkePrivate(key)
	if err != nil {
		return nil, err
	}
	kdf, aead := suite()
	b, err := hpke.Open(sk, kdf, aead, info.bytes(), sealed)
	if err != nil {
		return nil, fmt.Errorf("secret %q, generation %d, does not open with this device's key: %w", info.Name, info.Generation, err)
	}
	return b, nil
}

// StateKey is the key that a device and the core share for the MACs of reported state:
// ECDH on P-256, then HKDF-SHA256 with the device id as salt. The device passes its own
// seal key and the core's public sealing key; the core passes its sealing key and the
// device's public seal key.
func StateKey(priv *ecdsa.PrivateKey, pub *ecdsa.PublicKey, device api.DeviceID) (key [32]byte, err error) {
	if priv == nil || pub == nil {
		return key, errors.New("state key needs both sides' keys")
	}
	p, err := priv.ECDH()
	if err != nil {
		return key, err
	}
	q, err := pub.ECDH()
	if err != nil {
		return key, err
	}
	shared, err := p.ECDH(q)
	if err != nil {
		return key, err
	}
	b, err := hkdf.Key(sha256.New, shared, device[:], "tributary/state/1", len(key))
	copy(key[:], b)
	return key, err
}

func hpkePublic(pub *ecdsa.PublicKey) (hpke.PublicKey, error) {
	if pub == nil {
		return nil, errors.New("no seal key")
	}
	q, err := pub.ECDH()
	if err != nil {
		return nil, err
	}
	return hpke.NewDHKEMPublicKey(q)
}

func hpkePrivate(key *ecdsa.PrivateKey) (hpke.PrivateKey, error) {
	if key == nil {
		return nil, errors.New("no seal key")
	}
	p, err := key.ECDH()
	if err != nil {
		return nil, err
	}
	return hpke.NewDHKEMPrivateKey(p)
}
