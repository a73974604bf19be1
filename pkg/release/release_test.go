package release

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/release/frame"
	"tributary.dev/tributary/pkg/release/lz4k"
	"tributary.dev/tributary/tests/mutation"
)

var soon = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func keys(t testing.TB, n int) (private []crypto.Signer, public []crypto.PublicKey) {
	for range n {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private, public = append(private, k), append(public, k.Public())
	}
	return private, public
}

func description(version string) []byte {
	uki, manager, root := []byte("kernel "+version), []byte("manager"), make([]byte, 8192)
	content := append(append(bytes.Clone(uki), manager...), root...)
	return Description{Format: Format, Version: version, Arch: "amd64", Profile: "vm", Counter: 3, RootHash: strings.Repeat("ab", 32), Root: PartOf(root),
		UKI: PartOf(uki), Manager: PartOf(manager), Salt: "00", UUID: strings.Repeat("12", 16), Content: PartOf(content)}.Encode()
}

func sign(t testing.TB, raw []byte, by ...crypto.Signer) []byte {
	for _, k := range by {
		var err error
		if raw, err = AddSignature(raw, k); err != nil {
			t.Fatal(err)
		}
	}
	return raw
}

func makeRoot(t testing.TB, version int64, root []crypto.PublicKey, rt int, rel []crypto.PublicKey, st int, by ...crypto.Signer) []byte {
	return makeRootUntil(t, version, soon, root, rt, rel, st, by...)
}

func makeRootUntil(t testing.TB, version int64, end time.Time, root []crypto.PublicKey, rt int, rel []crypto.PublicKey, st int, by ...crypto.Signer) []byte {
	raw, err := NewRoot(version, end, root, rt, rel, st)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, raw, by...)
}

func makeTargets(t testing.TB, d []byte, by ...crypto.Signer) []byte {
	return makeTargetsUntil(t, d, soon, by...)
}

func makeTargetsUntil(t testing.TB, d []byte, end time.Time, by ...crypto.Signer) []byte {
	raw, err := NewTargets(d, 1, end)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, raw, by...)
}

