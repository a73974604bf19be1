package bmap

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		image := make([]byte, rapid.IntRange(1, 40*BlockSize).Draw(t, "size"))
		var used []int64
		for b := range int64(len(image)+BlockSize-1) / BlockSize {
			if rapid.Bool().Draw(t, "used") {
				used = append(used, b)
				image[b*BlockSize] = byte(b + 1)
			}
		}
		m, err := Make(bytes.NewReader(image), int64(len(image)), used)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(m.Encode())
		if err != nil || got.ImageSize != m.ImageSize || !slices.Equal(got.Ranges, m.Ranges) {
			t.Fatalf("%+v became %+v: %v", m, got, err)
		}
		b := m.Encode()
		b[rapid.IntRange(len(b)/2, len(b)-20).Draw(t, "at")] ^= 1
		if again, err := Decode(b); err == nil && !slices.Equal(again.Ranges, m.Ranges) {
			t.Fatal("a changed file is taken")
		}
	})
}

// TestBmaptool lets the tool write an image by our map.
func TestBmaptool(t *testing.T) {
	if _, err := exec.LookPath("bmaptool"); err != nil {
		t.Skip("needs bmaptool (Debian: bmap-tools)")
	}
	dir := t.TempDir()
	image := make([]byte, 20*BlockSize)
	copy(image[3*BlockSize:], bytes.Repeat([]byte("x"), 5*BlockSize))
	m, err := Make(bytes.NewReader(image), int64(len(image)), []int64{3, 4, 5, 6, 7})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"i": image, "i.bmap": m.Encode()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bmaptool", "copy", "--bmap", "i.bmap", "i", "out")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "out")); !bytes.Equal(got, image) {
		t.Error("another image came out")
	}
}

func FuzzDecode(f *testing.F) {
	m, err := Make(bytes.NewReader(make([]byte, BlockSize)), BlockSize, []int64{0})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Decode(b); err == nil {
			if again, err := Decode(m.Encode()); err != nil || !slices.Equal(again.Ranges, m.Ranges) {
				t.Fatal(err)
			}
		}
	})
}
