package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Vault encrypts what must not lie in the database in clear: AES-256-GCM (NIST SP
// 800-38D) with random nonces, bound to the place of the value, so that one row's value
// does not open in another's. Its keys lie in a file of their own: a copy of the database
// alone tells no secret. All methods may be called from any goroutine.
//
// A sealed value is a byte 1, 4 bytes of the key's id, 12 of nonce, and the ciphertext
// with its tag. Neither JSON nor CBOR of a map begins with a byte 1.
type Vault struct {
	path string

	mu   sync.RWMutex
	keys []vaultKey // the first seals, all open
}

type vaultKey struct {
	id   [4]byte
	raw  [32]byte
	aead cipher.AEAD
}

const (
	sealedMark  = 1
	nonceSize   = 12
	sealedHead  = 1 + 4 + nonceSize
	vaultPrefix = "tributary-secret-key-1" // begins each line of the file
	maxVault    = 64 << 10                 // bytes of the file
)

// OpenVault reads the keys of a file; the error is fs.ErrNotExist when there is none.
func OpenVault(path string) (*Vault, error) {
	v := &Vault{path: path}
	return v, v.load()
}

// CreateVault makes a file with one new key. It refuses to replace one.
func CreateVault(path string, random io.Reader) (*Vault, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, fmt.Errorf("%s is there already", path))
	}
	v := &Vault{path: path}
	return v, v.add(random)
}

func (v *Vault) load() error {
	b, err := os.ReadFile(v.path)
	if err != nil {
		return err
	}
	keys, err := parseVault(b)
	if err != nil {
		return fmt.Errorf("%s: %w", v.path, err)
	}
	v.mu.Lock()
	v.keys = keys
	v.mu.Unlock()
	return nil
}

func parseVault(b []byte) (keys []vaultKey, err error) {
	if len(b) > maxVault {
		return nil, errors.New("too large for a file of keys")
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 || fields[0] != vaultPrefix {
			return nil, errors.New("not a file of keys")
		}
		id, err := hex.DecodeString(fields[1])
		raw, err2 := base64.RawStdEncoding.DecodeString(fields[2])
		if err != nil || err2 != nil || len(id) != 4 || len(raw) != 32 {
			return nil, errors.New("not a file of keys")
		}
		k, err := newVaultKey([4]byte(id), [32]byte(raw))
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return keys, nil
}

func newVaultKey(id [4]byte, raw [32]byte) (vaultKey, error) {
	block, err := aes.NewCipher(raw[:])
	if err != nil {
		return vaultKey{}, err
	}
	aead, err := cipher.NewGCM(block)
	return vaultKey{id, raw, aead}, err
}

// add makes a new key the one that seals; those before still open.
func (v *Vault) add(random io.Reader) error {
	var b [36]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return err
	}
	k, err := newVaultKey([4]byte(b[:4]), [32]byte(b[4:]))
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.find(k.id) != nil {
		return errors.New("a new key has the number of an old one; try again")
	}
	return v.keep(append([]vaultKey{k}, v.keys...))
}

// prune forgets all keys but the one that seals, and reports whether there were any.
func (v *Vault) prune() (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.keys) == 1 {
		return false, nil
	}
	return true, v.keep(v.keys[:1:1])
}

// keep writes keys before they are used. The caller holds mu.
func (v *Vault) keep(keys []vaultKey) error {
	var b bytes.Buffer
	for _, k := range keys {
		fmt.Fprintf(&b, "%s %x %s\n", vaultPrefix, k.id, base64.RawStdEncoding.EncodeToString(k.raw[:]))
	}
	if err := atomicfile.Write(v.path, b.Bytes(), 0o600); err != nil {
		return err
	}
	v.keys = keys
	return nil
}

// find returns a key by its id. The caller holds mu.
func (v *Vault) find(id [4]byte) *vaultKey {
	for i := range v.keys {
		if v.keys[i].id == id {
			return &v.keys[i]
		}
	}
	return nil
}

// seal encrypts a value for a place.
func (v *Vault) seal(place string, plain []byte) []byte {
	v.mu.RLock()
	k := v.keys[0]
	v.mu.RUnlock()
	out := make([]byte, sealedHead, sealedHead+len(plain)+k.aead.Overhead())
	out[0] = sealedMark
	copy(out[1:], k.id[:])
	_, _ = rand.Read(out[5:sealedHead]) // crypto/rand.Read never fails
	return k.aead.Seal(out, out[5:sealedHead], plain, []byte(place))
}

// Seal and Open are for rooms that keep sealed values of their own; Reseal comes to those by
// Config.Sealed.
func (v *Vault) Seal(place string, plain []byte) []byte { return v.seal(place, plain) }

// Open is the other way.
func (v *Vault) Open(place string, sealed []byte) ([]byte, error) { return v.open(place, sealed) }

func isSealed(b []byte) bool { return len(b) > 0 && b[0] == sealedMark }

// current reports whether a value is sealed by the key that seals now.
func (v *Vault) current(b []byte) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return isSealed(b) && len(b) >= sealedHead && [4]byte(b[1:5]) == v.keys[0].id
}

// open decrypts a value of a place; one that is not sealed comes back as it is.
func (v *Vault) open(place string, b []byte) ([]byte, error) {
	if !isSealed(b) {
		return b, nil
	}
	refused := &api.Error{Code: api.Internal, Message: "a secret in the database cannot be opened", Remedy: "put secret.key back from the backup that this database is of"}
	if v == nil || len(b) < sealedHead {
		return nil, refused
	}
	id := [4]byte(b[1:5])
	v.mu.RLock()
	k := v.find(id)
	v.mu.RUnlock()
	if k == nil { // another process may have rotated
		if err := v.load(); err != nil {
			return nil, err
		}
		v.mu.RLock()
		k = v.find(id)
		v.mu.RUnlock()
	}
	if k == nil {
		return nil, refused
	}
	plain, err := k.aead.Open(nil, b[5:sealedHead], b[sealedHead:], []byte(place))
	if err != nil {
		return nil, refused
	}
	return plain, nil
}

// placeOf binds a spec to its row.
func placeOf(o *api.Object) string {
	m := o.Metadata
	return fmt.Sprintf("spec\x00%s\x00%s\x00%s\x00%s\x00%d", o.Kind, m.Tenant, m.Name, m.UID, m.Generation)
}

// sealsPlace binds what tells of the secrets in a device's manifest to the device: hashes
// of short secrets could be guessed at.
func sealsPlace(id api.DeviceID) string { return "seals\x00" + id.String() }
