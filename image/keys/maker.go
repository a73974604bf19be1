package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// Files of the manufacturer in a folder of keys, named as edgectl voucher keygen names them: the key signs births and
// vouchers (edgectl voucher), its certificate goes into images and to cores.
const (
	MakerKey  = "manufacturer.key"
	MakerCert = "manufacturer.pem"
)

// Manufacturer reads the certificates of the manufacturer, in PEM, and makes one where there is none. Where the key is
// kept elsewhere, the certificate alone is there.
func Manufacturer(dir string, from time.Time) ([]byte, error) {
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	text, err := os.ReadFile(filepath.Join(dir, MakerCert))
	if err == nil {
		_, err = identity.ParseCerts(text)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := voucher.NewManufacturer(key, "Tributary development boxes", from)
	if err != nil {
		return nil, err
	}
	private, err := identity.FormatKey(key)
	if err != nil {
		return nil, err
	}
	// The key first: without its certificate both are made anew.
	if err := writeFile(filepath.Join(dir, MakerKey), private); err != nil {
		return nil, err
	}
	text = identity.FormatCerts([]*x509.Certificate{cert})
	return text, writeFile(filepath.Join(dir, MakerCert), text)
}
