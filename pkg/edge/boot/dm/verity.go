package dm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// VerityBlock is the only block size in use, for data and for the tree.
const VerityBlock = 4096

// Verity is what the superblock of a hash tree says (veritysetup's on-disk format, version
// 1). It comes from an unsigned disk: the root hash alone decides whether it is true.
type Verity struct {
	Blocks uint64 // of data
	Salt   []byte
}

// ParseVerity reads the first 512 bytes of a hash tree and refuses what this project does
// not write: other algorithms than sha256, other block sizes than 4096.
func ParseVerity(b []byte) (Verity, error) {
	if len(b) < 512 {
		return Verity{}, errors.New("verity: superblock cut short")
	}
	le := binary.LittleEndian
	if string(b[:8]) != "verity\x00\x00" || le.Uint32(b[8:]) != 1 || le.Uint32(b[12:]) != 1 {
		return Verity{}, errors.New("verity: no superblock of version 1")
	}
	algorithm, _, _ := bytes.Cut(b[32:64], []byte{0})
	data, hash, blocks, salt := le.Uint32(b[64:]), le.Uint32(b[68:]), le.Uint64(b[72:]), le.Uint16(b[80:])
	switch {
	case string(algorithm) != "sha256":
		return Verity{}, fmt.Errorf("verity: algorithm %q", algorithm)
	case data != VerityBlock || hash != VerityBlock:
		return Verity{}, fmt.Errorf("verity: blocks of %d and %d bytes", data, hash)
	case blocks == 0 || blocks > 1<<32:
		return Verity{}, fmt.Errorf("verity: %d blocks of data", blocks)
	case salt > 256:
		return Verity{}, fmt.Errorf("verity: a salt of %d bytes", salt)
	}
	return Verity{Blocks: blocks, Salt: bytes.Clone(b[88 : 88+int(salt)])}, nil
}

// Table is the kernel's table line. A block that does not match its hash panics the kernel
// (dm-verity's panic_on_corruption), so that the firmware starts the box anew and pstore
// keeps why; a read error of the disk stays a read error.
func (v Verity) Table(data, tree string, root [32]byte) Target {
	salt := "-"
	if len(v.Salt) > 0 {
		salt = hex.EncodeToString(v.Salt)
	}
	return Target{Length: v.Blocks * (VerityBlock / 512), Type: "verity", Params: fmt.Sprintf("1 %s %s %d %d %d 1 sha256 %x %s 1 panic_on_corruption",
		data, tree, VerityBlock, VerityBlock, v.Blocks, root, salt)}
}
