package rise

import (
	"os"
	"time"

	"tributary.dev/tributary/pkg/edge/boot/watchdog"
)

// dog is the watchdog as the way up feeds it: at each step, so that a step that hangs is
// ended by it.
type dog struct {
	timeout time.Duration
	dev     *watchdog.Device
}

func (d *dog) open() bool {
	if d.dev != nil {
		return true
	}
	if _, err := os.Stat(watchdog.Path); err != nil {
		return false
	}
	dev, err := watchdog.Open(watchdog.Path, d.timeout)
	if err != nil {
		say("watchdog: %v", err)
		return false
	}
	say("watchdog %s resets after %v", dev.Name, dev.Timeout)
	d.dev = dev
	return true
}

func (d *dog) pet() {
	if d.dev != nil {
		_ = d.dev.Pet() // the next one tells, or the reset does
	}
}
