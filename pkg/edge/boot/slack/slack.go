//go:build linux

// Package slack answers: how late may a sleep of the first processes end? The Go runtime has
// a thread that sleeps for 20 µs at a time while others are in the kernel, as they are all
// through boot; where a timer's interrupt is dear (an emulated machine, one slow processor),
// that takes a part of the boot's time. With slack, one interrupt serves many sleeps.
package slack

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Boot is what the initramfs and process 1 take; the runtime's own sleeps are no longer
	// than 10 ms either.
	Boot = 4 * time.Millisecond
	// usual is the kernel's own choice (prctl(2), PR_SET_TIMERSLACK).
	usual = 50 * time.Microsecond
)

// Set gives slack to all threads of this process, to those that it will start, and to the
// program that takes its place. It needs /proc and, for the other threads, CAP_SYS_NICE.
func Set(d time.Duration) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range threads {
		err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", fmt.Appendf(nil, "%d", d.Nanoseconds()), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it may have ended
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Usual runs do, which starts a program, such that the program has the kernel's own choice.
func Usual(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mine, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || mine == int(usual) {
		return do()
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0); err != nil {
		return err
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(mine), 0, 0, 0) }() // as it could be set before
	return do()
}
