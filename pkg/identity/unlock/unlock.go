// Package unlock answers: how does the owner let a person into a box when neither has a
// network?
//
// The box makes a fresh X25519 key for each attempt and shows its public half, with who it
// is, as a challenge of 74 characters. The owner's unlock key, which lies at the core, makes
// of it a shared secret (RFC 7748, section 6.1), and of that and the challenge the answer: 80 bits by
// HKDF-SHA256 (RFC 5869), 18 characters with their check. Nobody but the box and the owner can
// know it, it fits no other challenge, and the box forgets its key with the first right
// answer, the third wrong one, or a quarter of an hour.
//
// The box knows the owner's public key by a statement that the core's signer signed (key.go).
package unlock

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

const (
	// AnswerBytes is the size of an answer: 80 bits.
	AnswerBytes = 10
	// challengeBytes: version and flags, device, owner's key, fresh key.
	challengeBytes = 1 + 8 + 4 + 32
	version        = 1
	flagProven     = 1
	// Groups of characters, of challenges and answers.
	challengeGroup, answerGroup = 5, 6
	purpose                     = "tributary/unlock/1"
)

// Challenge is what a box shows.
type Challenge struct {
	// Device is who the box says it is. Proven: it has read that from its own open state, and
	// not from where anybody who has had the disk may have written it.
	Device api.DeviceID
	Proven bool
	// Owner is the beginning of the hash of the unlock key that shall answer.
	Owner [4]byte
	// Fresh is the public key that was made for this one challenge.
	Fresh [32]byte
}

func (c Challenge) encode() []byte {
	b := append(make([]byte, 0, challengeBytes), version<<4)
	if c.Proven {
		b[0] |= flagProven
	}
	b = append(b, c.Device[:]...)
	b = append(b, c.Owner[:]...)
	return append(b, c.Fresh[:]...)
}

// String is the challenge as a person reads it out or types it.
func (c Challenge) String() string { return Text(c.encode(), challengeGroup) }

// ID names a challenge in records: 64 bits of its hash.
func (c Challenge) ID() string {
	sum := sha256.Sum256(c.encode())
	return hex.EncodeToString(sum[:8])
}

// ParseChallenge reads what String wrote. It fails with ErrTyped (wrapped) when that was
// mistyped.
func ParseChallenge(text string) (c Challenge, err error) {
	b, err := Parse(text, challengeBytes)
	if err != nil {
		return c, err
	}
	if b[0]>>4 != version || b[0]&^flagProven&15 != 0 {
		return c, fmt.Errorf("a challenge of form %d; this build knows %d", b[0]>>4, version)
	}
	c.Proven = b[0]&flagProven != 0
	copy(c.Device[:], b[1:])
	copy(c.Owner[:], b[9:])
	copy(c.Fresh[:], b[13:])
	return c, nil
}

// ErrOtherOwner tells that a challenge asks for another unlock key.
var ErrOtherOwner = errors.New("the box asks for another owner's key")

// OwnerID is how challenges name an unlock key.
func OwnerID(pub *ecdh.PublicKey) (id [4]byte) {
	sum := sha256.Sum256(pub.Bytes())
	return [4]byte(sum[:4])
}

// Answer is the owner's answer to a challenge.
func Answer(owner *ecdh.PrivateKey, c Challenge) (string, error) {
	if OwnerID(owner.PublicKey()) != c.Owner {
		return "", ErrOtherOwner
	}
	fresh, err := ecdh.X25519().NewPublicKey(c.Fresh[:])
	if err != nil {
		return "", err
	}
	b, err := answer(owner, fresh, c)
	if err != nil {
		return "", err
	}
	return Text(b, answerGroup), nil
}

// answer is the same for both sides. It fails for a point of small order, which would make a
// secret that everybody knows.
func answer(mine *ecdh.PrivateKey, theirs *ecdh.PublicKey, c Challenge) ([]byte, error) {
	shared, err := mine.ECDH(theirs)
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, shared, c.encode(), purpose, AnswerBytes)
}
