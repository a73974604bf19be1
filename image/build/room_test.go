package build

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk: who meets a full disk hears what a build takes, and where; also from a program that says it in words.
func TestFullDisk(t *testing.T) {
	c := Config{Out: t.TempDir(), Cache: t.TempDir()}
	for _, full := range []error{
		fmt.Errorf("disk: %w", &os.PathError{Op: "write", Path: "disk.raw", Err: unix.ENOSPC}),
		errors.New("building containerd for amd64: exit status 1\ncopying /tmp/go-build1/b001/exe/a.out: write: no space left on device"),
	} {
		err := withRoom(full, c)
		if err == nil || !errors.Is(err, full) {
			t.Fatalf("%v became %v", full, err)
		}
		for _, want := range []string{c.Out, c.Cache, os.TempDir(), "--out", "TMPDIR", "GB are free"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("nothing of %q in: %v", want, err)
			}
		}
	}
	for _, other := range []error{nil, errors.New("the boot manager: the image is signed already")} {
		if err := withRoom(other, c); err != other {
			t.Errorf("%v became %v", other, err)
		}
	}
}
