package ca

import (
	"crypto"
	"crypto/x509"
	"testing"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// The key of a birth certificate may be one that only signs, as a TPM's: it vouches for the
// device's own.
func TestBirthByASigner(t *testing.T) {
	s := newSite(t, newClock())
	key, seal := newBox(t)
	tpm, _ := newBox(t)
	opaque := struct{ crypto.Signer }{tpm}
	chain, err := voucher.SelfIDevID(opaque)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := identity.Enrol(t.Context(), identity.EnrolConfig{ParentURL: s.core.URL, Token: s.reg.token, Key: key, Seal: seal, IDevID: chain, Birth: opaque}); err != nil {
		t.Fatal(err)
	}
	a := s.reg.last
	birth, err := x509.ParseCertificate(a.IDevID[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.CheckBirth(birth, a.CSR, a.BirthProof); err != nil {
		t.Error(err)
	}
	if err := identity.CheckBirth(birth, a.CSR, append([]byte{1}, a.BirthProof...)); err == nil {
		t.Error("another signature passes")
	}
}
