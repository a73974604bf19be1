package state

import (
	"bytes"
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
	if err := s.Put("a", "b", []byte("c")); err != nil { // may make the file longer
		t.Fatal(err)
	}
	s.allocate()
	meter := s.Mirror("meter") // nothing is saved before the disk is full
	s.allocate()
	if err := os.Remove(s.cfg.Path + ".reserve"); err != nil { // others were quicker
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	fill, err := os.Create(filler)
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	fill.Close()
	s.lookAtRoom()
	for i := range 200 { // the same content again and again
		if err := s.Put("a", "b", []byte{byte(i)}); err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
		if err := meter.Save(bytes.Repeat([]byte{byte(i)}, i)); err != nil {
			t.Fatalf("mirror %d: %v", i, err)
		}
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

// bbolt extends its file ahead of need, without blocks; allocate gives it some.
func TestFileIsAllocated(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	holes := func() bool {
		var st syscall.Stat_t
		if err := syscall.Stat(s.cfg.Path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks*512 < st.Size
	}
	for i := 0; !holes(); i++ {
		if i == 100 {
			t.Skip("needs a file system with sparse files")
		}
		if err := s.Put("a", string(rune('a'+i)), make([]byte, 9000)); err != nil {
			t.Fatal(err)
		}
	}
	if s.allocate(); holes() {
		t.Error("the file has holes still")
	}
	if err := CheckFile(s.cfg.Path); err != nil {
		t.Error(err)
	}
}
