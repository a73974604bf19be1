package people

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"golang.org/x/text/unicode/norm"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Cost is the work of one hash: memory in KiB, passes over it, and lanes.
type Cost struct {
	Memory, Passes uint32
	Lanes          uint8
}

// DefaultCost is the second recommended option of RFC 9106, section 4.
var DefaultCost = Cost{Memory: 64 << 10, Passes: 3, Lanes: 4}

const (
	saltSize, sumSize = 16, 32
	maxHash           = 256     // characters of a stored hash
	maxMemory         = 1 << 20 // KiB that a stored hash may ask for
	maxPasses         = 64
	minPassword       = 12 // runes
	maxPassword       = 256
)

// newPassword makes a password one that can be kept, or says what is wrong with it.
func newPassword(password string) (string, error) {
	const field = "password"
	n := utf8.RuneCountInString(password)
	switch {
	case !database.Text(password):
		return "", &api.Error{Code: api.Invalid, Field: field, Message: "not a text", Remedy: "choose another password"}
	case n < minPassword:
		return "", &api.Error{Code: api.Invalid, Field: field, Message: "the password is too short", Remedy: "choose one of at least 12 characters; some words in a row do well"}
	case n > maxPassword:
		return "", &api.Error{Code: api.Invalid, Field: field, Message: "the password is too long", Remedy: "choose one of at most 256 characters"}
	}
	return norm.NFC.String(password), nil
}

// hashPassword gives the text that a password is checked against, with all parameters, in the
// form of the reference implementation (PHC string).
func hashPassword(password string, c Cost, from io.Reader) (string, error) {
	salt, err := random(from, saltSize)
	if err != nil {
		return "", err
	}
	b := base64.RawStdEncoding
	sum := argon2.IDKey([]byte(password), salt, c.Passes, c.Memory, c.Lanes, sumSize)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.Memory, c.Passes, c.Lanes, b.EncodeToString(salt), b.EncodeToString(sum)), nil
}

// parseHash reads what hashPassword made.
func parseHash(text string) (c Cost, salt, sum []byte, err error) {
	bad := errors.New("not the hash of a password")
	parts := strings.Split(text, "$")
	if len(text) > maxHash || len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return c, nil, nil, bad
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &c.Memory, &c.Passes, &c.Lanes); n != 3 || err != nil {
		return c, nil, nil, bad
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	sum, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if errors.Join(err1, err2) != nil || len(salt) < 8 || len(sum) < 16 || c.Memory < 8 || c.Memory > maxMemory || c.Passes < 1 || c.Passes > maxPasses || c.Lanes < 1 {
		return c, nil, nil, bad
	}
	return c, salt, sum, nil
}

// matches tells whether a password is that of a hash, and whether the hash is of this cost.
func matches(password, hash string, now Cost) (ok, current bool, err error) {
	c, salt, sum, err := parseHash(hash)
	if err != nil {
		return false, false, err
	}
	got := argon2.IDKey([]byte(norm.NFC.String(password)), salt, c.Passes, c.Memory, c.Lanes, uint32(len(sum)))
	return subtle.ConstantTimeCompare(got, sum) == 1, c == now, nil
}

// verify checks a password against a hash; "" is the hash of nobody, which takes as long.
func (r *Room) verify(ctx context.Context, password, hash string) (ok, current bool, err error) {
	known := hash != ""
	if !known {
		hash = r.nobody
	}
	if err := r.enter(ctx); err != nil {
		return false, false, err
	}
	defer r.leave()
	ok, current, err = matches(password, hash, r.cfg.Cost)
	return ok && known, current, err
}

func (r *Room) hash(ctx context.Context, password string) (string, error) {
	if err := r.enter(ctx); err != nil {
		return "", err
	}
	defer r.leave()
	return hashPassword(password, r.cfg.Cost, r.cfg.Random)
}

func (r *Room) enter(ctx context.Context) error {
	select {
	case r.hashes <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Room) leave() { <-r.hashes }
