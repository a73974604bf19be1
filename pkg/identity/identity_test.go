package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// fixedKey is the P-256 key of a small number, for golden bytes.
func fixedKey(t testing.TB, n byte) *ecdsa.PrivateKey {
	t.Helper()
	raw := make([]byte, 32)
	raw[31] = n
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSignVerify(t *testing.T) {
	key, aad := newKey(t), []byte("tributary/test/1")
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOf(rapid.Byte()).Draw(t, "payload")
		kid := rapid.SliceOfN(rapid.Byte(), 1, 8).Draw(t, "kid")
		raw, err := SignKID(key, kid, aad, payload)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify(&key.PublicKey, raw, aad)
		if err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("%x %v", got, err)
		}
		if got, err := KeyIDOf(raw); err != nil || !bytes.Equal(got, kid) {
			t.Fatalf("kid %x %v", got, err)
		}
		if _, err := Verify(&key.PublicKey, raw, append(aad, 'x')); !errors.Is(err, ErrSignature) {
			t.Fatalf("for another purpose: %v", err)
		}
		raw[rapid.IntRange(0, len(raw)-1).Draw(t, "at")] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		if _, err := Verify(&key.PublicKey, raw, aad); err == nil {
			t.Fatal("altered and accepted")
		}
	})
	raw, err := Sign(key, aad, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(&newKey(t).PublicKey, raw, aad); !errors.Is(err, ErrSignature) {
		t.Fatalf("by another key: %v", err)
	}
}

func TestSealOpen(t *testing.T) {
	key := newKey(t)
	info := SealInfo{Device: KeyID(&key.PublicKey), Name: "db", Generation: 7}
	sealed, err := Seal(&key.PublicKey, info, []byte("s3cret"))
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != len("s3cret")+81 {
		t.Errorf("%d bytes longer, the documentation says 81", len(sealed)-len("s3cret"))
	}
	if got, err := Open(key, info, sealed); err != nil || string(got) != "s3cret" {
		t.Fatalf("%q %v", got, err)
	}
	for what, other := range map[string]SealInfo{
		"device":     {Name: info.Name, Generation: info.Generation},
		"name":       {Device: info.Device, Name: "dc", Generation: info.Generation},
		"generation": {Device: info.Device, Name: info.Name, Generation: 8},
	} {
		if _, err := Open(key, other, sealed); err == nil {
			t.Errorf("opened for another %s", what)
		}
	}
	if _, err := Open(newKey(t), info, sealed); err == nil {
		t.Error("opened with another key")
	}
	if _, err := Seal(nil, info, nil); err == nil {
		t.Error("sealed to nobody")
	}
}

// Devices in the field hold these keys: their derivation may not change.
func TestGoldenKeys(t *testing.T) {
	core, dev := fixedKey(t, 1), fixedKey(t, 2)
	id := KeyID(&dev.PublicKey)
	if id.String() != goldenID {
		t.Errorf("device id %s", id)
	}
	a, err := StateKey(dev, &core.PublicKey, id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := StateKey(core, &dev.PublicKey, id)
	if err != nil || a != b {
		t.Fatalf("the two sides differ: %v", err)
	}
	if got := hex.EncodeToString(a[:]); got != goldenStateKey {
		t.Errorf("state key %s", got)
	}
	if got := hex.EncodeToString(KID(&core.PublicKey)); got != goldenKID {
		t.Errorf("kid %s", got)
	}
	sealed, err := hex.DecodeString(goldenSealed)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Open(dev, SealInfo{Device: id, Name: "db", Generation: 7}, sealed); err != nil || string(got) != "s3cret" {
		fresh, _ := Seal(&dev.PublicKey, SealInfo{Device: id, Name: "db", Generation: 7}, []byte("s3cret"))
		t.Errorf("what was sealed before does not open: %q %v\n a fresh one: %x", got, err, fresh)
	}
	signed, err := hex.DecodeString(goldenSigned)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Verify(&core.PublicKey, signed, []byte("tributary/test/1")); err != nil || string(got) != "payload" {
		fresh, _ := SignKID(core, KID(&core.PublicKey), []byte("tributary/test/1"), []byte("payload"))
		t.Errorf("what was signed before does not verify: %q %v\n a fresh one: %x", got, err, fresh)
	}
}

const (
	goldenID       = "3qgomm63zsit2"
	goldenStateKey = "adc2552f336c086b3c8db63e73adb513df613af9b28c103cfff437e12324650f"
	goldenKID      = "5cd252fb0ce89324"
	goldenSealed   = "049f8fd2737400fd88191d24ce3913099b8d75f45e95bedb6e4969a4d36e04999d9353225f6b7ef724a2720d4587349c827a3e8963ed5e95aceef327e3778ce2352ff66a02d6383d13ba60856e1f7ca727c28a7cea499b"
	goldenSigned   = "d2844da2012604485cd252fb0ce89324a0477061796c6f61645840502639cf1058aca9fba51e885a1666460f698e3e62a6a3721a2397b8d56bde309fb2ea5c35f9432125ce10c3fe1d2db414ee031558573b2e6bc4e0e504eb1df7"
)

func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	a, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadOrCreateKey(path)
	if err != nil || !a.Equal(b) {
		t.Fatalf("another key the second time: %v", err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", info.Mode())
	}
	for _, bad := range []string{"", "junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreateKey(path); err == nil {
			t.Fatalf("took %q for a key", bad)
		}
		if got, _ := os.ReadFile(path); string(got) != bad {
			t.Fatal("a damaged key file was overwritten")
		}
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("an empty folder: %v", err)
	}
}

