package kmod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// eventMax is more than an event can be: the kernel keeps each in 2 KiB, and its path before that.
const eventMax = 16 << 10

// eventsMax is what the kernel keeps for us while we load: at a bus's first look it tells of
// hundreds of things at once.
const eventsMax = 1 << 20

// News are the kernel's words on devices (uevents).
type News struct{ f *os.File }

// Listen hears of devices from now on.
func Listen() (*News, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("events of devices: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventsMax) // with less, some are lost, and all devices are looked at again
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(fmt.Errorf("events of devices: %w", err), unix.Close(fd))
	}
	return &News{os.NewFile(uintptr(fd), "uevents")}, nil
}

// Close ends it, and whoever waits in next.
func (n *News) Close() error { return n.f.Close() }

// next waits for devices that were added, and returns what they say they are. lost tells that
// there were more than could be kept.
func (n *News) next() (aliases []string, lost bool, err error) {
	raw, err := n.f.SyscallConn()
	if err != nil {
		return nil, false, err
	}
	buf := make([]byte, eventMax)
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for {
			size, from, err := unix.Recvfrom(int(fd), buf, 0)
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return len(aliases) > 0 || lost // all that came together is handled together
			case errors.Is(err, unix.ENOBUFS):
				lost = true
			case err != nil:
				failed = err
				return true
			default:
				if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 { // check: the kernel said it
					continue
				}
				if alias := added(buf[:size]); alias != "" {
					aliases = append(aliases, alias)
				}
			}
		}
	})
	return aliases, lost, errors.Join(err, failed)
}

// added is what a device says it is, when an event tells that it was added; "" otherwise. An
// event is "add@/devices/…" and KEY=value words, each ended by a zero byte (the kernel's
// lib/kobject_uevent.c).
func added(event []byte) (alias string) {
	head, rest, ok := bytes.Cut(event, []byte{0})
	if !ok || !bytes.HasPrefix(head, []byte("add@")) {
		return ""
	}
	for len(rest) > 0 {
		var word []byte
		word, rest, _ = bytes.Cut(rest, []byte{0})
		if value, ok := bytes.CutPrefix(word, []byte("MODALIAS=")); ok {
			return string(value)
		}
	}
	return ""
}

// HotPlug gives devices their drivers as they come, until ctx ends; say hears of what it
// loaded and what failed. Listen before the devices that are there are looked at: none falls
// between.
func (t *Tree) HotPlug(ctx context.Context, news *News, sys string, deny func(name string) bool, say func(loaded int, err error)) error {
	defer context.AfterFunc(ctx, func() { _ = news.Close() })()
	for {
		aliases, lost, err := news.next()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if lost {
			aliases = modaliases(sys)
		}
		if loaded, err := t.plug(aliases, deny); loaded > 0 || err != nil {
			say(loaded, err)
		}
	}
}

// plug loads what fits devices.
func (t *Tree) plug(devices []string, deny func(name string) bool) (loaded int, err error) {
	aliases, err := os.Open(filepath.Join(t.dir, "modules.alias"))
	if err != nil {
		return 0, err
	}
	defer aliases.Close()
	wanted, err := match(aliases, devices)
	errs := []error{err}
	for _, name := range wanted {
		if t.has(name) || deny != nil && deny(name) {
			continue
		}
		if err := t.Load(name); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
			continue
		}
		loaded++
	}
	return loaded, errors.Join(errs...)
}
