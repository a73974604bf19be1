package verity

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

type memory []byte

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(*m) {
		*m = append(*m, make([]byte, need-len(*m))...)
	}
	return copy((*m)[off:], p), nil
}

func noise(blocks int) []byte {
	b := make([]byte, blocks*BlockSize)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func TestFormatVerify(t *testing.T) {
	for _, blocks := range []int{1, 2, 127, 128, 129, 700, 128*128 + 1} {
		data := noise(blocks)
		var hash memory
		root, err := Format(bytes.NewReader(data), int64(len(data)), []byte("salt"), [16]byte{1}, &hash)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(hash)) != HashSize(int64(len(data))) {
			t.Errorf("%d blocks: tree of %d bytes, foretold %d", blocks, len(hash), HashSize(int64(len(data))))
		}
		if err := Verify(bytes.NewReader(data), bytes.NewReader(hash), root); err != nil {
			t.Fatalf("%d blocks: %v", blocks, err)
		}
	}
}

func TestEveryBitCounts(t *testing.T) {
	data := noise(300)
	var hash memory
	root, err := Format(bytes.NewReader(data), int64(len(data)), make([]byte, 32), [16]byte{}, &hash)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		d, h, r := bytes.Clone(data), bytes.Clone(hash), root
		bit := byte(1) << rapid.IntRange(0, 7).Draw(t, "bit")
		switch rapid.IntRange(0, 2).Draw(t, "where") {
		case 0:
			d[rapid.IntRange(0, len(d)-1).Draw(t, "data")] ^= bit
		case 1: // behind the superblock's UUID all is checked
			h[rapid.IntRange(BlockSize, len(h)-1).Draw(t, "tree")] ^= bit
		case 2:
			r[rapid.IntRange(0, 31).Draw(t, "root")] ^= bit
		}
		if err := Verify(bytes.NewReader(d), bytes.NewReader(h), r); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("one bit changed: %v", err)
		}
	})
}

func TestShorterData(t *testing.T) {
	data := noise(300)
	var hash memory
	root, err := Format(bytes.NewReader(data), int64(len(data)), nil, [16]byte{}, &hash)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{299, 257, 301, 384} {
		copy(hash, Superblock{DataBlocks: n}.Encode())
		if err := Verify(bytes.NewReader(append(data, make([]byte, 100*BlockSize)...)), bytes.NewReader(hash), root); !errors.Is(err, ErrCorrupt) {
			t.Errorf("300 blocks, the superblock says %d: %v", n, err)
		}
	}
}

// TestVeritysetup asks the kernel's own tool, both ways.
func TestVeritysetup(t *testing.T) {
	tool, err := exec.LookPath("veritysetup")
	if err != nil {
		if tool, err = exec.LookPath("/usr/sbin/veritysetup"); err != nil {
			t.Skip("needs veritysetup (Debian: cryptsetup-bin)")
		}
	}
	dir := t.TempDir()
	data, hash, theirs := filepath.Join(dir, "data"), filepath.Join(dir, "hash"), filepath.Join(dir, "theirs")
	b := noise(1000)
	var m memory
	uuid := [16]byte{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x47, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x01}
	root, err := Format(bytes.NewReader(b), int64(len(b)), bytes.Repeat([]byte{0xab}, 32), uuid, &m)
	if err != nil {
		t.Fatal(err)
	}
	for path, c := range map[string][]byte{data: b, hash: m} {
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hex := func(b []byte) string { return string(appendHex(nil, b)) }
	if out, err := exec.Command(tool, "verify", data, hash, hex(root[:])).CombinedOutput(); err != nil {
		t.Errorf("veritysetup refuses our tree: %v\n%s", err, out)
	}
	out, err := exec.Command(tool, "format", data, theirs, "--salt="+hex(bytes.Repeat([]byte{0xab}, 32)), "--uuid=11223344-5566-4788-99aa-bbccddeeff01").CombinedOutput()
	if err != nil {
		t.Fatalf("veritysetup: %v\n%s", err, out)
	}
	got, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, m) {
		t.Error("veritysetup writes another tree than Format")
	}
}

func appendHex(dst, b []byte) []byte {
	for _, c := range b {
		dst = append(dst, "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
	}
	return dst
}

func FuzzSuperblock(f *testing.F) {
	f.Add(Superblock{DataBlocks: 7, Salt: []byte("salt")}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSuperblock(b)
		if err != nil {
			return
		}
		again, err := DecodeSuperblock(s.Encode())
		if err != nil || again.DataBlocks != s.DataBlocks || !bytes.Equal(again.Salt, s.Salt) || again.UUID != s.UUID {
			t.Fatalf("%+v became %+v: %v", s, again, err)
		}
	})
}
