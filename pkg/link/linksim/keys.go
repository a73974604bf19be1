package linksim

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/manifest"
)

// Keyring stands for the keys of a whole world. Attachments, batches and
// acknowledgements get a keyed hash of the same length where the real thing has an
// ES256 signature, so that thousands of schedules are cheap and frames have their true
// size; manifests are signed for real, and each is verified once.
type Keyring struct {
	signer *ecdsa.PrivateKey
	mu     sync.Mutex
	opened map[[32]byte]*manifest.Signed

	sealing byte // which sealing key the core has, by number
	former  int  // how many earlier ones it keeps
	knows   map[api.DeviceID]byte
}

// NewKeyring makes the keys of a world.
func NewKeyring() (*Keyring, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Keyring{signer: key, opened: map[[32]byte]*manifest.Signed{}}, nil
}

// coreName is whose key signs for the core.
var coreName = api.DeviceID{0xff, 'c', 'o', 'r', 'e'}

var errForged = errors.New("signature does not verify")

type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected map[int]int
	Payload     []byte
	Signature   []byte
}

// Headers of ES256, without and with a key id of 8 bytes.
var (
	plainHeader = []byte{0xa1, 0x01, 0x26}
	kidHeader   = []byte{0xa2, 0x01, 0x26, 0x04, 0x48, 1, 2, 3, 4, 5, 6, 7, 8}
)

func tag(who api.DeviceID, aad, payload []byte) []byte {
	m := hmac.New(sha512.New, who[:])
	m.Write([]byte{byte(len(aad))})
	m.Write(aad)
	m.Write(payload)
	return m.Sum(nil)
}

func seal(who api.DeviceID, protected, aad, payload []byte) ([]byte, error) {
	return cbor.Marshal(cbor.Tag{Number: 18, Content: sign1{Protected: protected, Unprotected: map[int]int{}, Payload: payload, Signature: tag(who, aad, payload)}})
}

func open(who api.DeviceID, raw, aad []byte) ([]byte, error) {
	var t cbor.RawTag
	var m sign1
	if err := cbor.Unmarshal(raw, &t); err != nil {
		return nil, err
	}
	if err := cbor.Unmarshal(t.Content, &m); err != nil {
		return nil, err
	}
	if !hmac.Equal(m.Signature, tag(who, aad, m.Payload)) {
		return nil, errForged
	}
	return m.Payload, nil
}

// deviceKeys are one device's view of the keyring.
type deviceKeys struct {
	*Keyring
	id api.DeviceID
}

func (k deviceKeys) Sign(aad, payload []byte) ([]byte, error) {
	return seal(k.id, plainHeader, aad, payload)
}
func (k deviceKeys) StateKey() ([32]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return stateKey(k.id, k.knows[k.id]), nil
}

func stateKey(id api.DeviceID, sealing byte) [32]byte {
	if sealing == 0 {
		return sha256.Sum256(id[:])
	}
	return sha256.Sum256(append(id[:len(id):len(id)], sealing))
}

// Rotate gives the core another sealing key; it keeps as many of the earlier ones as it is told.
func (k *Keyring) Rotate(keep int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sealing++
	k.former = min(k.former+1, keep)
}

// Learn has a device learn of the core's newest sealing key, as by a renewal of its certificate.
func (k *Keyring) Learn(id api.DeviceID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.knows == nil {
		k.knows = map[api.DeviceID]byte{}
	}
	k.knows[id] = k.sealing
}

// VerifyCore implements link.DeviceKeys.
func (k *Keyring) VerifyCore(cose, aad []byte) ([]byte, error) { return open(coreName, cose, aad) }

// OpenManifest implements link.DeviceKeys and link.RelayKeys.
func (k *Keyring) OpenManifest(raw []byte) (*manifest.Signed, error) {
	sum := sha256.Sum256(raw)
	k.mu.Lock()
	s := k.opened[sum]
	k.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := manifest.Open(raw, k)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.opened[sum] = s
	k.mu.Unlock()
	return s, nil
}

// SignerKey implements manifest.Keys.
func (k *Keyring) SignerKey(kid []byte) (crypto.PublicKey, bool) {
	return &k.signer.PublicKey, string(kid) == string(identity.KID(&k.signer.PublicKey))
}

// SignManifest signs for the core.
func (k *Keyring) SignManifest(m manifest.Manifest) (*manifest.Signed, error) {
	s, err := manifest.Sign(m, k.signer, nil)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.opened[sha256.Sum256(s.Raw)] = s
	k.mu.Unlock()
	return s, nil
}

// Certificate implements link.RelayKeys: a certificate is the device's id, padded to
// the length of a real one.
func (k *Keyring) Certificate(der []byte) (api.DeviceID, crypto.PublicKey, error) {
	if len(der) != certSize {
		return api.DeviceID{}, nil, errForged
	}
	id := api.DeviceID(der[:8])
	return id, id, nil
}

const certSize = 620

func certOf(id api.DeviceID) []byte {
	c := make([]byte, certSize)
	copy(c, id[:])
	return c
}

// Verify implements link.RelayKeys and link.CoreKeys.
func (k *Keyring) Verify(pub crypto.PublicKey, cose, aad []byte) ([]byte, error) {
	id, ok := pub.(api.DeviceID)
	if !ok {
		return nil, errForged
	}
	return open(id, cose, aad)
}

// coreKeys are the core's view of the keyring.
type coreKeys struct{ *Keyring }

func (coreKeys) Device(id api.DeviceID) (crypto.PublicKey, bool) { return id, true }
func (k coreKeys) StateKeys(id api.DeviceID) (keys [][32]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n := range k.former + 1 {
		keys = append(keys, stateKey(id, k.sealing-byte(n)))
	}
	return keys
}
func (coreKeys) Sign(aad, payload []byte) ([]byte, error) {
	return seal(coreName, kidHeader, aad, payload)
}

// Device is the keyring as one device sees it.
func (k *Keyring) Device(id api.DeviceID) interface {
	link.DeviceKeys
	link.RelayKeys
} {
	return deviceKeys{k, id}
}

// Core is the keyring as the core sees it.
func (k *Keyring) Core() link.CoreKeys { return coreKeys{k} }

// Cert is a device's certificate.
func Cert(id api.DeviceID) []byte { return certOf(id) }
