package blk

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		disk, want string
		n          int
	}{{"vda", "vda3", 3}, {"nvme0n1", "nvme0n1p12", 12}, {"mmcblk0", "mmcblk0p1", 1}, {"sdaa", "sdaa9", 9}} {
		if got := PartName(c.disk, c.n); got != c.want {
			t.Errorf("%s %d: %s", c.disk, c.n, got)
		}
	}
	for label, want := range map[string]string{"root-a": "a", "root-b": "b", "root-c": "", "data": "", "": ""} {
		if got := SlotOf(label); got != want {
			t.Errorf("%q: %q", label, got)
		}
	}
}

// What cannot be taken out comes first, and what is no disk of the machine not at all.
func TestDisks(t *testing.T) {
	sys := t.TempDir()
	for name, removable := range map[string]string{"sda": "1", "vda": "0", "loop0": "0", "dm-0": "0", "sr0": "1", "nvme0n1": "0"} {
		dir := filepath.Join(sys, "block", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "removable"), []byte(removable+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := Disks(sys); !slices.Equal(got, []string{"nvme0n1", "vda", "sda"}) {
		t.Error(got)
	}
	if got := Disks(filepath.Join(sys, "none")); len(got) != 0 {
		t.Error(got)
	}
}
