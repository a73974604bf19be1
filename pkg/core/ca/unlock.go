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
	// former are earlier keys, the newest first: boxes that have not heard of the rotation ask for their answers.
	former []*ecdh.PrivateKey
}

// maxFormer bounds the earlier unlock keys that are kept.
const maxFormer = 8

// UnlockKeys are the owner's unlock keys by which challenges are answered: the present one, then earlier ones.
func (c *CA) UnlockKeys() ([]*ecdh.PrivateKey, error) {
	if _, _, err := c.Unlock(); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return append([]*ecdh.PrivateKey{c.unlock.key}, c.unlock.former...), nil
}

// RotateUnlock makes another unlock key, of which the boxes learn by their manifests. The old ones go on answering boxes
// that have not heard of it, unless they are lost: then they are destroyed, and those boxes have to hear of it first.
func (c *CA) RotateUnlock(lost bool) error {
	if _, _, err := c.Unlock(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	u := unlockKey{key: key}
	if !lost { // check: lost
		u.former = append([]*ecdh.PrivateKey{c.unlock.key}, c.unlock.former...)
		u.former = u.former[:min(len(u.former), maxFormer)]
	}
	if u.statement, err = unlock.SignKey(c.signer.key, identity.KID(&c.signer.key.PublicKey), key.PublicKey(), c.now()); err != nil {
		return err
	}
	if err := writeUnlock(c.path(unlockName), u); err != nil {
		return err
	}
	c.unlock = u
	return nil
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
	said, rest := pem.Decode(rest)
	if block == nil || said == nil || block.Type != unlockPEM || said.Type != statementPEM {
		return u, errors.New("a key and its statement are wanted")
	}
	if u.key, err = x25519(block); err != nil {
		return unlockKey{}, err
	}
	u.statement = said.Bytes
	for block, rest = pem.Decode(rest); block != nil && len(u.former) < maxFormer; block, rest = pem.Decode(rest) {
		former, err := x25519(block)
		if err != nil {
			return unlockKey{}, err
		}
		u.former = append(u.former, former)
	}
	return u, nil
}

func x25519(block *pem.Block) (*ecdh.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	k, ok := key.(*ecdh.PrivateKey)
	if !ok || k.Curve() != ecdh.X25519() {
		return nil, errors.New("the key is none of X25519")
	}
	return k, nil
}

func writeUnlock(path string, u unlockKey) error {
	var text []byte
	for i, key := range append([]*ecdh.PrivateKey{u.key}, u.former...) {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: unlockPEM, Bytes: der})...)
		if i == 0 {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: statementPEM, Bytes: u.statement})...)
		}
	}
	return atomicfile.Write(path, text, 0o600)
}
