package release

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

// TestRootsThatNobodyCanMeet: what would be a root that no owners can sign, or that boxes cannot follow, is not written.
func TestRootsThatNobodyCanMeet(t *testing.T) {
	_, p := keys(t, 3)
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		version int64
		root    []crypto.PublicKey
		rt      int
		rel     []crypto.PublicKey
		st      int
		says    string
	}{
		{"two of three", 1, p, 2, p[:1], 1, ""},
		{"version 0", 0, p, 2, p[:1], 1, "a root of version 0"},
		{"a key twice", 1, []crypto.PublicKey{p[0], p[0]}, 2, p[:1], 1, "stands there before"},
		{"a release key twice", 1, p, 2, []crypto.PublicKey{p[0], p[1], p[0]}, 1, "stands there before"},
		{"three of two", 1, p[:2], 3, p[:1], 1, "nobody can meet that"},
		{"none of two", 1, p[:2], 0, p[:1], 1, "nobody can meet that"},
		{"no release key", 1, p, 2, nil, 1, "1 signatures of 0 keys that sign releases"},
		{"another curve", 1, []crypto.PublicKey{other.Public()}, 1, p[:1], 1, "an ECDSA key on P-384 signs no releases"},
		{"RSA", 1, p, 1, []crypto.PublicKey{long.Public()}, 1, "an RSA key signs no releases"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewRoot(c.version, soon, c.root, c.rt, c.rel, c.st)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("said %v, want %q", err, c.says)
			}
		})
	}
}

// TestStanding: who of the keys signed is told, by signatures that are right alone, for a root by its own and by those
// of the root before.
func TestStanding(t *testing.T) {
	rk, rp := keys(t, 3)
	sk, sp := keys(t, 2)
	first, err := ReadRoot(makeRoot(t, 1, rp[:1], 1, sp, 2))
	if err != nil {
		t.Fatal(err)
	}
	raw := makeRoot(t, 2, rp[1:], 2, sp, 2)
	look := func(d *Draft, of func(*Draft) (Standing, error)) (signed, lacks int) {
		s, err := of(d)
		if err != nil {
			t.Fatal(err)
		}
		return len(s.Signed), s.Lacks()
	}
	for n, by := range []crypto.Signer{nil, rk[1], rk[0], rk[1], rk[2]} {
		if by != nil {
			raw = sign(t, raw, by)
		}
		second, err := ReadRoot(raw)
		if err != nil {
			t.Fatal(err)
		}
		roots := func(d *Draft) (Standing, error) { return d.Roots(raw) }
		own, lacks := look(second, roots)
		before, left := look(first, roots)
		want := [][4]int{{0, 2, 0, 1}, {1, 1, 0, 1}, {1, 1, 1, 0}, {1, 1, 1, 0}, {2, 0, 1, 0}}[n]
		if got := [4]int{own, lacks, before, left}; got != want {
			t.Errorf("after %d signatures %v, want %v", n, got, want)
		}
	}
	targets := makeTargets(t, description("1.0"), sk[1], rk[0])
	if signed, lacks := look(first, func(d *Draft) (Standing, error) { return d.Releases(targets) }); signed != 1 || lacks != 1 {
		t.Errorf("a release has %d signatures and lacks %d", signed, lacks)
	}
	if ids, err := Signers(targets); err != nil || len(ids) != 2 {
		t.Errorf("signed by %v, %v", ids, err)
	}
	forged := bytes.Replace(targets, []byte(`"version":1`), []byte(`"version":2`), 1)
	if signed, _ := look(first, func(d *Draft) (Standing, error) { return d.Releases(forged) }); bytes.Equal(forged, targets) || signed != 0 {
		t.Errorf("signatures over something else count: %d", signed)
	}
}

// TestAttach: a signature that was made elsewhere over the payload counts like one that was made here, in each of the forms
// that tokens give; another is refused and changes nothing.
func TestAttach(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sp := []crypto.PublicKey{ec.Public(), public}
	raw := makeTargets(t, description("1.0"))
	payload, err := Payload(raw)
	if err != nil || !bytes.Contains(payload, []byte(`"release.json"`)) {
		t.Fatalf("%q, %v", payload, err)
	}
	sum := sha256.Sum256(payload)
	der, err := ecdsa.SignASN1(rand.Reader, ec, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var n struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &n); err != nil {
		t.Fatal(err)
	}
	plain := append(n.R.FillBytes(make([]byte, 32)), n.S.FillBytes(make([]byte, 32))...)
	root, err := ReadRoot(makeRoot(t, 1, sp, 1, sp, 2))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		key  crypto.PublicKey
		sig  []byte
		ok   bool
	}{
		{"DER", sp[0], der, true},
		{"two numbers", sp[0], plain, true},
		{"Ed25519", sp[1], ed25519.Sign(ed, payload), true},
		{"another's", sp[1], der, false},
		{"over the digest", sp[1], ed25519.Sign(ed, sum[:]), false},
		{"in hex", sp[0], []byte("3045022100"), false},
		{"nothing", sp[0], nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := Attach(raw, c.key, c.sig)
			if (err == nil) != c.ok {
				t.Fatalf("taken: %v (%v)", err == nil, err)
			}
			if !c.ok {
				return
			}
			id, err := KeyID(c.key)
			if err != nil {
				t.Fatal(err)
			}
			if s, err := root.Releases(out); err != nil || !slices.Equal(s.Signed, []string{id}) {
				t.Errorf("signed by %v, %v", s.Signed, err)
			}
		})
	}
}

// TestOwnersCount: in a build without one of the checks, one of these tests fails.
func TestOwnersCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^(TestRootsThatNobodyCanMeet|TestAttach)$", "owners.go")...)
}

// FuzzOwners: whatever a file holds, what it says of itself is within bounds, and a signature that is added is there.
func FuzzOwners(f *testing.F) {
	k, p := keys(f, 1)
	f.Add(makeRoot(f, 1, p, 1, p, 1, k[0]))
	f.Add(makeTargets(f, description("1.0"), k[0]))
	id, err := KeyID(p[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		signed, err := AddSignature(raw, k[0])
		if err != nil {
			return
		}
		if ids, err := Signers(signed); err != nil || !slices.Contains(ids, id) {
			t.Fatalf("signed by %v, %v", ids, err)
		}
	})
}
