package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func public(t *testing.T, tpm *TPM) Public {
	t.Helper()
	p, err := tpm.Public()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCredential gives a secret to one box: it alone opens it, at the next start and after its
// TPM was cleared too.
func TestCredential(t *testing.T) {
	one, other, want := newBox(t), newBox(t), secret(t)
	p := public(t, one.boot(ourKeys, v1))
	c, err := p.MakeCredential(rand.Reader, want)
	if err != nil {
		t.Fatal(err)
	}
	tpm := one.boot("other keys", v2)
	if got, err := tpm.Activate(*c); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("another start: %v", err)
	}
	if key, err := p.Key(); err != nil {
		t.Error(err)
	} else if quoting, err := tpm.AttestationKey(); err != nil || !quoting.Equal(key) {
		t.Errorf("another key signs quotes: %v", err)
	}
	if got, err := other.boot(ourKeys, v1).Activate(*c); !errors.Is(err, ErrRefused) || got != nil {
		t.Errorf("another TPM: %v", err)
	}
	for i := range c.Blob {
		bad := Credential{bytes.Clone(c.Blob), c.Secret}
		bad.Blob[i] ^= 1
		if _, err := tpm.Activate(bad); err == nil {
			t.Errorf("byte %d changed", i)
		}
	}
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(tpm.t); err != nil {
		t.Fatal(err)
	}
	if got, err := tpm.Activate(*c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the TPM was cleared: %v", err)
	}
}

// TestPublicRefuses shows keys that a TPM does not keep to itself: who has them in a file could
// quote what they like.
func TestPublicRefuses(t *testing.T) {
	good := public(t, newBox(t).boot(ourKeys, v1))
	if _, err := good.MakeCredential(rand.Reader, make([]byte, MaxCredential+1)); err == nil {
		t.Error("a secret that is too long")
	}
	for name, spoil := range map[string]func(*Public){
		"swapped":   func(p *Public) { p.Attestation, p.Endorsement = p.Endorsement, p.Attestation },
		"none":      func(p *Public) { p.Endorsement = nil },
		"too long":  func(p *Public) { p.Attestation = make([]byte, maxPublic+1) },
		"cut short": func(p *Public) { p.Attestation = p.Attestation[:20] },
		"restricted": func(p *Public) {
			p.Attestation = without(t, p.Attestation, func(a *tpm2.TPMAObject) { a.Restricted = false })
		},
		"fixed": func(p *Public) {
			p.Attestation = without(t, p.Attestation, func(a *tpm2.TPMAObject) { a.FixedTPM = false })
		},
		"its origin": func(p *Public) {
			p.Attestation = without(t, p.Attestation, func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })
		},
		"endorsement": func(p *Public) {
			p.Endorsement = without(t, p.Endorsement, func(a *tpm2.TPMAObject) { a.Restricted = false })
		},
	} {
		p := good
		spoil(&p)
		if _, err := p.MakeCredential(rand.Reader, make([]byte, 32)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func without(t *testing.T, public []byte, spoil func(*tpm2.TPMAObject)) []byte {
	t.Helper()
	k, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		t.Fatal(err)
	}
	spoil(&k.ObjectAttributes)
	return tpm2.Marshal(*k)
}

// TestSealerQuotes has a box answer by its sealer, before and after its state was opened.
func TestSealerQuotes(t *testing.T) {
	b := newBox(t)
	s := sealer(t, b.boot(ourKeys, v1), v1)
	x := enrolled(t, b.tpm)
	none := filepath.Join(b.dir, "none")
	for _, opened := range []bool{false, true} {
		e, p, err := s.Quote(context.Background(), x.Challenge.Nonce, none)
		if err != nil {
			t.Fatal(err)
		}
		if key, err := p.Key(); err != nil || !key.Equal(x.Key) {
			t.Errorf("the key: %v", err)
		}
		if v, err := x.Verify(e); err != nil || v.StateOpened != opened || v.Release != "1" {
			t.Errorf("opened %v: %+v, %v", opened, v, err)
		}
		if err := s.Shut(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzPublic(f *testing.F) {
	f.Add(tpm2.Marshal(attestationTemplate), tpm2.Marshal(tpm2.ECCEKTemplate))
	f.Add([]byte{}, []byte{1})
	f.Fuzz(func(_ *testing.T, a, e []byte) { _, _ = Public{a, e}.MakeCredential(rand.Reader, []byte{1}) })
}
