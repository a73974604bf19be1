package update

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// BlessOn takes the boot counter off the kernel image on the ESP at that device, by a rename in the mounted file
// system: the one write that the running slot's ESP ever gets. dir is where it may be mounted. It may be repeated.
func BlessOn(device, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, "vfat", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", device, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	folder := filepath.Join(dir, filepath.FromSlash(ukiDir))
	list, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range list {
		m := ukiName.FindStringSubmatch(e.Name())
		if m == nil || m[2] == "" {
			continue
		}
		blessed := filepath.Join(folder, "tributary-"+m[1]+".efi")
		if err := os.Rename(filepath.Join(folder, e.Name()), blessed); err != nil {
			return err
		}
		// The kernel's FAT gives a new name no size and no clusters, and fills them in when it writes the file's inode.
		if err := syncFile(blessed); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(folder)
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
