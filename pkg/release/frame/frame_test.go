package frame

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
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
	for n, want := range map[int]string{1: "8d7028d25851b163", 300_000: "8b8c321b62a62a82", 2 << 20: "571b2f298df5f799"} {
		frame, err := Encode(text(n))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(frame); hex.EncodeToString(sum[:8]) != want {
			t.Errorf("%d bytes are packed to %x, not %s: releases built now cannot be packed again by boxes of before; keep the old encoder", n, sum[:8], want)
		}
		plain, err := Decode(frame)
		if err != nil || !bytes.Equal(plain, text(n)) {
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
		if plain, err := Decode(b[:n]); err == nil && len(plain) > MaxPlain {
			t.Fatalf("%d bytes come out", len(plain))
		}
	})
}
