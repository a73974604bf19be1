// Package atomicfile answers: how is a small file replaced so that a power cut
// leaves either the old content or the new, never a mixture and never nothing?
//
// The steps are: temporary file in the same folder, write, fsync, rename over the
// name, fsync of the folder. Without the last step the rename itself may be lost
// (ext4 and xfs journal it later).
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write replaces path by data with the given permissions. When it returns nil the
// content is on disk under its name. On error the old content stands. It may be
// repeated, and called from any goroutine; of concurrent writers one wins whole.
func Write(path string, data []byte, perm os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close() // written and synced already, or failed already
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes renames, creations and removals in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
