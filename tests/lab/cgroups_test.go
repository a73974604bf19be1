package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCgroupsOfABoxGo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make cgroups")
	}
	name := func(what string) string { return fmt.Sprintf("lab-test-%s-%d", what, time.Now().UnixNano()) }
	own, other := name("own"), name("other")
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup" && f[2] != "cgroup2" {
			continue
		}
		for _, id := range []string{own, other} {
			if err := os.MkdirAll(filepath.Join(f[1], "tributary", id, "inner"), 0o755); err != nil {
				t.Logf("no cgroup at %s: %v", f[1], err)
			}
		}
	}
	if len(cgroupsOf(own)) == 0 {
		t.Skip("needs a cgroup file system that can be written to")
	}
	run := t.TempDir()
	if err := os.MkdirAll(filepath.Join(run, "runc", "tributary", own), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeCgroups(run); err != nil {
		t.Error(err)
	}
	if left := cgroupsOf(own); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if len(cgroupsOf(other)) == 0 {
		t.Error("another lab's cgroups were removed")
	}
	for _, dir := range cgroupsOf(other) {
		if err := removeCgroup(dir); err != nil {
			t.Error(err)
		}
	}
}
