//go:build linux

// Package nvram answers: when are the firmware's variables, and what a dying kernel left in
// them, there to be read? Once somebody wants them: to show either, the kernel asks the
// firmware for all of its variables, one by one, and the box has to answer first.
package nvram

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	variables = "/sys/firmware/efi/efivars"
	dumps     = "/sys/fs/pstore"
)

// Variables shows the firmware's variables (efivarfs), where there are any. It may be called
// at any time, by several programs at once.
func Variables() error { return show(variables, "efivarfs") }

// Dumps shows what the kernel kept of its own end (pstore), likewise. The kernel keeps it
// without that.
func Dumps() error { return show(dumps, "pstore") }

// show mounts what is not there yet; the kernel loads the module for it. That the folder or the kind of file system is missing is
// no error: such a machine has nothing to show.
func show(dir, kind string) error {
	if Mounted(dir) {
		return nil
	}
	err := unix.Mount(kind, dir, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err == nil || errors.Is(err, unix.EBUSY) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // EBUSY: another program was first
	}
	return fmt.Errorf("mounting %s: %w", dir, err)
}

// Mounted compares the devices of a folder and its parent.
func Mounted(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}
