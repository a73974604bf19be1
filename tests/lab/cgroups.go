package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// removeCgroups removes the cgroups of a box's containers, known by what its edged and
// its runc keep of them in run. A real power cut takes them too; here they are the whole
// machine's, in which other labs may stand. The containers' processes were killed, but
// may be dying still.
func removeCgroups(run string) error {
	ids := map[string]bool{}
	for _, pattern := range []string{"runc/*/*", "apps/*/*"} {
		paths, _ := filepath.Glob(filepath.Join(run, pattern))
		for _, p := range paths {
			ids[filepath.Base(p)] = true
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		var last error
		for id := range ids {
			for _, dir := range cgroupsOf(id) {
				last = errors.Join(last, removeCgroup(dir))
			}
		}
		if last == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroups stay behind: %w", last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// cgroupsOf lists a container's cgroups in all hierarchies, of cgroup v1 and v2.
func cgroupsOf(id string) (out []string) {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup" && f[2] != "cgroup2" {
			continue
		}
		dir := filepath.Join(f[1], "tributary", id)
		if _, err := os.Stat(dir); err == nil {
			out = append(out, dir)
		}
	}
	return out
}

// removeCgroup removes a cgroup after those in it; its files go with it.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	if rerr := syscall.Rmdir(dir); rerr != nil && rerr != syscall.ENOENT {
		err = errors.Join(err, fmt.Errorf("%s: %w", dir, rerr))
	}
	return err
}