func TestJoinToken(t *testing.T) {
	tok, err := NewJoinToken("field-boxes", [32]byte{1, 2, 3}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseJoinToken("  " + tok.String() + "\n"); err != nil || got != tok {
		t.Fatalf("%+v %v", got, err)
	}
	s := tok.String()
	for _, bad := range []string{"", "tj1", s[:len(s)-1], s + "A", "tj2" + s[3:], strings.Replace(s, "field", "fi/ld", 1), s + strings.Repeat("x", 300), "tj1...", "tj1.a.." + s[len(s)-43:]} {
		if _, err := ParseJoinToken(bad); api.CodeOf(err) != api.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// testCA certifies in memory.
type testCA struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newTestCA(t testing.TB) testCA {
	c := testCA{key: newKey(t)}
	c.root = c.make(t, nil, &c.key.PublicKey, "", true)
	return c
}

func (c testCA) make(t testing.TB, parent *x509.Certificate, pub *ecdsa.PublicKey, role string, isCA bool) *x509.Certificate {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x" + role}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: isCA, BasicConstraintsValid: isCA, KeyUsage: x509.KeyUsageDigitalSignature}
	if isCA {
		tmpl.KeyUsage = x509.KeyUsageCertSign
	}
	if role != "" {
		ext, err := RoleExtension(role)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.ExtraExtensions = []pkix.Extension{ext}
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (c testCA) trust(t testing.TB) *Trust {
	one := func(role string) *x509.Certificate {
		return c.make(t, c.root, &newKey(t).PublicKey, role, role == RoleIssuer)
	}
	return &Trust{Root: c.root, Issuers: []*x509.Certificate{one(RoleIssuer)}, Signers: []*x509.Certificate{one(RoleSigner), one(RoleSigner)}, Sealing: one(RoleSealing)}
}

func TestTrust(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	fp := Fingerprint(ca.root)
	good := ca.trust(t)
	got, err := DecodeTrust(good.Encode(), fp[:])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.SignerKeys()) != 2 || !bytes.Equal(got.Encode(), good.Encode()) {
		t.Fatal("not the same trust")
	}
	otherTrust := other.trust(t)
	otherFP := Fingerprint(other.root)
	for name, change := range map[string]func(*Trust){
		"another root":             func(t *Trust) { *t = *otherTrust },
		"foreign signer":           func(t *Trust) { t.Signers = otherTrust.Signers },
		"foreign sealing key":      func(t *Trust) { t.Sealing = otherTrust.Sealing },
		"issuer in signer's place": func(t *Trust) { t.Signers = t.Issuers },
		"signer as sealing key":    func(t *Trust) { t.Sealing = t.Signers[0] },
		"no signer":                func(t *Trust) { t.Signers = nil },
		"many signers": func(t *Trust) {
			for range 5 {
				t.Signers = append(t.Signers, t.Signers...)
			}
		},
	} {
		bad := *good
		change(&bad)
		if _, err := DecodeTrust(bad.Encode(), fp[:]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := DecodeTrust(good.Encode(), otherFP[:]); err == nil {
		t.Error("accepted under another fingerprint")
	}
	if _, err := DecodeTrust(make([]byte, MaxTrust+1), nil); err == nil {
		t.Error("oversize accepted")
	}
}

func FuzzDecodeTrust(f *testing.F) {
	f.Add(newTestCA(f).trust(f).Encode())
	f.Add(bytes.Repeat([]byte{0x81}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tr, err := DecodeTrust(b, nil); err == nil {
			if _, err := DecodeTrust(tr.Encode(), nil); err != nil {
				t.Fatalf("decodes but does not come back: %v", err)
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	key := fixedKey(f, 1)
	raw, err := Sign(key, nil, []byte("p"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0xd2, 0x84, 0x40, 0xa0, 0xf6, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Verify(&key.PublicKey, b, nil); err == nil && string(p) != "p" {
			t.Fatalf("forged %x", b)
		}
		KeyIDOf(b)
	})
}

func FuzzOpenRequest(f *testing.F) {
	key := fixedKey(f, 1)
	body, _, err := sealRequest(&key.PublicKey, PathEnrol, []byte("nonce"), EnrolRequest{TokenID: "t"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r EnrolRequest
		if _, _, err := OpenRequest([]*ecdsa.PrivateKey{key}, PathRenew, b, &r); err == nil {
			t.Fatal("opened a request that nobody sealed for this path")
		}
		OpenRequest([]*ecdsa.PrivateKey{key}, PathEnrol, b, &r)
	})
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(JoinToken{ID: "a", Secret: "b"}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseJoinToken(s); err == nil && tok.String() != strings.TrimSpace(s) {
			t.Fatalf("%q reads as %q", s, tok)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	key := newKey(b)
	raw, err := Sign(key, nil, make([]byte, 4096))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Verify(&key.PublicKey, raw, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	key := newKey(b)
	for b.Loop() {
		if _, err := Sign(key, nil, make([]byte, 128)); err != nil {
			b.Fatal(err)
		}
	}
}
