package dm

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func superblock(blocks uint64, salt []byte) []byte {
	b := make([]byte, 512)
	copy(b, "verity\x00\x00")
	le := binary.LittleEndian
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], 1)
	copy(b[32:], "sha256")
	le.PutUint32(b[64:], 4096)
	le.PutUint32(b[68:], 4096)
	le.PutUint64(b[72:], blocks)
	le.PutUint16(b[80:], uint16(len(salt)))
	copy(b[88:], salt)
	return b
}

func TestVerity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.Uint64Range(1, 1<<32).Draw(t, "blocks")
		salt := rapid.SliceOfN(rapid.Byte(), 0, 256).Draw(t, "salt")
		v, err := ParseVerity(superblock(blocks, salt))
		if err != nil || v.Blocks != blocks || !bytes.Equal(v.Salt, salt) {
			t.Fatalf("%+v, %v", v, err)
		}
	})
	v, _ := ParseVerity(superblock(100, nil))
	line := v.Table("/dev/vda3", "/dev/vda4", [32]byte{0xab})
	if line.Length != 800 || !strings.HasPrefix(line.Params, "1 /dev/vda3 /dev/vda4 4096 4096 100 1 sha256 ab00") || !strings.HasSuffix(line.Params, " - 1 panic_on_corruption") {
		t.Errorf("%+v", line)
	}
	for at, is := range map[int]byte{0: 'x', 8: 2, 12: 0, 32: 'x', 64: 1, 68: 1, 81: 2} {
		b := superblock(100, nil)
		b[at] = is
		if _, err := ParseVerity(b); err == nil {
			t.Errorf("byte %d as %d is not refused", at, is)
		}
	}
}

func FuzzVerity(f *testing.F) {
	f.Add(superblock(7, []byte("salt")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseVerity(b); err == nil && (v.Blocks == 0 || len(v.Salt) > 256) {
			t.Fatalf("%+v", v)
		}
	})
}

// The kernel's layout: the line begins at 312, its parameters 40 bytes later, ended by a
// zero, the whole padded to eight.
func TestRequest(t *testing.T) {
	b := request("root", "TRIB-x", 1, &Target{Length: 8, Type: "verity", Params: "abc"})
	le := binary.NativeEndian
	if len(b) != 312+48 || le.Uint32(b[12:]) != 360 || le.Uint32(b[20:]) != 1 || le.Uint32(b[28:]) != 1 ||
		string(b[48:53]) != "root\x00" || string(b[176:183]) != "TRIB-x\x00" ||
		le.Uint64(b[312+8:]) != 8 || string(b[312+24:312+31]) != "verity\x00" || string(b[352:356]) != "abc\x00" {
		t.Errorf("% x", b)
	}
}
