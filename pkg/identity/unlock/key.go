package unlock

import (
	"crypto"
	"crypto/ecdh"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Bounds of what is decoded.
const (
	maxStatement = 1 << 10
	// MaxKept bounds an encoded Kept.
	MaxKept = identity.MaxTrust + 4<<10
)

var aad = []byte("tributary/unlock-key/1")

// statement says whose answers open a shell: a CBOR map with integer keys.
type statement struct {
	Version uint   `cbor:"1,keyasint"`
	Key     []byte `cbor:"2,keyasint"` // X25519
	Time    int64  `cbor:"3,keyasint"` // unix seconds
}

var decMode = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
	MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: 16}.DecMode())

var encMode = must(cbor.CoreDetEncOptions().EncMode())

// must turns options that are constants of this package into modes.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// SignKey has the core's signer say that pub is the owner's unlock key: a COSE_Sign1 of some 150
// bytes, the body of a manifest's item.
func SignKey(signer crypto.Signer, kid []byte, pub *ecdh.PublicKey, at time.Time) ([]byte, error) {
	payload, err := encMode.Marshal(statement{Version: 1, Key: pub.Bytes(), Time: at.Unix()})
	if err != nil {
		return nil, err
	}
	return identity.SignKID(signer, kid, aad, payload)
}

// OpenKey reads the unlock key from a statement by one of the signers.
func OpenKey(raw []byte, signers identity.Keys) (*ecdh.PublicKey, error) {
	if len(raw) > maxStatement {
		return nil, fmt.Errorf("a statement of %d bytes: at most %d", len(raw), maxStatement)
	}
	payload, err := identity.VerifyBy(signers, raw, aad)
	if err != nil {
		return nil, fmt.Errorf("the owner's unlock key: %w", err)
	}
	var s statement
	if err := decMode.Unmarshal(payload, &s); err != nil {
		return nil, err
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("the owner's unlock key has form %d; this build knows 1", s.Version)
	}
	return ecdh.X25519().NewPublicKey(s.Key)
}

// Kept is what a box keeps outside of its state for the day on which that does not open:
// the owner's statement, and the trust by which its signer is judged.
type Kept struct {
	Trust  []byte       `cbor:"1,keyasint"`
	Key    []byte       `cbor:"2,keyasint"`
	Device api.DeviceID `cbor:"3,keyasint"`
}

// Encode writes deterministic CBOR: equal content is equal bytes.
func (k Kept) Encode() ([]byte, error) { return encMode.Marshal(k) }

// DecodeKept reads at most MaxKept bytes, and believes none of them.
func DecodeKept(b []byte) (k Kept, err error) {
	if len(b) > MaxKept {
		return k, fmt.Errorf("%d bytes: at most %d are read", len(b), MaxKept)
	}
	err = decMode.Unmarshal(b, &k)
	return k, err
}

// Owner is the unlock key, if all that was kept leads to the root of this fingerprint.
func (k Kept) Owner(root []byte) (*ecdh.PublicKey, error) {
	if len(root) != 32 {
		return nil, errors.New("whose box this is cannot be told: no fingerprint of a root is at hand")
	}
	trust, err := identity.DecodeTrust(k.Trust, root)
	if err != nil {
		return nil, fmt.Errorf("what was kept of the owner is not this box's owner's: %w", err)
	}
	return OpenKey(k.Key, trust)
}
