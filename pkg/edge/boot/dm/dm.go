// Package dm answers: how is a device-mapper device made without libdevmapper? By the
// kernel's own ioctls (linux/dm-ioctl.h), on /dev/mapper/control.
package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control is where the kernel listens; devtmpfs makes it when dm-mod is there.
const Control = "/dev/mapper/control"

const (
	headerSize = 312 // struct dm_ioctl
	targetSize = 40  // struct dm_target_spec
	nameSize   = 128
	maxParams  = 4096

	cmdCreate  = 3
	cmdRemove  = 4
	cmdSuspend = 6
	cmdLoad    = 9

	flagReadOnly = 1
	flagSecret   = 1 << 15 // DM_SECURE_DATA_FLAG
)

// Target is one line of a table: Length sectors of 512 bytes, made by a kernel target.
type Target struct {
	Length uint64
	Type   string // "verity", "crypt", …
	Params string
	// Secret: the line holds a key; the kernel wipes its copies.
	Secret bool
}

// Create makes the device name, gives it the one-line table and sets it going. It returns
// the device's node, /dev/dm-N. A device that cannot be finished is removed again.
func Create(name, uuid string, t Target, readOnly bool) (string, error) {
	ctl, err := os.OpenFile(Control, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	flags := uint32(0)
	if readOnly {
		flags = flagReadOnly
	}
	if len(t.Type) > 15 || len(t.Params) > maxParams {
		return "", errors.New("dm: a target that is too long")
	}
	if _, err := call(ctl, cmdCreate, request(name, uuid, flags, nil)); err != nil {
		return "", fmt.Errorf("dm: create %s: %w", name, err)
	}
	if t.Secret {
		flags |= flagSecret
	}
	load := request(name, "", flags, &t)
	_, err = call(ctl, cmdLoad, load)
	clear(load)
	var dev uint64
	if err == nil {
		dev, err = call(ctl, cmdSuspend, request(name, "", 0, nil))
	}
	if err != nil {
		_, gone := call(ctl, cmdRemove, request(name, "", 0, nil))
		params := t.Params
		if t.Secret {
			params = "…"
		}
		return "", fmt.Errorf("dm: table of %s (%s %s): %w", name, t.Type, params, errors.Join(err, gone))
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)), nil
}

// request lays a struct dm_ioctl out, with the table line behind it when there is one.
func request(name, uuid string, flags uint32, t *Target) []byte {
	size := headerSize
	if t != nil {
		size += (targetSize + len(t.Params) + 1 + 7) &^ 7
	}
	b := make([]byte, size)
	le := binary.NativeEndian
	le.PutUint32(b[0:], 4) // version 4.0.0 of the interface
	le.PutUint32(b[12:], uint32(size))
	le.PutUint32(b[16:], headerSize)
	le.PutUint32(b[28:], flags)
	copy(b[48:48+nameSize-1], name)
	copy(b[48+nameSize:48+nameSize+128], uuid)
	if t != nil {
		le.PutUint32(b[20:], 1)
		s := b[headerSize:]
		le.PutUint64(s[8:], t.Length)
		le.PutUint32(s[20:], uint32(len(s)))
		copy(s[24:39], t.Type)
		copy(s[targetSize:], t.Params)
	}
	return b
}

func call(ctl *os.File, nr uintptr, b []byte) (dev uint64, err error) {
	if i := bytes.IndexByte(b[48:48+nameSize], 0); i <= 0 {
		return 0, errors.New("dm: no name, or one that is too long")
	}
	cmd := uintptr(3)<<30 | headerSize<<16 | 0xfd<<8 | nr // _IOWR(0xfd, nr, struct dm_ioctl)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), cmd, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint64(b[40:]), nil
}
