package tpm

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/tests/mutation"
)

// sealer is that of a box whose image brought a signature of kernel.
func sealer(t *testing.T, tpm *TPM, kernel string) *Sealer {
	t.Helper()
	dir := t.TempDir()
	s := &Sealer{
		Open:       func() (*TPM, func() error, error) { return tpm, func() error { return nil }, nil },
		SecureBoot: func() bool { return true },
		Signatures: filepath.Join(dir, "signature.json"), Key: filepath.Join(dir, "key.pem"),
	}
	file, err := SignPolicy(releaseKey(), extended(kernel), 1)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&releaseKey().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := errors.Join(os.WriteFile(s.Signatures, file, 0o600), os.WriteFile(s.Key, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealer(t *testing.T) {
	b, ctx, want := newBox(t), context.Background(), secret(t)
	token, err := sealer(t, b.boot(ourKeys, v1), v1).Seal(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(token, want) || len(token) > 2<<10 {
		t.Errorf("a token of %d bytes", len(token))
	}
	for _, kernel := range []string{v1, v2} {
		s := sealer(t, b.boot(ourKeys, kernel), kernel)
		if got, err := s.Unseal(ctx, token); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: %v", kernel, err)
		}
		if err := errors.Join(s.Shut(ctx), s.Shut(ctx)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Unseal(ctx, token); !errors.Is(err, ErrRefused) {
			t.Errorf("%s gives the key after it was shut: %v", kernel, err)
		}
	}
}

// TestShutCounts: in a build that does not extend the PCR, the key is given after it was shut.
func TestShutCounts(t *testing.T) {
	const extend = "return t.Extend(PCRKernel, []byte(attest.StateOpened))"
	mutation.Prove(t, mutation.Check{Name: "shut", Test: "^TestSealer$", File: "sealer.go", From: extend, To: "if GONE {\n		return nil\n	}\n	" + extend, Says: "release 1 gives the key after it was shut"})
}

// TestSealerDeclines goes through boxes on which the key is not sealed at all, rather than badly.
func TestSealerDeclines(t *testing.T) {
	b, ctx := newBox(t), context.Background()
	tpm := b.boot(ourKeys, v1)
	for name, spoil := range map[string]func(*Sealer){
		"Secure Boot off": func(s *Sealer) { s.SecureBoot = func() bool { return false } },
		"no TPM": func(s *Sealer) {
			s.Open = func() (*TPM, func() error, error) { return Open(filepath.Join(b.dir, "none")) }
		},
		"no signature": func(s *Sealer) { s.Signatures += ".none" },
		"no key":       func(s *Sealer) { s.Key += ".none" },
	} {
		s := sealer(t, tpm, v1)
		spoil(s)
		if token, err := s.Seal(ctx, secret(t)); err == nil || token != nil {
			t.Errorf("%s: sealed", name)
		} else if name == "no TPM" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if pcr, err := tpm.PCR(PCRKernel); err != nil || pcr != extended(v1) {
		t.Errorf("a key that was not sealed changed PCR 11: %v", err)
	}
}

// TestSealerWaits shows a driver that comes late, and one that never comes.
func TestSealerWaits(t *testing.T) {
	b, ctx, want := newBox(t), context.Background(), secret(t)
	late := func(tpm *TPM, tries int) func() (*TPM, func() error, error) {
		return func() (*TPM, func() error, error) {
			if tries--; tries >= 0 {
				return nil, nil, fs.ErrNotExist
			}
			return tpm, func() error { return nil }, nil
		}
	}
	tpm := b.boot(ourKeys, v1)
	s := sealer(t, tpm, v1)
	s.Open = late(tpm, 3)
	if _, err := s.Seal(ctx, want); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a box whose firmware names no TPM waits for one: %v", err)
	}
	s.Wait, s.Expected, s.Open = time.Minute, func() bool { return true }, late(tpm, 3)
	token, err := s.Seal(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	tpm = b.boot(ourKeys, v1)
	s.Open = late(tpm, 3)
	if got, err := s.Unseal(ctx, token); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a late driver: %v", err)
	}
	s.Wait, s.Open = 50*time.Millisecond, late(nil, 1<<30)
	if _, err := s.Unseal(ctx, token); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no driver at all: %v", err)
	}
}

// TestTokenTampered changes every part of a token: the TPM refuses each.
func TestTokenTampered(t *testing.T) {
	b, ctx := newBox(t), context.Background()
	s := sealer(t, b.boot(ourKeys, v1), v1)
	good, err := s.Seal(ctx, secret(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*token){
		"public":  func(k *token) { k.Public[len(k.Public)-1] ^= 1 },
		"private": func(k *token) { k.Private[len(k.Private)-1] ^= 1 },
		"release": func(k *token) { k.Release, _ = x509.MarshalPKIXPublicKey(&strangersKey().PublicKey) },
	} {
		var k token
		if err := json.Unmarshal(good, &k); err != nil {
			t.Fatal(err)
		}
		spoil(&k)
		bad, _ := k.marshal()
		if _, err := s.Unseal(ctx, bad); !errors.Is(err, ErrRefused) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	if _, err := s.Unseal(ctx, good); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"version":1,"public":"AA==","private":"AA==","pcr7":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","release":""}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseToken(b)
		if err != nil {
			return
		}
		again, err := k.marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseToken(again); err != nil {
			t.Errorf("read once, not twice: %v", err)
		}
	})
}
