package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	evKey    = 1   // linux/input-event-codes.h: EV_KEY
	keyPower = 116 // KEY_POWER
)

// buttons listens to the power button: the input devices that have such a key.
func (b *booter) buttons(ctx context.Context) error {
	if b.modules != nil {
		for _, name := range []string{"button", "evdev"} {
			if err := b.modules.Load(name); err != nil {
				b.say("%v", err) // a board without ACPI has no such button
			}
		}
	}
	list, err := filepath.Glob("/dev/input/event*")
	if err != nil {
		return err
	}
	for _, path := range list {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		var keys [96]byte // a bit for each key code; EVIOCGBIT(EV_KEY, 96)
		cmd := uintptr(2)<<30 | uintptr(len(keys))<<16 | 'E'<<8 | 0x20 + evKey
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), cmd, uintptr(unsafe.Pointer(&keys[0]))); errno != 0 || keys[keyPower/8]>>(keyPower%8)&1 == 0 {
			f.Close()
			continue
		}
		go func() {
			defer f.Close()
			for waitPower(f) == nil {
				if b.cfg.Button == nil || !b.cfg.Button() {
					b.ask(request{Do: doPowerOff, Reason: "the power button"})
				}
			}
		}()
	}
	return nil
}

// waitPower reads events (struct input_event, 24 bytes on 64-bit machines) until the power
// key goes down.
func waitPower(r io.Reader) error {
	var e [24]byte
	for {
		if _, err := io.ReadFull(r, e[:]); err != nil {
			return err
		}
		ne := binary.NativeEndian
		if ne.Uint16(e[16:]) == evKey && ne.Uint16(e[18:]) == keyPower && ne.Uint32(e[20:]) == 1 {
			return nil
		}
	}
}

// network brings the addresses; it goes on beside everything else, since a box whose uplink
// is down runs its apps all the same.
func (b *booter) network(ctx context.Context) error {
	if b.cfg.Network == nil {
		return errors.New("this program brings no network")
	}
	go b.forever(ctx, "network", func(ctx context.Context) error { return b.cfg.Network(ctx, b.facts.Settings.Network, b.say) })
	return nil
}
