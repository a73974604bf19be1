package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// program is content like that of a program: words of code, and tables of pointers that shift when something is put in.
func program(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	out := make([]byte, n)
	for i := 0; i+16 <= n; i += 16 {
		binary.LittleEndian.PutUint64(out[i:], r.Uint64())
		binary.LittleEndian.PutUint32(out[i+8:], uint32(i)+0x80e00000)
		binary.LittleEndian.PutUint32(out[i+12:], uint32(r.IntN(n)))
	}
	return out
}

// changed puts bytes in, takes some out, and shifts the pointers behind.
func changed(old []byte, seed uint64, edits int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	out := bytes.Clone(old)
	for range edits {
		at := r.IntN(len(out) + 1)
		switch r.IntN(3) {
		case 0:
			out = append(out[:at:at], append(program(r.IntN(400), r.Uint64()), out[at:]...)...)
		case 1:
			out = append(out[:at:at], out[min(len(out), at+r.IntN(300)):]...)
		case 2:
			for i := at &^ 15; i+16 <= min(len(out), at+4000); i += 16 {
				binary.LittleEndian.PutUint32(out[i+8:], binary.LittleEndian.Uint32(out[i+8:])+0x40)
			}
		}
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := program(rapid.SampledFrom([]int{0, 1, 31, 4096, 70_000, 200_000}).Draw(t, "size"), rapid.Uint64().Draw(t, "seed"))
		new := changed(old, rapid.Uint64().Draw(t, "edit seed"), rapid.IntRange(0, 12).Draw(t, "edits"))
		patch, err := Make(old, new, 0x80e00000)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Apply(bytes.NewReader(old), patch, &out); err != nil || !bytes.Equal(out.Bytes(), new) {
			t.Fatalf("%d bytes to %d do not come out: %v", len(old), len(new), err)
		}
	})
}

// TestPinned: what Apply makes of a delta is a format: boxes in the field have the Apply of their release.
func TestPinned(t *testing.T) {
	old := program(100_000, 1)
	patch, err := Make(old, changed(old, 5, 6), 0x80e00000)
	if err != nil {
		t.Fatal(err)
	}
	_, parts, err := split(patch)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(parts[partChanges])
	const want = "a78cd74bd3923a27"
	if got := hex.EncodeToString(sum[:8]); got != want {
		t.Fatalf("the model's output changed: %s, want %s; give the format a new magic number, and keep the old Apply", got, want)
	}
}

// BenchmarkApply: the time of a delta is that of its changes.
func BenchmarkApply(b *testing.B) {
	old := program(2_000_000, 1)
	patch, err := Make(old, changed(old, 5, 400), 0x80e00000)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(old)))
	for b.Loop() {
		if err := Apply(bytes.NewReader(old), patch, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWrong: nothing but the right content comes out as whole.
func TestWrong(t *testing.T) {
	old := program(60_000, 1)
	new := changed(old, 2, 5)
	patch, err := Make(old, new, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(old)
	for i := range other {
		other[i] ^= 1
	}
	var out bytes.Buffer
	if err := Apply(bytes.NewReader(other), patch, &out); !errors.Is(err, ErrOld) {
		t.Fatalf("over other content: %v", err)
	}
	for i := 0; i < len(patch); i += 1 + len(patch)/150 {
		bad := bytes.Clone(patch)
		bad[i] ^= 0x20
		out.Reset()
		if err := Apply(bytes.NewReader(old), bad, &out); err == nil && !bytes.Equal(out.Bytes(), new) {
			t.Fatalf("with byte %d flipped, other content comes out", i)
		}
	}
}

func FuzzApply(f *testing.F) {
	old := program(5000, 1)
	for _, edits := range []int{0, 3} {
		patch, err := Make(old, changed(old, 9, edits), 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(patch)
	}
	f.Fuzz(func(t *testing.T, patch []byte) {
		if h, err := ReadHeader(patch); err == nil && h.NewSize > 1<<20 {
			t.Skip("more than a test needs")
		}
		var out bytes.Buffer
		_ = Apply(bytes.NewReader(old), patch, &out)
		if out.Len() > 1<<20 {
			t.Fatalf("%d bytes came out", out.Len())
		}
	})
}
