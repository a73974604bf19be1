package frame

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// text is content that has something to pack.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d of %x\n", r.IntN(900), r.IntN(1<<20))
	}
	return b.Bytes()[:n]
}

// TestPinned: boxes in the field pack with the encoder of their release.
func TestPinned(t *testing.T) {
	for n, want := range map[int]string{1: "8d7028d25851b163", 300_000: "b11289171d877443", 2 << 20: "d5c5f7c42c9262d6"} {
		frame, err := Encode(text(n))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(frame); hex.EncodeToString(sum[:8]) != want {
			t.Errorf("%d bytes are packed to %x, not %s: releases built now cannot be packed again by boxes of before; keep the old encoder", n, sum[:8], want)
		}
		var plain bytes.Buffer
		if _, err := Decode(frame, &plain); err != nil || !bytes.Equal(plain.Bytes(), text(n)) {
			t.Errorf("%d bytes do not come out: %v", n, err)
		}
		if size, ok := Size(append(bytes.Clone(frame), frame...)); !ok || size != len(frame) {
			t.Errorf("a frame of %d bytes is found with %d, %v", len(frame), size, ok)
		}
		if _, ok := Size(frame[:len(frame)-1]); ok {
			t.Error("a frame without its end is found")
		}
	}
}

// TestPieces: how the content is cut does not change what comes out.
func TestPieces(t *testing.T) {
	plain := text(700_000)
	want, err := Encode(plain)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		var out bytes.Buffer
		z, err := NewEncoder(&out)
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), rapid.SampledFrom([]int{1, 4095, 65536, 131072, 131073, 500_000}).Draw(t, "piece"))
			if n == 1 { // a few, not all
				n = min(len(rest), 1+rapid.IntRange(0, 50_000).Draw(t, "odd"))
			}
			if _, err := z.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := z.Close(); err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("other bytes come out: %v", err)
		}
	})
}

// TestTooMuch: what would not end does not fill a box.
func TestTooMuch(t *testing.T) {
	var bomb bytes.Buffer
	z, err := NewEncoder(&bomb)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range MaxPlain>>20 + 1 {
		if _, err := z.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := Decode(bomb.Bytes(), io.Discard); !errors.Is(err, ErrFormat) || n > MaxPlain+1 {
		t.Fatalf("%d bytes come out of %d: %v", n, bomb.Len(), err)
	}
}

func FuzzFrame(f *testing.F) {
	whole, err := Encode(text(5000))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:9])
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := Size(b)
		if !ok {
			return
		}
		if n > len(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if plain, err := Decode(b[:n], io.Discard); err == nil && plain > MaxPlain {
			t.Fatalf("%d bytes come out", plain)
		}
	})
}
