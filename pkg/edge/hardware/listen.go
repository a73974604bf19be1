package hardware

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// eventMax is more than one message of the kernel can be here: a uevent has 2 KiB, and its
// path before that; of an interface with many virtual functions the rest is not needed.
const eventMax = 32 << 10

// Hear listens to what the kernel says of devices and links, and calls back when something
// may have changed, until ctx ends. It is for Keeper.
func Hear(ctx context.Context, poke func()) error {
	devices, err := listen(unix.NETLINK_KOBJECT_UEVENT, 1)
	if err != nil {
		return err
	}
	links, err := listen(unix.NETLINK_ROUTE, unix.RTMGRP_LINK)
	if err != nil {
		return errors.Join(err, devices.Close())
	}
	stop := context.AfterFunc(ctx, func() { _, _ = devices.Close(), links.Close() })
	defer stop()
	failed := make(chan error, 2)
	seen := linkFilter{}
	go func() { failed <- receive(devices, func(b []byte) bool { return tellsOfHardware(b) }, poke) }()
	go func() { failed <- receive(links, seen.news, poke) }()
	err = <-failed
	_, _ = devices.Close(), links.Close()
	err = errors.Join(err, <-failed)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func listen(family int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return nil, fmt.Errorf("events of hardware: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(fmt.Errorf("events of hardware: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// receive reads messages until the socket is closed. When some were lost, anything may have
// changed.
func receive(f *os.File, news func([]byte) bool, poke func()) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, eventMax)
	for {
		var failed error
		told := false
		err := raw.Read(func(fd uintptr) bool {
			for {
				size, from, err := unix.Recvfrom(int(fd), buf, 0)
				switch {
				case errors.Is(err, unix.EINTR):
				case errors.Is(err, unix.EAGAIN):
					return told // what came together is told together
				case errors.Is(err, unix.ENOBUFS):
					told = true
				case err != nil:
					failed = err
					return true
				default:
					sender, ok := from.(*unix.SockaddrNetlink)
					if ok && sender.Pid == 0 && news(buf[:size]) { // check: the kernel said it
						told = true
					}
				}
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if told {
			poke()
		}
	}
}

// parts are the kernel's subsystems of which an inventory tells.
var parts = map[string]bool{"pci": true, "net": true, "block": true, "nvme": true, "hwmon": true, "drm": true, "ptp": true, "watchdog": true, "tpm": true,
	"cpu": true, "memory": true, "mmc": true, "scsi": true, "accel": true}

// tellsOfHardware reads a uevent: "add@/devices/…" and KEY=value words, each ended by a zero
// byte (the kernel's lib/kobject_uevent.c). Containers' interfaces and loop devices come and
// go without end; they are virtual.
func tellsOfHardware(event []byte) bool {
	head, rest, ok := bytes.Cut(event, []byte{0})
	if !ok {
		return false
	}
	_, path, ok := strings.Cut(string(head), "@")
	if !ok || strings.HasPrefix(path, "/devices/virtual/") && !strings.HasPrefix(path, "/devices/virtual/nvme-subsystem/") && !strings.HasPrefix(path, "/devices/virtual/watchdog/") {
		return false
	}
	for len(rest) > 0 {
		var word []byte
		word, rest, _ = bytes.Cut(rest, []byte{0})
		if value, ok := bytes.CutPrefix(word, []byte("SUBSYSTEM=")); ok {
			return parts[string(value)]
		}
	}
	return false
}

// linkFilter keeps what was last told of each interface of hardware: the kernel repeats
// itself, and tells of containers' interfaces too.
type linkFilter map[int32]linkState

type linkState struct {
	flags uint32
	oper  byte
	mtu   string
}

// maxFiltered bounds what is kept; beyond, every word counts as news.
const maxFiltered = 4096

// news reads messages of RTMGRP_LINK (rtnetlink(7)).
func (f linkFilter) news(b []byte) (news bool) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return true
		}
		index := int32(nativeUint32(m.Data[4:]))
		now := linkState{flags: nativeUint32(m.Data[8:])}
		virtual := false
		for _, a := range attributes {
			switch a.Attr.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER) {
			case unix.IFLA_LINKINFO:
				virtual = true
			case unix.IFLA_OPERSTATE:
				if len(a.Value) > 0 {
					now.oper = a.Value[0]
				}
			case unix.IFLA_MTU:
				now.mtu = string(a.Value)
			}
		}
		switch before, known := f[index]; {
		case virtual:
		case m.Header.Type == unix.RTM_DELLINK:
			delete(f, index)
			news = true
		case !known || before != now:
			news = true
			if len(f) < maxFiltered {
				f[index] = now
			}
		}
	}
	return news
}

func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
