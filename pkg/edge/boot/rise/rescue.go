package rise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/install"
)

const (
	// rescueWait is how long the rescue waits for a first key before the box starts anew:
	// long enough to reach the keyboard, short enough for a box that nobody stands beside.
	// tributary.rescuewait= changes it.
	rescueWait = time.Minute
	// rescueIdle is the same after a key, and rescueMost the longest stay at all.
	rescueIdle = 10 * time.Minute
	rescueMost = 2 * time.Hour
)

// action is what a key of the rescue asks for.
type action int

const (
	nothing action = iota
	showMenu
	showSlots
	verifySlots
	showLog
	restart
	powerOff
	installAnew
)

// choose maps keys to actions. There is no shell here, and nothing that writes to a disk.
func choose(key byte) action {
	switch key {
	case '1', 's':
		return showSlots
	case '2', 'v':
		return verifySlots
	case '3', 'l':
		return showLog
	case '4', 'r':
		return restart
	case '5', 'p':
		return powerOff
	case '6', 'i':
		return installAnew
	case '\r', '\n', ' ', '?', 'h':
		return showMenu
	}
	return nothing
}

const menu = `
  1  slots      what lies on the disks
  2  verify     read a whole slot and compare it with its root hash
  3  log        the kernel's log
  4  restart
  5  power off
  6  reinstall  start the installer on a USB stick
`

// headline says what went wrong. Where nothing was to be started, nothing could not be started.
func headline(cause error) string {
	if errors.Is(cause, install.ErrNoDisk) {
		return fmt.Sprintf("Tributary was not installed, and nothing was written: %v", cause)
	}
	return fmt.Sprintf("Tributary cannot start its system: %v", cause)
}

// rescue speaks on every console until its time is over or a person chooses to leave.
func (r *rise) rescue(cause error) {
	t := openConsoles()
	defer t.close()
	wait := r.cmdline.Seconds("tributary.rescuewait", rescueWait, time.Hour)
	head := fmt.Sprintf("\n\n%s\nversion %s, kernel %s, profile %s\n%s", headline(cause), r.cmdline["tributary.version"], release(), r.cmdline["tributary.profile"], menu)
	t.printf("%s\nPress a key within %v, or the box starts anew.\n", head, wait)
	last := time.Now().Add(rescueMost)
	for until := time.Now().Add(wait); time.Now().Before(until) && time.Now().Before(last); {
		r.dog.pet()
		key, ok := t.key(time.Second)
		if !ok {
			continue
		}
		until = time.Now().Add(rescueIdle)
		switch choose(key) {
		case showMenu:
			t.printf("%s", head)
		case showSlots:
			r.slots(t)
		case verifySlots:
			r.verify(t)
		case showLog:
			t.printf("%s\n", kernelLog())
		case installAnew:
			if r.reinstall(t) {
				return
			}
		case restart:
			return
		case powerOff:
			r.end(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}
	t.printf("\nThe box starts anew.\n")
}

func (r *rise) restart() { r.end(unix.LINUX_REBOOT_CMD_RESTART) }

func (r *rise) end(how int) {
	unix.Sync()
	err := unix.Reboot(how)
	say("reboot: %v", err)
	for { // process 1 must not end; the watchdog, unfed now, does what the kernel would not
		unix.Pause()
	}
}

func (r *rise) slots(w *terminals) {
	names := blk.Disks("/sys")
	w.printf("\ndisks: %s; wanted: roothash %x\n", strings.Join(names, " "), r.hash)
	for _, name := range names {
		d, err := blk.Read(name, r.hash)
		if err != nil {
			w.printf("%s: %v\n", name, err)
			continue
		}
		w.printf("%s: %s, %s table\n", name, megabytes(d.Size), d.Copy)
		for i, p := range d.Table.Partitions {
			if p.Empty() {
				continue
			}
			mark := ""
			if i+1 == d.Root || i+1 == d.Tree {
				mark = "  <- wanted"
			}
			w.printf("  %2d %-14s %10s  %s%s\n", i+1, p.Name, megabytes(d.Table.Size(p)), p.ID, mark)
		}
	}
}

// verify checks each slot against the root hash that its partitions' UUIDs give.
func (r *rise) verify(w *terminals) {
	for _, name := range blk.Disks("/sys") {
		d, err := blk.Read(name, r.hash)
		if err != nil {
			continue
		}
		for _, slot := range []string{"a", "b"} {
			n, root := d.Table.Find("root-" + slot)
			m, tree := d.Table.Find("root-" + slot + "-verity")
			if n == 0 || m == 0 {
				continue
			}
			w.printf("%s slot %s: reading … ", name, slot)
			if err := verifySlot(d.Part(n), d.Part(m), hashOf(root, tree), r.dog.pet); err != nil {
				w.printf("%v\n", err)
			} else {
				w.printf("whole\n")
			}
		}
	}
}

func hashOf(root, tree gpt.Partition) (hash [32]byte) {
	a, b := root.ID.Bytes(), tree.ID.Bytes()
	copy(hash[:16], a[:])
	copy(hash[16:], b[:])
	return hash
}

func verifySlot(data, tree string, hash [32]byte, pet func()) error {
	d, err := os.Open(data)
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := os.Open(tree)
	if err != nil {
		return err
	}
	defer t.Close()
	return verity.Verify(petting{d, pet}, t, hash)
}

// petting feeds the watchdog while a disk is read.
type petting struct {
	io.ReaderAt
	pet func()
}

func (p petting) ReadAt(b []byte, off int64) (int, error) {
	p.pet()
	return p.ReaderAt.ReadAt(b, off)
}

// kernelLog is what the kernel's ring still holds (syslog(2), SYSLOG_ACTION_READ_ALL).
func kernelLog() []byte {
	b := make([]byte, 256<<10)
	n, err := unix.Klogctl(3, b)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(b[:n])
}
