//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is a driver in a container, as programs with DPDK have: of a virtual function of
// an igb (Intel 82576 Datasheet, chapters 7.1, 7.2 and 8.26), by vfio (linux/vfio.h), with its
// queues and packets in a huge page. It sends frames, and receives what comes back.

// etherType is for experiments (IEEE 802).
const etherType = 0x88b5

// Requests and numbers of linux/vfio.h.
const (
	vfioSetIOMMU     = 0x3b66
	vfioGroupStatus  = 0x3b67
	vfioSetContainer = 0x3b68
	vfioDeviceFD     = 0x3b6a
	vfioRegion       = 0x3b6c
	vfioMapDMA       = 0x3b71
	vfioType1v2      = 3
	vfioConfig       = 7 // the region of configuration
)

func ioctl(fd int, request, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

type vfioRegionInfo struct {
	argsz, flags, index, caps uint32
	size, offset              uint64
}

type vfioMap struct {
	argsz, flags       uint32
	vaddr, iova, bytes uint64
}

// nic is a virtual function.
type nic struct {
	bar  []byte // its registers
	page []byte // memory that it reads and writes, at iova 0
	mac  net.HardwareAddr
}

// driver sends and receives until it is ended, and writes of each frame to /said.
func driver([]string) error {
	say := func(text string) error { return os.WriteFile("/said", []byte(text), 0o644) }
	n, err := open(os.Getenv("PCIDEVICE_FAST"))
	if err == nil {
		err = n.reset()
	}
	if err != nil {
		return errors.Join(say(err.Error()), err)
	}
	n.queues()
	for i := 0; ; i++ {
		if err := n.send(i); err != nil {
			return errors.Join(say(err.Error()), err)
		}
		said := fmt.Sprintf("%s sent %d frames, and got none of late", n.mac, i+1)
		if got := n.receive(); got != nil {
			said = fmt.Sprintf("well: %s sent %d frames, and got %d bytes from %s", n.mac, i+1, len(got), net.HardwareAddr(got[6:12]))
		}
		if err := say(said); err != nil {
			return err
		}
	}
}

// open takes a function by its group, lets it reach a huge page, and maps its registers.
func open(pci string) (*nic, error) {
	groups, err := filepath.Glob("/dev/vfio/[0-9]*")
	if err != nil || len(groups) != 1 {
		return nil, fmt.Errorf("groups %q, %w", groups, err)
	}
	group, err := unix.Open(groups[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", groups[0], err)
	}
	status := [2]uint32{8, 0}
	if _, err := ioctl(group, vfioGroupStatus, uintptr(unsafe.Pointer(&status))); err != nil || status[1]&1 == 0 {
		return nil, fmt.Errorf("the group is not viable: %v, %w", status, err)
	}
	container, err := unix.Open("/dev/vfio/vfio", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fd := int32(container)
	if _, err := ioctl(group, vfioSetContainer, uintptr(unsafe.Pointer(&fd))); err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	if _, err := ioctl(container, vfioSetIOMMU, vfioType1v2); err != nil {
		return nil, fmt.Errorf("IOMMU: %w", err)
	}
	n := &nic{}
	if n.page, err = hugePage(); err != nil {
		return nil, fmt.Errorf("huge page: %w", err)
	}
	dma := vfioMap{argsz: 32, flags: 3, vaddr: uint64(uintptr(unsafe.Pointer(&n.page[0]))), bytes: uint64(len(n.page))}
	if _, err := ioctl(container, vfioMapDMA, uintptr(unsafe.Pointer(&dma))); err != nil {
		return nil, fmt.Errorf("memory for the device: %w", err)
	}
	name := append([]byte(pci), 0)
	device, err := ioctl(group, vfioDeviceFD, uintptr(unsafe.Pointer(&name[0])))
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", pci, err)
	}
	return n, n.start(device)
}

func hugePage() ([]byte, error) {
	f, err := os.Create("/dev/hugepages/dma")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const size = 2 << 20
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}

// start maps the registers, and lets the function be master of the bus.
func (n *nic) start(device int) error {
	config := vfioRegionInfo{argsz: 32, index: vfioConfig}
	if _, err := ioctl(device, vfioRegion, uintptr(unsafe.Pointer(&config))); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	b := make([]byte, 8)
	if _, err := unix.Pread(device, b, int64(config.offset)); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != 0x10ca8086 {
		return fmt.Errorf("it is no 82576's function: %x", b)
	}
	command := binary.LittleEndian.AppendUint16(nil, binary.LittleEndian.Uint16(b[4:])|6) // memory, master
	if _, err := unix.Pwrite(device, command, int64(config.offset)+4); err != nil {
		return err
	}
	bar := vfioRegionInfo{argsz: 32}
	if _, err := ioctl(device, vfioRegion, uintptr(unsafe.Pointer(&bar))); err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	var err error
	n.bar, err = unix.Mmap(device, int64(bar.offset), int(bar.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

func (n *nic) register(at int) *uint32 { return (*uint32)(unsafe.Pointer(&n.bar[at])) }

// Registers of a virtual function.
const (
	vfControl = 0x0000
	mailbox   = 0x0c40
	words     = 0x0800
	rx        = 0x2800 // its address, length, head, tail and control follow
	tx        = 0x3800
)

// reset has the card's own driver, which alone may, set the function up, and tell its address.
func (n *nic) reset() error {
	*n.register(vfControl) |= 1 << 26
	pause(100 * time.Millisecond)
	wait := func(bit uint32) bool {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); pause(time.Millisecond) {
			if *n.register(mailbox)&bit != 0 {
				return true
			}
		}
		return false
	}
	var answer [3]uint32
	for end := time.Now().Add(time.Minute); answer[0] != 0x80000001; { // the card's driver also says that its link changed
		if time.Now().After(end) {
			return fmt.Errorf("the card's driver answers %x", answer)
		}
		_ = *n.register(mailbox) // to read it is to forget what came before, such as an answer to who was killed
		*n.register(mailbox) = 4 // ours
		*n.register(words) = 1   // reset
		*n.register(mailbox) = 1 // there is a message
		if !wait(0x10) {
			continue
		}
		answer = [3]uint32{*n.register(words), *n.register(words + 4), *n.register(words + 8)}
		*n.register(mailbox) = 2 // it was read
	}
	n.mac = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint32(nil, answer[1]), uint16(answer[2]))
	return nil
}

// The page: descriptors of both queues, packets that come, 2 KiB each, and one that goes.
const (
	rxRing, txRing, txPacket, rxPackets = 0x0000, 0x1000, 0x2000, 0x4000
	ring                                = 8 // descriptors of 16 bytes
)

func rxPacket(i int) uint64 { return rxPackets + uint64(i)*2048 }

func (n *nic) queues() {
	for i := range ring {
		binary.LittleEndian.PutUint64(n.page[rxRing+16*i:], rxPacket(i))
	}
	for at, where := range map[int]uint32{rx: rxRing, tx: txRing} {
		*n.register(at), *n.register(at + 4), *n.register(at + 8) = where, 0, 16*ring
	}
	*n.register(rx + 0x0c) = 2 | 1<<25 // packets of 2 KiB at most, advanced descriptors of one buffer
	*n.register(rx + 0x28), *n.register(tx + 0x28) = 1<<25, 1<<25
	*n.register(rx + 0x18) = ring - 1
}

// send sends a frame to everybody, and waits until the card has read it.
func (n *nic) send(i int) error {
	frame := n.page[txPacket : txPacket+60]
	copy(frame, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(frame[6:], n.mac)
	binary.BigEndian.PutUint16(frame[12:], etherType)
	copy(frame[14:], "a frame of the container's "+strconv.Itoa(i))
	d := n.page[txRing+16*(i%ring):]
	binary.LittleEndian.PutUint64(d, txPacket)
	binary.LittleEndian.PutUint32(d[12:], uint32(len(frame))<<14)
	binary.LittleEndian.PutUint32(d[8:], uint32(len(frame))|0x2b300000) // data, advanced, whole, with a checksum, tell when done
	*n.register(tx + 0x18) = uint32((i + 1) % ring)
	done := (*uint32)(unsafe.Pointer(&d[12]))
	for end := time.Now().Add(time.Minute); time.Now().Before(end); pause(time.Millisecond) {
		if *done&1 != 0 {
			return nil
		}
	}
	return errors.New("the card does not send")
}

// receive waits a while for a frame that another sends: the emulated card gives a function its own to everybody too.
func (n *nic) receive() []byte {
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); pause(10 * time.Millisecond) {
		for i := range ring {
			d := n.page[rxRing+16*i:]
			if *(*uint32)(unsafe.Pointer(&d[8]))&1 == 0 {
				continue
			}
			got := bytes.Clone(n.page[rxPacket(i) : rxPacket(i)+uint64(binary.LittleEndian.Uint16(d[12:]))])
			binary.LittleEndian.PutUint64(d[8:], 0)
			binary.LittleEndian.PutUint64(d, rxPacket(i))
			*n.register(rx + 0x18) = uint32(i)
			if len(got) >= 14 && binary.BigEndian.Uint16(got[12:]) == etherType && !bytes.Equal(got[6:12], n.mac) {
				return got
			}
		}
	}
	return nil
}

// echoFrames answers on the card's own interface what comes with our type, until the guest ends.
func echoFrames(name string) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(etherType>>8|etherType&0xff<<8))
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: etherType>>8 | etherType&0xff<<8, Ifindex: link.Index}); err != nil {
		return err
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return
			}
			if sll, ok := from.(*unix.SockaddrLinklayer); !ok || sll.Pkttype == unix.PACKET_OUTGOING || n < 14 {
				continue
			}
			copy(b, b[6:12])
			copy(b[6:], link.HardwareAddr)
			_, _ = unix.Write(fd, b[:n]) // the next one may go
		}
	}()
	return nil
}
