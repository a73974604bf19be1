package install

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/flash"
	"tributary.dev/tributary/pkg/disk/gpt"
)

// key waits for a key and keeps the watchdog fed meanwhile.
func (c Config) key(most time.Duration) (byte, bool) {
	for until := time.Now().Add(most); time.Now().Before(until); {
		c.Pet()
		if k, ok := c.Person.Key(time.Second); ok {
			return k, true
		}
	}
	return 0, false
}

func (c Config) pressed(want byte, most time.Duration) bool {
	for until := time.Now().Add(most); time.Now().Before(until); {
		if k, ok := c.key(time.Until(until)); ok && k == want {
			return true
		}
	}
	return false
}

// device is a whole disk, or a file that stands for one in tests.
type device struct {
	*os.File
	size  int64
	block bool
}

func openDevice(path string) (*device, error) {
	// O_EXCL on a block device: not while something of it is mounted.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	d := &device{File: f}
	info, err := f.Stat()
	if err == nil {
		d.block = info.Mode()&os.ModeDevice != 0
		d.size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// ioctls of linux/fs.h
const (
	blkZeroOut = 0x127f
	blkFlsBuf  = 0x1261
	blkRRPart  = 0x125f
)

// Zero implements flash.Device: the kernel does it by what the disk can, or by writing.
func (d *device) Zero(offset, size int64) error {
	if d.block {
		if err := ioctlRange(d.Fd(), blkZeroOut, uint64(offset), uint64(size)); err == nil {
			return nil
		}
	}
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n := min(size, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:n], offset); err != nil {
			return err
		}
		offset, size = offset+n, size-n
	}
	return nil
}

// Drop implements flash.Device.
func (d *device) Drop() error {
	if !d.block {
		return unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return unix.IoctlSetInt(int(d.Fd()), blkFlsBuf, 0)
}

// reread tells the kernel of the new table. If it does not listen, the box's next start does.
func (d *device) reread() {
	if d.block {
		_ = unix.IoctlSetInt(int(d.Fd()), blkRRPart, 0)
	}
}

// progress draws a bar that a serial line bears: a new one on each tenth only.
type progress struct {
	person Person
	pet    func()
	phase  flash.Phase
	tenth  int64
}

func (p *progress) show(phase flash.Phase, done, total int64) {
	p.pet()
	tenth := int64(10)
	if total > 0 {
		tenth = done * 10 / total
	}
	if phase == p.phase && tenth == p.tenth {
		return
	}
	p.phase, p.tenth = phase, tenth
	p.person.Printf("\r%-10s [%s%s] %3d %%  %d of %d MB ", phase, strings.Repeat("#", int(tenth)*2), strings.Repeat(".", 20-int(tenth)*2), tenth*10, done/1e6, total/1e6)
	if done == total {
		p.person.Printf("\n")
	}
}

// enrol adds our keys to the firmware's where it is in setup mode; elsewhere it says how to get there.
func (c Config) enrol() {
	if c.EFI == nil {
		return
	}
	list, err := filepath.Glob(filepath.Join(c.Payload, "keys", "*"))
	if err != nil || len(list) == 0 {
		return
	}
	slices.Sort(list)
	if !c.flag("SetupMode") {
		if !c.flag("SecureBoot") {
			c.Person.Printf("Secure Boot is off, and the firmware is not in setup mode: to have it start only what is signed, clear its platform key and install again.\n")
		}
		return
	}
	for _, path := range list {
		if err := c.enrolOne(path); err != nil {
			c.Person.Printf("Secure Boot's keys were not enrolled: %v\n", err)
			return
		}
	}
	c.Person.Printf("Secure Boot: this system's keys are enrolled beside those that were there.\n")
}

// enrolOne writes a file NUMBER-NAME-GUID as the variable that it is.
func (c Config) enrolOne(path string) error {
	_, rest, _ := strings.Cut(filepath.Base(path), "-")
	name, guid, ok := strings.Cut(rest, "-")
	if !ok {
		return fmt.Errorf("key file %s has no such name", path)
	}
	vendor, err := gpt.Parse(guid)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) < 4 {
		return fmt.Errorf("key file %s is empty", path)
	}
	attributes := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	return c.EFI.Set(name, vendor, attributes, b[4:])
}
