package identity

import (
	"crypto/rand"
	"encoding/base64"
	"io"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// JoinToken lets a box enrol: which token, its secret, and the fingerprint of the
// root certificate, so that the box checks the core before the core checks the box.
// Its text is "tj1.<id>.<secret>.<base64url of the SHA-256 of the root's DER>".
type JoinToken struct {
	ID, Secret string
	RootFP     [32]byte
}

// NewJoinToken makes a token with a random secret of 128 bits.
func NewJoinToken(id string, rootFP [32]byte, random io.Reader) (JoinToken, error) {
	if random == nil {
		random = rand.Reader
	}
	var secret [16]byte
	if _, err := io.ReadFull(random, secret[:]); err != nil {
		return JoinToken{}, err
	}
	return JoinToken{ID: id, Secret: base64.RawURLEncoding.EncodeToString(secret[:]), RootFP: rootFP}, nil
}

func (t JoinToken) String() string {
	return "tj1." + t.ID + "." + t.Secret + "." + base64.RawURLEncoding.EncodeToString(t.RootFP[:])
}

// ParseJoinToken reads the text form. White space around it is ignored.
func ParseJoinToken(s string) (JoinToken, error) {
	bad := func(what string) (JoinToken, error) {
		return JoinToken{}, &api.Error{Code: api.Invalid, Message: "join token " + what,
			Remedy: "copy the whole token as `edgectl token create` printed it; it starts with tj1."}
	}
	s = strings.TrimSpace(s)
	if len(s) > 256 {
		return bad("is too long")
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 || parts[0] != "tj1" {
		return bad("does not have the form tj1.<id>.<secret>.<fingerprint>")
	}
	if !tokenWord(parts[1], 63) || !tokenWord(parts[2], 128) {
		return bad("has an id or secret that is empty or holds odd characters")
	}
	fp, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(fp) != 32 {
		return bad("is cut off: its fingerprint is not 32 bytes")
	}
	return JoinToken{ID: parts[1], Secret: parts[2], RootFP: [32]byte(fp)}, nil
}

func tokenWord(s string, max int) bool {
	if s == "" || len(s) > max {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
		default:
			return false
		}
	}
	return true
}
