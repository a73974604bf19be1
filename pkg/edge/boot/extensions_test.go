package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A part of a file as a device, read-only.
func TestLoop(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for loop devices")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	file := filepath.Join(t.TempDir(), "x")
	content := bytes.Repeat([]byte("abcdefgh"), 2048)
	copy(content[4096:], "the second block")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	node, err := loop(f, 4096, 8192)
	if err != nil {
		t.Skipf("needs a kernel that makes loop devices (5.8 and later): %v", err)
	}
	dev, err := os.Open(node)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	defer func() { _ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0) }()
	got := make([]byte, 8193)
	n, _ := dev.ReadAt(got, 0)
	if n != 8192 || !bytes.Equal(got[:n], content[4096:4096+8192]) {
		t.Errorf("%d bytes: %.20q", n, got)
	}
	if w, err := os.OpenFile(node, os.O_WRONLY, 0); err == nil {
		_, err := w.WriteAt(got[:4096], 0)
		if err = errors.Join(err, w.Sync()); err == nil {
			t.Error("it can be written")
		}
		w.Close()
	}
}
