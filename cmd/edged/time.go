package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/boot"
)

// keepTime lets the core's word set the machine's clock on the appliance, where nobody else does: apps read it, and
// process 1 keeps it for the next start.
func (b *box) keepTime() {
	b.openPTP()
	b.clock.Held = b.realtime.holdsClock
	if _, err := os.Stat(filepath.Join(boot.Dir, "slot")); err != nil {
		return
	}
	b.clock.Set = func(to time.Time) error {
		b.log.Warn("the machine's clock is wrong, and is set", "said", time.Now().UTC(), "is", to.UTC())
		tv := unix.NsecToTimeval(to.UnixNano())
		if err := unix.Settimeofday(&tv); err != nil {
			return err
		}
		return setBattery(to.UTC())
	}
}

// setBattery sets the clock that goes on without power, if there is one.
func setBattery(t time.Time) error {
	f, err := os.OpenFile("/dev/rtc0", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetRTCTime(int(f.Fd()), &unix.RTCTime{Sec: int32(t.Second()), Min: int32(t.Minute()), Hour: int32(t.Hour()),
		Mday: int32(t.Day()), Mon: int32(t.Month()) - 1, Year: int32(t.Year()) - 1900})
}
