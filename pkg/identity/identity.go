// Package identity answers: who is this box, whom does it believe, and how does it
// prove the one and check the other?
//
// A box owns two P-256 keys. The device key signs (COSE, RFC 9052), does TLS, and
// names the box: its id is a hash of the public part. The seal key agrees: secrets
// are sealed to it (HPKE, RFC 9180) and the MAC key of reported state comes from it
// by ECDH. They are two because a TPM 2.0 key is bound to one use, and because the
// seal key may be replaced without the box changing its name. The core certifies
// both in one certificate; the seal key is an extension of it (OIDSealKey).
//
// Everything else follows from Trust: the offline root, and what the root has
// certified. A box that knows the root's fingerprint needs to believe no host.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/boundedfile"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Identity is one party's keys, its certificate chain, and its trust. It is not
// changed after it is made; renewal makes another (see Live).
type Identity struct {
	Key *ecdsa.PrivateKey
	// Seal is the key-agreement key. In the core it is the sealing key that
	// Trust.Sealing certifies.
	Seal *ecdsa.PrivateKey
	// OldSeal is the seal key before the last replacement, nil without one: what was sealed
	// to it may still be on its way (OpenSecret).
	OldSeal *ecdsa.PrivateKey
	Cert    []*x509.Certificate // leaf first, root left out
	Trust   *Trust
	// Now is the clock against which peers' certificates are checked. A device
	// passes one that never goes below its persisted floor. nil is time.Now.
	Now func() time.Time
}

// CoreName is the text by which the core is named where a device id would stand.
const CoreName = "core"

// Files of an identity folder.
const (
	keyFile     = "device.key"
	sealFile    = "seal.key"
	oldSealFile = "seal.old.key"
	certFile    = "device.pem"
	trustFile   = "trust.cbor"
)

// maxFile bounds what is read from an identity folder.
const maxFile = 256 << 10

// ID is the device id; zero when the certificate is the core's.
func (i *Identity) ID() api.DeviceID {
	if len(i.Cert) > 0 && RoleOf(i.Cert[0]) == RoleCore {
		return api.DeviceID{}
	}
	return KeyID(&i.Key.PublicKey)
}

// Expires is the end of the certificate's validity; zero without a certificate.
func (i *Identity) Expires() time.Time {
	if len(i.Cert) == 0 {
		return time.Time{}
	}
	return i.Cert[0].NotAfter
}

// RenewAt is the moment from which a box should renew: two thirds of the
// certificate's life, which leaves a third for an uplink that is down.
func (i *Identity) RenewAt() time.Time {
	if len(i.Cert) == 0 {
		return time.Time{}
	}
	c := i.Cert[0]
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// StateKey is the MAC key that this device shares with the core (see StateKey).
func (i *Identity) StateKey() ([32]byte, error) {
	if i.Trust == nil || i.Trust.Sealing == nil || i.Seal == nil {
		return [32]byte{}, errors.New("no core sealing key in trust: enrol first")
	}
	pub, err := p256(i.Trust.Sealing.PublicKey)
	if err != nil {
		return [32]byte{}, err
	}
	return StateKey(i.Seal, pub, i.ID())
}

func (i *Identity) now() time.Time {
	if i.Now != nil {
		return i.Now()
	}
	return time.Now()
}

// KeyID names the device that owns a public key.
func KeyID(pub *ecdsa.PublicKey) api.DeviceID {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return api.DeviceID{} // not a NIST curve: no device has such a key
	}
	return api.NewDeviceID(der)
}

// LoadOrCreateKey reads a P-256 key (PEM, SEC 1 or PKCS #8), or makes one (mode
// 0600, written atomically) when the file does not exist. A file that exists but
// does not hold such a key is an error and is left alone.
func LoadOrCreateKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := boundedfile.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return key, saveKey(path, key)
	}
	if err != nil {
		return nil, err
	}
	key, err := ParseKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// ParseKey reads a P-256 private key from PEM.
func ParseKey(pemBytes []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(pemBytes)
	if block == nil {
		return nil, errors.New("not a PEM file")
	}
	var parsed any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM type %q is not a private key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not a P-256 key")
	}
	return key, nil
}

// FormatKey writes a private key as PEM (PKCS #8, RFC 5208).
func FormatKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func saveKey(path string, key *ecdsa.PrivateKey) error {
	b, err := FormatKey(key)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}

