package release

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// NewKey makes an Ed25519 key in a file, PEM of PKCS #8, for its owner's eyes alone. Signatures of that kind are the same
// each time, and so are bundles.
func NewKey(file string) (crypto.Signer, error) {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return k, atomicfile.Write(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// ReadKey reads what NewKey wrote.
func ReadKey(file string) (crypto.Signer, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM", file)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds no key that signs", file)
	}
	return signer, nil
}

// SignFile puts roots, where there are some, and one more signature, where there is a key, into a bundle. The digest is
// the one by which boxes ask for it: signing changes it.
func SignFile(file string, key crypto.Signer, roots ...[]byte) (digest string, err error) {
	return ChangeFile(file, func(b *Bundle) (err error) {
		if len(roots) > 0 {
			b.Roots = roots
		}
		if key != nil {
			b.Targets, err = AddSignature(b.Targets, key)
		}
		return err
	})
}

// ChangeFile changes a bundle where it lies, and answers the digest that it then has. On an error the file is as it was.
func ChangeFile(file string, change func(*Bundle) error) (digest string, err error) {
	b, err := ReadFile(file)
	if err != nil {
		return "", err
	}
	if err := change(b); err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := b.Write(&out); err != nil {
		return "", err
	}
	if _, digest, err = b.Manifest(); err != nil {
		return "", err
	}
	return digest, atomicfile.Write(file, out.Bytes(), 0o644)
}

// ReadFile reads a bundle.
func ReadFile(file string) (*Bundle, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	b, err := ReadBundle(f)
	return b, errors.Join(err, f.Close())
}
