package gpt

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is an identifier as it lies on the disk: its first three fields are little-endian (UEFI 2.10, appendix A).
type GUID [16]byte

// Partition types of the Discoverable Partitions Specification, and the two that everyone uses.
var (
	ESP             = mustParse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	BasicData       = mustParse("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
	LinuxGeneric    = mustParse("0fc63daf-8483-4772-8e79-3d69d8477de4")
	RootAMD64       = mustParse("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
	RootVerityAMD64 = mustParse("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
	RootARM64       = mustParse("b921b045-1df0-41c3-af44-4c6f280d3fae")
	RootVerityARM64 = mustParse("df3300ce-d69f-4c92-978c-9bfb0f38d820")
)

// Attributes of the Discoverable Partitions Specification.
const (
	ReadOnly = 1 << 60
	NoAuto   = 1 << 63 // not mounted by tools that look for partitions by themselves
)

// RootTypes gives the types of the root and of its verity tree on that architecture (Go's name for it).
func RootTypes(arch string) (root, verity GUID, err error) {
	switch arch {
	case "amd64":
		return RootAMD64, RootVerityAMD64, nil
	case "arm64":
		return RootARM64, RootVerityARM64, nil
	}
	return GUID{}, GUID{}, fmt.Errorf("no root partition type is known here for %q", arch)
}

// RootIDs gives the unique GUIDs that the specification asks of a root and of its verity tree: the first and the last
// 16 bytes of the root hash, in the order in which they are written as text.
func RootIDs(roothash [32]byte) (root, verity GUID) {
	return fromText([16]byte(roothash[:16])), fromText([16]byte(roothash[16:]))
}

// Named derives a GUID from words, the same ones giving the same GUID, marked as version 8 (RFC 9562).
func Named(words ...string) GUID {
	sum := sha256.Sum256([]byte("tributary.dev/gpt\x00" + strings.Join(words, "\x00")))
	b := [16]byte(sum[:16])
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fromText(b)
}

// fromText takes the 16 bytes in the order of the written form.
func fromText(b [16]byte) (g GUID) {
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(b[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(b[6:]))
	copy(g[8:], b[8:])
	return g
}

// Bytes gives the 16 bytes in the order of the written form, which is that of a root hash's halves.
func (g GUID) Bytes() [16]byte { return [16]byte(fromText(g)) }

// String is the written form, in small letters.
func (g GUID) String() string {
	b := g.Bytes()
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Parse reads the written form, capitals or not.
func Parse(s string) (GUID, error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("%q is not a GUID", s)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return GUID{}, fmt.Errorf("%q is not a GUID", s)
	}
	return fromText([16]byte(b)), nil
}

func mustParse(s string) GUID {
	g, err := Parse(s)
	if err != nil {
		panic(err) // a constant of this file is mistyped
	}
	return g
}