// OpenSecret opens what was sealed to this box, by the seal key of today or the one
// before.
func (i *Identity) OpenSecret(info SealInfo, sealed []byte) ([]byte, error) {
	b, err := Open(i.Seal, info, sealed)
	if err != nil && i.OldSeal != nil {
		if b, oldErr := Open(i.OldSeal, info, sealed); oldErr == nil {
			return b, nil
		}
	}
	return b, err
}

// Load reads an identity folder: device.key, seal.key, device.pem, trust.cbor. It
// fails with fs.ErrNotExist (wrapped) when the box has not enrolled. Trust is taken
// as it stands on the disk, which the box itself wrote after it had checked it.
func Load(dir string) (*Identity, error) {
	keyPEM, err := boundedfile.Read(filepath.Join(dir, keyFile), maxFile)
	if err != nil {
		return nil, err
	}
	certPEM, err := boundedfile.Read(filepath.Join(dir, certFile), maxFile)
	if err != nil {
		return nil, err
	}
	trustCBOR, err := boundedfile.Read(filepath.Join(dir, trustFile), maxFile)
	if err != nil {
		return nil, err
	}
	i := &Identity{}
	if i.Key, err = ParseKey(keyPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	if i.Cert, err = ParseCerts(certPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	if i.Trust, err = DecodeTrust(trustCBOR, nil); err != nil {
		return nil, fmt.Errorf("%s: %w", trustFile, err)
	}
	if err := i.loadSeals(dir); err != nil {
		return nil, err
	}
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return i, nil
}

// loadSeals reads the seal keys. A power cut within Save may leave the new key beside the
// old certificate: the key that the certificate names is the one in force.
func (i *Identity) loadSeals(dir string) error {
	named, err := SealKey(i.Cert[0])
	if err != nil {
		return err
	}
	for _, name := range []string{sealFile, oldSealFile} {
		b, err := boundedfile.Read(filepath.Join(dir, name), maxFile)
		if errors.Is(err, fs.ErrNotExist) && name == oldSealFile {
			continue
		}
		if err != nil {
			return err
		}
		key, err := ParseKey(b)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if named.Equal(&key.PublicKey) {
			i.Seal = key
		} else {
			i.OldSeal = key
		}
	}
	if i.Seal == nil {
		return fmt.Errorf("%s: the certificate names a seal key that is not here: enrol again", dir)
	}
	return nil
}

// check finds out whether keys and certificate belong together.
func (i *Identity) check() error {
	pub, ok := i.Cert[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(&i.Key.PublicKey) {
		return errors.New("certificate is of another key")
	}
	seal, err := SealKey(i.Cert[0])
	if err != nil {
		return err
	}
	if !seal.Equal(&i.Seal.PublicKey) {
		return errors.New("certificate names another seal key")
	}
	return nil
}

// Save writes the identity folder; each file atomically, the certificate last, so that a
// box whose certificate is there has all of it. A seal key that is replaced stays as the
// old one.
func (i *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := saveKey(filepath.Join(dir, keyFile), i.Key); err != nil {
		return err
	}
	if i.OldSeal != nil {
		if err := saveKey(filepath.Join(dir, oldSealFile), i.OldSeal); err != nil {
			return err
		}
	}
	if err := saveKey(filepath.Join(dir, sealFile), i.Seal); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, trustFile), i.Trust.Encode(), 0o644); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, certFile), FormatCerts(i.Cert), 0o644)
}

// LoadOrCreateKeys reads or makes the two keys of an identity folder, before
// enrolment.
func LoadOrCreateKeys(dir string) (key, seal *ecdsa.PrivateKey, err error) {
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	if key, err = LoadOrCreateKey(filepath.Join(dir, keyFile)); err != nil {
		return nil, nil, err
	}
	seal, err = LoadOrCreateKey(filepath.Join(dir, sealFile))
	return key, seal, err
}

// ParseCerts reads 1 to 8 certificates from PEM.
func ParseCerts(pemBytes []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, pemBytes = pem.Decode(pemBytes)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM type %q is not a certificate", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > 8 {
			return nil, errors.New("more than 8 certificates")
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in file")
	}
	return certs, nil
}

// FormatCerts writes certificates as PEM.
func FormatCerts(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Fingerprint is the SHA-256 of a certificate's DER, as join tokens carry it.
func Fingerprint(c *x509.Certificate) [32]byte { return sha256.Sum256(c.Raw) }
