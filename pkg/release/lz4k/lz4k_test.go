package lz4k

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// words is text-like content that is the same each time.
func words(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var vocabulary [300][]byte
	for i := range vocabulary {
		w := make([]byte, 2+r.IntN(12))
		for j := range w {
			w[j] = byte(r.IntN(256))
		}
		vocabulary[i] = w
	}
	var out []byte
	for len(out) < n {
		out = append(out, vocabulary[min(r.IntN(300), r.IntN(300))]...)
	}
	return out[:n]
}

// TestPinned: the encoder is a format. If this fails, boxes in the field cannot rebuild what the new one makes.
func TestPinned(t *testing.T) {
	sum := sha256.Sum256(Encode(append(words(300_000, 7), make([]byte, 70_000)...)))
	const want = "ee3705fa2ee5cec1"
	if got := hex.EncodeToString(sum[:8]); got != want {
		t.Fatalf("the encoder's output changed: %s, want %s; make a second encoder with a name of its own instead", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 5000).Draw(t, "n")
		plain := words(n, rapid.Uint64().Draw(t, "seed"))
		if rapid.Bool().Draw(t, "zeros") {
			plain = append(plain, make([]byte, rapid.IntRange(0, 3000).Draw(t, "zeros n"))...)
		}
		frame := Encode(plain)
		back, err := Decode(frame)
		if err != nil || !bytes.Equal(back, plain) {
			t.Fatalf("%d bytes did not come back: %v", len(plain), err)
		}
		more := rapid.IntRange(0, 40).Draw(t, "room")
		if fit, ok := Fit(plain, len(frame)+more); ok {
			if back, err := Decode(fit); len(fit) != len(frame)+more || err != nil || !bytes.Equal(back, plain) {
				t.Fatalf("stretched by %d: %d bytes, %v", more, len(fit)-len(frame), err)
			}
		} else if n > 2000 {
			t.Fatalf("not stretched by %d", more)
		}
	})
}

// TestLz4 asks the format's own tool, over more than one block.
func TestLz4(t *testing.T) {
	if _, err := exec.LookPath("lz4"); err != nil {
		t.Skip("needs lz4")
	}
	plain := words(blockSize+blockSize/3, 3)
	file := filepath.Join(t.TempDir(), "f.lz4")
	if err := os.WriteFile(file, Encode(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("lz4", "-dc", file).Output()
	if err != nil || !bytes.Equal(out, plain) {
		t.Fatalf("lz4 gives %d bytes of %d: %v", len(out), len(plain), err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(words(500, 1)))
	f.Add(Encode(make([]byte, 4000)))
	f.Add([]byte{2, 0x21, 0x4c, 0x18})
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := Decode(b)
		if err == nil {
			if back, err := Decode(Encode(plain)); err != nil || !bytes.Equal(back, plain) {
				t.Fatal("does not come back")
			}
		}
		if k, ok := Find(b); ok && k.Offset+k.Size > len(b) {
			t.Fatal("a payload outside the image")
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	file := os.Getenv("LZ4K_PLAIN")
	plain := words(8<<20, 1)
	if file != "" {
		var err error
		if plain, err = os.ReadFile(file); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		b.ReportMetric(float64(len(Encode(plain))), "bytes")
	}
}