// TestSignatures: a release needs the threshold, each key once, over this description, by keys that the root names now.
func TestSignatures(t *testing.T) {
	rk, rp := keys(t, 3)
	sk, sp := keys(t, 3)
	evil, evilPublic := keys(t, 3)
	first := makeRootUntil(t, 1, soon.AddDate(5, 0, 0), rp, 2, sp, 2, rk[0], rk[1])
	trusted, err := TrustRoot(first)
	if err != nil {
		t.Fatal(err)
	}
	d, other := description("1.2.0"), description("6.6.6")
	now := soon.AddDate(-1, 0, 0)
	nsk, nsp := keys(t, 1)
	second := makeRoot(t, 2, rp, 2, nsp, 1, rk[1], rk[2])
	third := makeRoot(t, 3, evilPublic, 1, nsp, 1, rk[0], rk[2], evil[0])
	for _, c := range []struct {
		name    string
		roots   [][]byte
		targets []byte
		d       []byte
		now     time.Time
		ok      bool
	}{
		{"two of three", nil, makeTargets(t, d, sk[0], sk[2]), d, now, true},
		{"one of three", nil, makeTargets(t, d, sk[0]), d, now, false},
		{"one key twice", nil, makeTargets(t, d, sk[0], sk[0]), d, now, false},
		{"foreign keys", nil, makeTargets(t, d, evil[0], evil[1]), d, now, false},
		{"root keys are not release keys", nil, makeTargets(t, d, rk[0], rk[1]), d, now, false},
		{"other description", nil, makeTargets(t, d, sk[0], sk[1]), other, now, false},
		{"expired", nil, makeTargets(t, d, sk[0], sk[1]), d, soon.AddDate(1, 0, 0), false},
		{"expired, but the time is not known", nil, makeTargets(t, d, sk[0], sk[1]), d, time.Time{}, true},
		{"rotated keys", [][]byte{first, second}, makeTargets(t, d, nsk[0]), d, now, true},
		{"old keys after the rotation", [][]byte{second}, makeTargets(t, d, sk[0], sk[1]), d, now, false},
		{"new keys without their root", nil, makeTargets(t, d, nsk[0]), d, now, false},
		{"rotated twice", [][]byte{second, third}, makeTargets(t, d, nsk[0]), d, now, true},
		{"a root left out", [][]byte{third}, makeTargets(t, d, nsk[0]), d, now, false},
		{"a root by too few", [][]byte{makeRoot(t, 2, rp, 2, evilPublic, 1, rk[0])}, makeTargets(t, d, evil[0]), d, now, false},
		{"a root by strangers", [][]byte{makeRoot(t, 2, evilPublic, 2, evilPublic, 1, evil[0], evil[1])}, makeTargets(t, d, evil[0]), d, now, false},
		{"the root ended", nil, makeTargetsUntil(t, d, soon.AddDate(9, 0, 0), sk[0], sk[1]), d, soon.AddDate(6, 0, 0), false},
		{"the root ended, but the time is not known", nil, makeTargetsUntil(t, d, soon.AddDate(9, 0, 0), sk[0], sk[1]), d, time.Time{}, true},
		{"the root ended, and was rotated", [][]byte{makeRootUntil(t, 2, soon.AddDate(9, 0, 0), rp, 2, nsp, 1, rk[1], rk[2])}, makeTargetsUntil(t, d, soon.AddDate(9, 0, 0), nsk[0]), d, soon.AddDate(6, 0, 0), true},
		{"a root without its own keys", [][]byte{makeRoot(t, 2, evilPublic, 1, nsp, 1, rk[0], rk[1])}, makeTargets(t, d, nsk[0]), d, now, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, got, err := trusted.Verify(c.roots, c.targets, c.d, c.now)
			if (err == nil) != c.ok {
				t.Fatalf("accepted: %v (%v)", err == nil, err)
			}
			if c.ok && (got.Version != "1.2.0" || next.Version() != 1+int64(strings.Count(c.name, "rotated"))+int64(strings.Count(c.name, "twice"))) {
				t.Fatalf("got %s under root %d", got.Version, next.Version())
			}
		})
	}
}

// TestChecksCount: in a build without one of the checks, TestSignatures fails.
func TestChecksCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestSignatures$", "sign.go")...)
}

