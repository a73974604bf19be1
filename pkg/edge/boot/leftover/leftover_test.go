//go:build linux

package leftover

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What was left is there after its name has gone, and no child gets it.
func TestLeaveAndTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	env, err := Leave(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	name, value, _ := strings.Cut(env, "=")
	t.Setenv(name, value)
	f := Take()
	if f == nil {
		t.Fatalf("nothing was left by %q", env)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); err != nil || string(text) != "program" {
		t.Errorf("%q, %v", text, err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("a child inherits it: flags %#x, %v", flags, err)
	}
	if os.Getenv(name) != "" || Take() != nil {
		t.Error("it is taken twice")
	}
}

func TestNothingLeft(t *testing.T) {
	if _, err := Leave(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there was left")
	}
	for _, value := range []string{"", "2", "-1", "x"} {
		t.Setenv(handed, value)
		if f := Take(); f != nil {
			t.Errorf("%q gave %v", value, f.Name())
		}
	}
}
