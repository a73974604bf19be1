//go:build linux

package nvram

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What is shown stays as it is, however many want it at once; what is not there is not missed.
func TestShow(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); errors.Is(err, unix.EPERM) {
		t.Skip("needs to be root, to mount")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	shown := filepath.Join(dir, "shown")
	if err := unix.Mkdir(shown, 0o755); err != nil {
		t.Fatal(err)
	}
	if Mounted(shown) {
		t.Error("a folder is taken for a mount")
	}
	if err := unix.Mount("sysfs", shown, "sysfs", unix.MS_RDONLY, ""); errors.Is(err, unix.EPERM) {
		t.Skip("needs a namespace that may mount sysfs")
	} else if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(shown, 0); err != nil {
		t.Fatal(err)
	}
	// sysfs is one and the same wherever it is mounted, as the firmware's variables are.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := show(shown, "sysfs"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if !Mounted(shown) {
		t.Error("it is not shown")
	}
	if err := unix.Unmount(shown, 0); err != nil {
		t.Error(err)
	}
	if Mounted(shown) {
		t.Error("it was mounted more than once")
	}
	if err := show(filepath.Join(dir, "none"), "sysfs"); err != nil {
		t.Errorf("a machine without the folder: %v", err)
	}
	if err := show(shown, "nosuchfs"); err != nil {
		t.Errorf("a kernel without the file system: %v", err)
	}
	if err := show(filepath.Join(shown, "\x00"), "sysfs"); err == nil {
		t.Error("an error is not told")
	}
}
