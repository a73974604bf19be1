package dm

import (
	"encoding/binary"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/disk/verity"
)

func TestVerity(t *testing.T) {
	line := Verity(verity.Superblock{DataBlocks: 100}, "/dev/vda3", "/dev/vda4", [32]byte{0xab})
	if line.Length != 800 || !strings.HasPrefix(line.Params, "1 /dev/vda3 /dev/vda4 4096 4096 100 1 sha256 ab00") || !strings.HasSuffix(line.Params, " - 1 panic_on_corruption") {
		t.Errorf("%+v", line)
	}
	if line = Verity(verity.Superblock{DataBlocks: 1, Salt: []byte{1, 0xff}}, "a", "b", [32]byte{}); !strings.Contains(line.Params, " 01ff 1 panic") {
		t.Errorf("%+v", line)
	}
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
