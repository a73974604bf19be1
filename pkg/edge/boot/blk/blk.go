// Package blk answers: on which disk does this box's system lie? The one whose partition
// table holds the root that the signed command line names; it is waited for, since buses
// take their time.
package blk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/gpt"
)

// ErrNone: no disk that is here now holds the root.
var ErrNone = errors.New("no disk holds a root partition with the UUID of roothash=")

// Disk is a whole disk with its partition table as it was read.
type Disk struct {
	Name  string // of the kernel: vda, nvme0n1, mmcblk0
	Size  int64
	Table *gpt.Table
	Copy  gpt.Copy // which of the two tables was whole
	Root  int      // number of the root partition
	Tree  int      // number of its dm-verity tree
}

// Slot is "a" or "b", by the label of the root.
func (d *Disk) Slot() string { return SlotOf(d.Table.Partitions[d.Root-1].Name) }

// SlotOf reads the slot from the label of a root: root-a, root-b.
func SlotOf(label string) string {
	if s, ok := strings.CutPrefix(label, "root-"); ok && (s == "a" || s == "b") {
		return s
	}
	return ""
}

// Node is the whole disk's device.
func (d *Disk) Node() string { return "/dev/" + d.Name }

// Part is the device of a partition. The kernel puts a "p" between when the disk's own name
// ends in a digit.
func (d *Disk) Part(number int) string { return "/dev/" + PartName(d.Name, number) }

// PartName names a partition as the kernel does.
func PartName(disk string, number int) string {
	if n := len(disk); n > 0 && disk[n-1] >= '0' && disk[n-1] <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// ByLabel is the device of the partition with that label, and its number.
func (d *Disk) ByLabel(label string) (node string, number int, err error) {
	n, _ := d.Table.Find(label)
	if n == 0 {
		return "", 0, fmt.Errorf("disk %s has no partition %q", d.Name, label)
	}
	return d.Part(n), n, nil
}

// Read reads the table of a disk and looks for the two partitions of a root hash. The disk
// is returned with Root 0 when it has a table without them.
func Read(name string, roothash [32]byte) (*Disk, error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	d := &Disk{Name: name, Size: size}
	if d.Table, d.Copy, err = gpt.Read(f, size); err != nil {
		return nil, err
	}
	root, tree := gpt.RootIDs(roothash)
	d.Root, _ = d.Table.ByID(root)
	d.Tree, _ = d.Table.ByID(tree)
	return d, nil
}

// Disks lists the whole disks that are here, those that cannot be taken out first. Loop
// devices, RAM disks, optical drives and what device-mapper makes are not among them.
func Disks(sys string) (fixed []string) {
	var loose []string
	list, _ := os.ReadDir(filepath.Join(sys, "block")) // none yet
	for _, e := range list {
		name := e.Name()
		dir := filepath.Join(sys, "block", name)
		if strings.HasPrefix(name, "loop") || strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram") || strings.HasPrefix(name, "dm-") || strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "md") || strings.HasPrefix(name, "nbd") {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, "removable")); err == nil && strings.TrimSpace(string(b)) == "1" {
			loose = append(loose, name)
		} else {
			fixed = append(fixed, name)
		}
	}
	return append(fixed, loose...)
}

// Find looks once.
func Find(roothash [32]byte) (*Disk, error) {
	for _, name := range Disks("/sys") {
		if d, err := Read(name, roothash); err == nil && d.Root != 0 && d.Tree != 0 {
			if _, err := os.Stat(d.Part(d.Tree)); err == nil {
				return d, nil
			}
		}
	}
	return nil, ErrNone
}

// Wait looks again each time the kernel tells of a device, until one fits or the time is
// over. each is called before every look.
func Wait(roothash [32]byte, most time.Duration, each func()) (*Disk, error) {
	deadline := time.Now().Add(most)
	// linux/netlink.h: NETLINK_KOBJECT_UEVENT, group 1 is the kernel itself.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, err
	}
	for {
		if each != nil {
			each()
		}
		d, err := Find(roothash)
		if err == nil {
			return d, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, err
		}
		// A second at most: an event may be lost when very many come.
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(min(left, time.Second)/time.Millisecond)+1); err != nil && err != unix.EINTR {
			return nil, err
		}
		drain(fd)
	}
}

func drain(fd int) {
	var b [8192]byte
	for {
		if _, _, err := unix.Recvfrom(fd, b[:], 0); err != nil {
			return
		}
	}
}
