package audit

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Key signs the heads of the log and keys its digests. It lies outside of the database, in a
// file of one line.
type Key struct {
	digests [sha256.Size]byte
	sign    ed25519.PrivateKey
}

const keyPrefix = "tributary-audit-key-1 "

// OpenKey reads the key of a file; the error is fs.ErrNotExist when there is none.
func OpenKey(path string) (Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Key{}, err
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(b)), keyPrefix)
	seed, err := base64.RawStdEncoding.DecodeString(text)
	if !ok || err != nil || len(seed) != ed25519.SeedSize {
		return Key{}, fmt.Errorf("%s is not a key of an audit log", path)
	}
	return newKey(seed)
}

// CreateKey makes a file with a new key. It replaces none.
func CreateKey(path string, random io.Reader) (Key, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return Key{}, errors.Join(err, fmt.Errorf("%s is there already", path))
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return Key{}, err
	}
	if err := atomicfile.Write(path, []byte(keyPrefix+base64.RawStdEncoding.EncodeToString(seed)+"\n"), 0o600); err != nil {
		return Key{}, err
	}
	return newKey(seed)
}

func newKey(seed []byte) (k Key, err error) {
	raw, err := hkdf.Key(sha256.New, seed, nil, "tributary audit digests 1", len(k.digests))
	if err != nil {
		return k, err
	}
	copy(k.digests[:], raw)
	k.sign = ed25519.NewKeyFromSeed(seed)
	return k, nil
}
