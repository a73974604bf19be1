package ca

import (
	"bytes"
	"crypto/ecdh"
	"os"
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/unlock"
	"tributary.dev/tributary/tests/mutation"
)

// TestUnlockKey: made once, vouched for by whichever signer is the newest, and in the backup.
func TestUnlockKey(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, said, err := c.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := unlock.OpenKey(said, c.Trust()); err != nil || !pub.Equal(key.PublicKey()) {
		t.Fatalf("%v %v", pub, err)
	}
	if c, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	again, saidAgain, err := c.Unlock()
	if err != nil || !again.Equal(key) || !bytes.Equal(said, saidAgain) {
		t.Errorf("another key or statement after a restart: %v", err)
	}
	if err := c.Rotate(identity.RoleSigner); err != nil {
		t.Fatal(err)
	}
	if err := c.Forget(); err != nil {
		t.Fatal(err)
	}
	rotated, saidNow, err := c.Unlock()
	if err != nil || !rotated.Equal(key) || bytes.Equal(said, saidNow) {
		t.Errorf("after the signer's rotation: %v", err)
	}
	if _, err := unlock.OpenKey(saidNow, c.Trust()); err != nil {
		t.Error(err)
	}
	if _, err := unlock.OpenKey(said, c.Trust()); err == nil {
		t.Error("a forgotten signer's statement is believed")
	}
	files, err := Snapshot(dir)
	if err != nil || files[unlockName] == nil {
		t.Errorf("not in the backup: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, unlockName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, unlockName), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Unlock(); err == nil {
		t.Error("a torn file gives a key")
	}
}

// TestRotateUnlock: boxes learn another key; earlier ones answer boxes that have not, unless they are lost.
func TestRotateUnlock(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := c.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	keys := func(want int) []*ecdh.PrivateKey {
		t.Helper()
		var first []*ecdh.PrivateKey
		for range 2 { // as it is, and after a restart
			keys, err := c.UnlockKeys()
			now, said, err2 := c.Unlock()
			if err != nil || err2 != nil || len(keys) != want || !keys[0].Equal(now) {
				t.Fatalf("%d keys, not %d: %v %v", len(keys), want, err, err2)
			}
			if pub, err := unlock.OpenKey(said, c.Trust()); err != nil || !pub.Equal(now.PublicKey()) {
				t.Errorf("boxes are told another key: %v", err)
			}
			first = keys
			if c, err = Open(dir, Options{}); err != nil {
				t.Fatal(err)
			}
		}
		return first
	}
	if err := c.RotateUnlock(false); err != nil {
		t.Fatal(err)
	}
	if k := keys(2); k[0].Equal(first) || !k[1].Equal(first) {
		t.Error("the old key does not answer any more")
	}
	for range maxFormer + 2 {
		if err := c.RotateUnlock(false); err != nil {
			t.Fatal(err)
		}
	}
	keys(1 + maxFormer)
	if err := c.RotateUnlock(true); err != nil {
		t.Fatal(err)
	}
	keys(1)
}

// TestRotateUnlockCounts: without the check, a lost key goes on answering.
func TestRotateUnlockCounts(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "lost", Test: "^TestRotateUnlock$", File: "unlock.go", From: "if !lost { // check: lost", To: "if !lost || GONE {"})
}