func FuzzDescription(f *testing.F) {
	f.Add(description("1.0.0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDescription(b)
		if err != nil {
			return
		}
		if again, err := ParseDescription(d.Encode()); err != nil || again.Content != d.Content {
			t.Fatalf("does not come back: %v", err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	rk, rp := keys(f, 1)
	root := makeRoot(f, 1, rp, 1, rp, 1, rk[0])
	trusted, err := TrustRoot(root)
	if err != nil {
		f.Fatal(err)
	}
	d := description("1.0.0")
	f.Add(root, makeTargets(f, d, rk[0]), d)
	f.Fuzz(func(t *testing.T, root, targets, text []byte) {
		if _, got, err := trusted.Verify([][]byte{root}, targets, text, time.Time{}); err == nil && !bytes.Equal(text, d) {
			t.Fatalf("%+v was accepted, and nobody signed it", got)
		}
	})
}

// TestUnfold: what the builder packed into a UKI is unpacked in the content, and packed again to the same bits in pieces of
// any length; what another packed stays as it is.
func TestUnfold(t *testing.T) {
	archive := bytes.Repeat([]byte("a program of the initramfs, and its brother\n"), 9000)
	ours, err := frame.Encode(archive)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	uki := bytes.Join([][]byte{make([]byte, 1024), ours, make([]byte, 512+(-len(ours)&3)), z.EncodeAll(archive, nil), []byte("end")}, nil)
	packed := FindPacked(uki, true)
	if len(packed) != 1 || packed[0] != (Packed{1024, int64(len(ours)), int64(len(archive)), FormZstd}) {
		t.Fatalf("found %+v", packed)
	}
	var out bytes.Buffer
	if err := Unfold(uki, packed, &out); err != nil || out.Len() != len(uki)-len(ours)+len(archive) {
		t.Fatalf("unfolded to %d bytes, %v", out.Len(), err)
	}
	d := Description{UKI: PartOf(uki), Packed: packed}
	for _, size := range []int{1, 7, 1000, 1 << 20} {
		if again, err := fold(d, out.Bytes(), size); err != nil || !bytes.Equal(again, uki) {
			t.Fatalf("folded to another, in pieces of %d: %v", size, err)
		}
	}
	if _, err := fold(d, out.Bytes()[:out.Len()-1], 1000); err == nil || errors.Is(err, ErrPacked) {
		t.Fatalf("of half a content: %v", err)
	}
	if _, err := fold(d, append(out.Bytes(), 0), 1000); err == nil {
		t.Fatal("more content than there is room for is folded")
	}
	if _, err := fold(d.Whole(), uki, 1000); err != nil {
		t.Fatalf("the whole is not taken as it is: %v", err)
	}
	other := append(bytes.Clone(uki[:len(uki)-1]), '!')
	if _, err := fold(d.Whole(), other, 1000); err == nil {
		t.Fatal("another kernel image is taken for the release's")
	}
	out.Bytes()[1500] ^= 1
	if _, err := fold(d, out.Bytes(), 1000); !errors.Is(err, ErrPacked) {
		t.Fatalf("another archive: %v", err)
	}
}

// fold gives a Folder the content in pieces of that size.
func fold(d Description, content []byte, size int) ([]byte, error) {
	var out bytes.Buffer
	f := NewFolder(d, &out)
	for piece := range slices.Chunk(content, size) {
		if _, err := f.Write(piece); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), f.Close()
}

// TestForms: what this box cannot pack, it says, and a description of another format it refuses.
func TestForms(t *testing.T) {
	d, err := ParseDescription(description("1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    Packed
		says string
	}{
		{Packed{0, 3, 9, FormZstd}, ""},
		{Packed{0, 3, 9, FormLZ4}, ""},
		{Packed{0, 3, 9, "brotli1"}, `packs a part of its kernel image as "brotli1", which this box does not know`},
		{Packed{0, 3, frame.MaxPlain + 1, FormZstd}, "this box packs 134217728"},
		{Packed{0, 3, lz4k.MaxPlain + 1, FormLZ4}, "this box packs 67108864"},
	} {
		e := d
		e.Packed = []Packed{c.p}
		e.Content.Size += c.p.Plain - c.p.Size
		e, err := ParseDescription(e.Encode())
		if err != nil {
			t.Fatalf("%+v: %v", c.p, err)
		}
		if err := e.Packs(); c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%+v: %v, want %q", c.p, err, c.says)
		}
		if err := e.Whole().Packs(); err != nil {
			t.Errorf("the whole of it: %v", err)
		}
	}
	old := bytes.Replace(d.Encode(), []byte(`"format": 2`), []byte(`"format": 1`), 1)
	if _, err := ParseDescription(old); err == nil || !strings.Contains(err.Error(), "format 1; this box knows 2") {
		t.Errorf("format 1: %v", err)
	}
}

// TestFormsCount: in a build without one of the checks, TestForms or TestUnfold fails.
func TestFormsCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^(TestForms|TestUnfold)$", "content.go", "release.go")...)
}

// FuzzUnfold: whatever a UKI holds, it is unpacked within bounds, and comes back.
func FuzzUnfold(f *testing.F) {
	ours, err := frame.Encode(bytes.Repeat([]byte("a program and its brother\n"), 100))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(make([]byte, 8), ours...))
	f.Fuzz(func(t *testing.T, uki []byte) {
		packed := FindPacked(uki, true)
		var out bytes.Buffer
		if err := Unfold(uki, packed, &out); err != nil {
			t.Fatalf("%d stretches were found, and are not unpacked: %v", len(packed), err)
		}
		if again, err := fold(Description{UKI: PartOf(uki), Packed: packed}, out.Bytes(), 1<<16); err != nil || !bytes.Equal(again, uki) {
			t.Fatalf("folded to another: %v", err)
		}
	})
}
