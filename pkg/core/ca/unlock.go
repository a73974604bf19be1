package ca

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/identity/unlock"
)

const (
	unlockName    = "unlock.pem"
	unlockPEM     = "PRIVATE KEY"
	statementPEM  = "TRIBUTARY UNLOCK STATEMENT"
	maxUnlockFile = 8 << 10
)

// unlockKey is the owner's unlock key with the newest signer's word for it.
type unlockKey struct {
	key       *ecdh.PrivateKey
	statement []byte
}

// Unlock is the owner's unlock key, and the statement by which boxes know it. Both are made
// when they are first asked for; the statement anew when the signer has been rotated.
func (c *CA) Unlock() (*ecdh.PrivateKey, []byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kid := identity.KID(&c.signer.key.PublicKey)
	if c.unlock.key == nil {
		u, err := readUnlock(c.path(unlockName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("ca: %s: %w", unlockName, err)
		}
		c.unlock = u
	}
	u := c.unlock
	if u.key != nil {
		if have, err := identity.KeyIDOf(u.statement); err == nil && bytes.Equal(have, kid) {
			return u.key, u.statement, nil
		}
	}
	var err error
	if u.key == nil {
		if u.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	if u.statement, err = unlock.SignKey(c.signer.key, kid, u.key.PublicKey(), c.now()); err != nil {
		return nil, nil, err
	}
	if err := writeUnlock(c.path(unlockName), u); err != nil {
		return nil, nil, err
	}
	c.unlock = u
	return u.key, u.statement, nil
}

func readUnlock(path string) (u unlockKey, err error) {
	b, err := readBounded(path)
	if err != nil {
		return u, err
	}
	if len(b) > maxUnlockFile {
		return u, fmt.Errorf("%d bytes", len(b))
	}
	block, rest := pem.Decode(b)
	said, _ := pem.Decode(rest)
	if block == nil || said == nil || block.Type != unlockPEM || said.Type != statementPEM {
		return u, errors.New("a key and its statement are wanted")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return u, err
	}
	k, ok := key.(*ecdh.PrivateKey)
	if !ok || k.Curve() != ecdh.X25519() {
		return u, errors.New("the key is none of X25519")
	}
	return unlockKey{k, said.Bytes}, nil
}

func writeUnlock(path string, u unlockKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(u.key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: unlockPEM, Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: statementPEM, Bytes: u.statement})...)
	return atomicfile.Write(path, text, 0o600)
}
