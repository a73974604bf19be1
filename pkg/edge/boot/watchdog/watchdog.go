// Package watchdog answers: who starts the box anew when it hangs? The hardware's timer
// (linux/watchdog.h), fed by the first process for as long as feeding is deserved.
package watchdog

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Path is the first watchdog of the machine.
const Path = "/dev/watchdog0"

// Device is an open watchdog. It runs from the moment it is opened.
type Device struct {
	Name    string        // of the driver
	Timeout time.Duration // as the driver took it, which may differ from what was asked
	f       *os.File
}

// Open starts the watchdog, or takes a running one over, and asks for a timeout. A driver
// with a fixed timeout keeps its own. Only one process can have it open.
func Open(path string, timeout time.Duration) (*Device, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	d := &Device{f: f, Timeout: timeout}
	seconds := int32(timeout / time.Second)
	if d.ioctl(unix.WDIOC_SETTIMEOUT, unsafe.Pointer(&seconds)) != nil {
		if err := d.ioctl(unix.WDIOC_GETTIMEOUT, unsafe.Pointer(&seconds)); err != nil {
			seconds = 30 // a driver that tells nothing: fed often enough for all known ones
		}
	}
	d.Timeout = time.Duration(seconds) * time.Second
	var info struct { // struct watchdog_info
		options, firmware uint32
		identity          [32]byte
	}
	if d.ioctl(unix.WDIOC_GETSUPPORT, unsafe.Pointer(&info)) == nil {
		d.Name = unix.ByteSliceToString(info.identity[:])
	}
	return d, d.Pet()
}

func (d *Device) ioctl(cmd uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), cmd, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Pet feeds it once.
func (d *Device) Pet() error {
	if _, err := d.f.Write([]byte{0}); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}

// Every is how often to feed: four times in the timeout.
func (d *Device) Every() time.Duration { return max(d.Timeout/4, time.Second) }

// Hold says for how long feeding goes on while the agent is not healthy. Resets by the
// watchdog restart all apps, so they come farther and farther apart when they do not help:
// after n resets for this reason in a row, 10 minutes × 4ⁿ, at most a day.
func Hold(n int) time.Duration {
	d := 10 * time.Minute
	for range min(max(n, 0), 8) {
		d *= 4
	}
	return min(d, 24*time.Hour)
}

// Deserved decides whether to feed an agent that has been ill for so long, by a clock that
// nobody sets: no longer than Hold.
func Deserved(ill time.Duration, resets int) bool { return ill < Hold(resets) }
