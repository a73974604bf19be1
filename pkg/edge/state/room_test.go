package state

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func TestTightHasABand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Uint64Range(1<<20, 1<<44).Draw(t, "total")
		free := rapid.Uint64Range(0, total).Draw(t, "free")
		fresh, still := tight(free, total, false), tight(free, total, true)
		if fresh && !still {
			t.Fatalf("%d of %d bytes are too few, and then enough", free, total)
		}
		if free >= 96<<20 && still {
			t.Fatalf("%d bytes free are never too few", free)
		}
		if free < 1<<20 && !fresh {
			t.Fatalf("%d bytes free of %d are too few", free, total)
		}
	})
}

// A disk that somebody else filled is named although the store's own file, allocated
// long ago, takes every write.
func TestDiskFilledByOthersIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("needs root, to mount a small file system: %v", err)
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	s := open(t, dir)
	defer s.Close()
	s.lookAtRoom()
	if w := s.Warnings(); len(w) != 0 {
		t.Fatalf("an empty disk: %v", w)
	}
	filler := filepath.Join(dir, "filler")
	fill, err := os.Create(filler)
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	fill.Close()
	s.lookAtRoom()
	if err := s.Put("a", "b", []byte("c")); err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) != 1 || w[0].Name != "disk-full" {
		t.Fatalf("a full disk: %v", w)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.lookAtRoom()
	if w := s.Warnings(); len(w) != 0 {
		t.Fatalf("with room again: %v", w)
	}
}
