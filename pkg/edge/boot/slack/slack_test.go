//go:build linux

package slack

import (
	"errors"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSet runs a program from a process with slack, with Usual and without.
func TestSet(t *testing.T) {
	read := func() (out string) {
		text, err := exec.Command("cat", "/proc/self/timerslack_ns").CombinedOutput()
		if err != nil {
			t.Skipf("needs /proc/self/timerslack_ns: %s", text)
		}
		return strings.TrimSpace(string(text))
	}
	runtime.LockOSThread() // programs are started by the thread that was there when slack was set
	defer runtime.UnlockOSThread()
	before := read()
	if err := Set(Boot); errors.Is(err, unix.EPERM) {
		t.Skipf("needs CAP_SYS_NICE: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		d, err := time.ParseDuration(before + "ns")
		if err != nil {
			t.Fatal(err)
		}
		if err := Set(d); err != nil {
			t.Error(err)
		}
	}()
	if got, want := read(), "4000000"; got != want {
		t.Errorf("a program has %s, not %s", got, want)
	}
	_ = Usual(func() error {
		if got, want := read(), "50000"; got != want {
			t.Errorf("a program of Usual has %s, not %s", got, want)
		}
		return nil
	})
}
