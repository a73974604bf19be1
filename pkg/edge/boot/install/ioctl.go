package install

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/efi"
)

// ioctlRange passes a start and a length in bytes, as the block layer's range calls want them.
func ioctlRange(fd uintptr, request uintptr, start, length uint64) error {
	r := [2]uint64{start, length}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

// flag reads one of the firmware's switches.
func (c Config) flag(name string) bool {
	_, b, err := c.EFI.Get(name, efi.Global)
	return err == nil && len(b) > 0 && b[0] == 1
}
