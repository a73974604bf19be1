package dm

import (
	"encoding/hex"
	"fmt"

	"tributary.dev/tributary/pkg/disk/verity"
)

// Verity is the kernel's table for a root and its tree. A block that does not match its
// hash panics the kernel (dm-verity's panic_on_corruption), so that the firmware starts the
// box anew and pstore keeps why; a read error of the disk stays a read error.
func Verity(s verity.Superblock, data, tree string, root [32]byte) Target {
	salt := "-"
	if len(s.Salt) > 0 {
		salt = hex.EncodeToString(s.Salt)
	}
	return Target{Length: s.DataBlocks * (verity.BlockSize / 512), Type: "verity", Params: fmt.Sprintf("1 %s %s %d %d %d 1 sha256 %x %s 1 panic_on_corruption",
		data, tree, verity.BlockSize, verity.BlockSize, s.DataBlocks, root, salt)}
}
