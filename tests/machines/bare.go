package machines

import (
	"fmt"
	"math/rand/v2"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/uki"
)

// FlashBare copies an image's disk with a kernel image of the same size, signed by the same key, whose only program is a
// bare first process: what a box needs that does nothing but start.
func (s *System) FlashBare(disk, to string, init []byte) error {
	initrd, err := uki.Read(s.uki, ".initrd")
	if err != nil {
		return err
	}
	first := initramfs.File{Path: "init", Mode: 0o755, Data: init}
	alone, err := initramfs.Pack([]initramfs.File{first})
	if err != nil {
		return err
	}
	if len(alone) > len(initrd) {
		return fmt.Errorf("a bare first process of %d bytes is larger than what it stands for (%d)", len(alone), len(initrd))
	}
	fill := make([]byte, len(initrd)-len(alone)) // what does not compress
	_, _ = rand.NewChaCha8([32]byte{}).Read(fill)
	bare := *s
	if bare.initrd, err = initramfs.Pack([]initramfs.File{first, {Path: "fill", Mode: 0o644, Data: fill}}); err != nil {
		return err
	}
	if bare.uki, err = bare.kernel(Variant{Version: "bare", Counter: 1}, s.hash); err != nil {
		return err
	}
	return bare.install(disk, to)
}
