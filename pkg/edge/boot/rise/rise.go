// Package rise answers: how does the kernel get from its initramfs to the signed root? It is
// the first part of process 1, without a shell beside it. When it cannot, it says why on every
// console, offers a small rescue, and starts the box anew.
package rise

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/cmdline"
	"tributary.dev/tributary/pkg/edge/boot/dm"
	"tributary.dev/tributary/pkg/edge/boot/kmod"
	"tributary.dev/tributary/pkg/edge/boot/slack"
	"tributary.dev/tributary/pkg/edge/boot/watchdog"
)

const (
	sysroot = "/sysroot"
	agent   = "/usr/bin/edged" // inside the root

	// diskWait is long since a box under software emulation or a slow array needs it;
	// tributary.diskwait= changes it.
	diskWait = 2 * time.Minute
)

// rise is the way up, as far as it got.
type rise struct {
	cmdline cmdline.Line
	hash    [32]byte
	dog     *dog
	tree    *kmod.Tree // of the initramfs; nil when all of its modules are loaded
	plugged time.Time  // when devices were first asked for their drivers
	disk    *blk.Disk
	root    string // the verity device
	steps   []stepTime
}

type stepTime struct {
	Name string  `json:"name"`
	At   float64 `json:"at"` // seconds since the kernel started
	Took float64 `json:"took"`
}

// Up goes from the first instruction to the root, in which the calling program finds itself
// when it returns: it stays process 1, and has the watchdog, which runs, to feed; nil for none.
// It returns only then.
func Up() *watchdog.Device {
	r := &rise{dog: &dog{}}
	err := r.up()
	if err == nil {
		return r.dog.dev
	}
	say("%v", err)
	if r.tree != nil {
		_ = r.loadAll() // a keyboard, a stick
	}
	r.rescue(err)
	r.restart()
	return nil
}

func (r *rise) up() error {
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"mounts", r.mounts},
		{"command line", r.readCmdline},
		{"watchdog", r.watchdog},
		{"modules", r.modules},
		{"installer", r.install},
		{"disk", r.findDisk},
		{"verity", r.openVerity},
		{"root", r.mountRoot},
		{"slot", r.tell},
	} {
		at := uptime()
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		r.dog.pet()
		r.steps = append(r.steps, stepTime{s.name, at, uptime() - at})
	}
	return r.enter()
}

func (r *rise) mounts() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=25%"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		// A kernel may have mounted devtmpfs by itself.
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s: %w", m.target, err)
		}
	}
	openLog()
	// Pages of 2 MiB are for programs that ask for them: those that start here would zero
	// several each, and hold them.
	if err := os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("madvise"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		say("huge pages: %v", err)
	}
	if err := slack.Set(slack.Boot); err != nil {
		say("timer slack: %v", err) // it starts a little later
	}
	return nil
}

func (r *rise) readCmdline() (err error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	r.cmdline = cmdline.Parse(string(b))
	r.dog.timeout = r.cmdline.Seconds("tributary.watchdog", 60*time.Second, 10*time.Minute)
	if r.cmdline.Has("tributary.install") {
		return nil // the installer has no root
	}
	r.hash, err = r.cmdline.RootHash()
	return err
}

func (r *rise) findDisk() (err error) {
	found := func() bool {
		_, err := blk.Find(r.hash)
		return err == nil
	}
	r.disk, err = blk.Wait(r.hash, r.cmdline.Seconds("tributary.diskwait", diskWait, time.Hour), func() { r.plug(found) })
	if err != nil {
		return fmt.Errorf("%w; disks here: %v", err, blk.Disks("/sys"))
	}
	say("slot %s on %s", r.disk.Slot(), r.disk.Node())
	return nil
}

func (r *rise) openVerity() error {
	tree := r.disk.Part(r.disk.Tree)
	v, err := readVerity(tree)
	if err != nil {
		return err
	}
	size := uint64(r.disk.Table.Size(r.disk.Table.Partitions[r.disk.Root-1]))
	if v.DataBlocks > size/verity.BlockSize {
		return fmt.Errorf("the tree is for %d blocks, the root has %d", v.DataBlocks, size/verity.BlockSize)
	}
	r.root, err = dm.Create("root", "TRIBUTARY-VERITY-root", dm.Verity(v, r.disk.Part(r.disk.Root), tree, r.hash), true)
	return err
}

func readVerity(node string) (verity.Superblock, error) {
	f, err := os.Open(node)
	if err != nil {
		return verity.Superblock{}, err
	}
	defer f.Close()
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, 0); err != nil {
		return verity.Superblock{}, err
	}
	return verity.DecodeSuperblock(b)
}

func (r *rise) mountRoot() error {
	if err := os.MkdirAll(sysroot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(r.root, sysroot, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("%s does not mount: %w", r.root, err)
	}
	if _, err := os.Stat(sysroot + agent); err != nil {
		return err
	}
	return nil
}
