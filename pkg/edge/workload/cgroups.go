package workload

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// removeCgroups removes what is left of a container's cgroups, in every hierarchy: the
// runtime does so as a rule, but cannot after a crash that took its own record of the
// container. Each that stays holds memory of the kernel.
func removeCgroups(id string) error {
	mounts, err := readBounded("/proc/self/mounts", 1<<20)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			err = errors.Join(err, removeCgroup(filepath.Join(f[1], cgroupPath(id))))
		}
	}
	return err
}

// removeCgroup removes a cgroup and those in it, innermost first. Their files cannot be
// removed and need not be (cgroups(7)).
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	if rerr := unix.Rmdir(dir); rerr != nil && rerr != unix.ENOENT {
		err = errors.Join(err, &fs.PathError{Op: "rmdir", Path: dir, Err: rerr})
	}
	return err
}
