package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// TestIdentity: the key of birth signs, is the same at each start and after the TPM was cleared, is another box's not, and
// is not the one that signs quotes.
func TestIdentity(t *testing.T) {
	one, other := newBox(t), newBox(t)
	tpm := one.boot(ourKeys, v1)
	key, err := tpm.IdentityKey()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("who am I"))
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(tpm.t); err != nil {
		t.Fatal(err)
	}
	tpm = one.boot("other keys", v2)
	sig, err := tpm.SignIdentity(digest[:])
	if err != nil || !ecdsa.VerifyASN1(key, digest[:], sig) {
		t.Fatalf("another start, of a TPM that was cleared: %v", err)
	}
	if _, err := tpm.SignIdentity(digest[:31]); err == nil {
		t.Error("a digest that is cut short is signed")
	}
	if quotes, err := tpm.AttestationKey(); err != nil || quotes.Equal(key) {
		t.Errorf("it signs quotes too: %v", err)
	}
	if another, err := other.boot(ourKeys, v1).IdentityKey(); err != nil || another.Equal(key) {
		t.Errorf("two boxes have one identity: %v", err)
	}
}
