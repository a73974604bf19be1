package rise

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/boot/kmod"
)

// list is what the image builder wrote: one file a line, in load order, watchdogs first.
const list = "/modules.list"

// watchdog loads the drivers at the head of the list, up to the first that yields a
// device, before anything that might hang. A kernel that has one built in needs none.
func (r *rise) watchdog() error {
	entries, err := readList()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isWatchdog(e.File) || r.dog.open() {
			break
		}
		insert(e)
	}
	if r.dog.open() {
		return nil
	}
	say("no watchdog: a hang from here on is not ended by itself")
	return nil
}

// settle is how long the drivers that the devices ask for have to bring the disk. Then all
// of the list are loaded: a device may not say what it is.
const settle = 5 * time.Second

// needed are what no device asks for: what the root is checked by, with the processor's own
// instructions if it has them, and read with, and what keeps a panic's last words.
var needed = []string{"sha256_ssse3", "sha2_ce", "dm_verity", "erofs", "efi_pstore"}

// modules loads what the root takes. Drivers come when the disk is looked for; the installer
// and an initramfs without tables load all at once.
func (r *rise) modules() error {
	tree, err := kmod.Open(filepath.Join("/lib/modules", release()))
	if err != nil || r.cmdline.Has("tributary.install") {
		return r.loadAll()
	}
	r.tree = tree
	if r.cmdline.Has("tributary.debug") {
		tree.Took = func(name string, took time.Duration) { say("module %s %.0f ms", name, took.Seconds()*1000) }
	}
	for _, name := range needed {
		if tree.Holds(name) {
			if err := tree.Load(name); err != nil && !errors.Is(err, unix.ENODEV) {
				say("%v", err) // the step that wants it tells
			}
			r.dog.pet()
		}
	}
	return nil
}

// plug loads drivers that the devices ask for until there is a disk that found takes, and all
// of the list when that took too long.
func (r *rise) plug(found func() bool) {
	r.dog.pet()
	if r.tree == nil {
		return
	}
	if r.plugged.IsZero() {
		r.plugged = time.Now()
	}
	if time.Since(r.plugged) > settle {
		say("no device asked for the disk's driver: all are loaded")
		r.tree = nil
		if err := r.loadAll(); err != nil {
			say("%v", err)
		}
		return
	}
	// A driver brings devices to light that ask for another.
	for range maxRounds {
		n, err := r.tree.ColdPlug("/sys", func(string) bool {
			r.dog.pet()
			return found()
		})
		if err != nil {
			say("%v", err)
		}
		if n == 0 || found() {
			return
		}
	}
}

// maxRounds bounds how deep buses hang below each other.
const maxRounds = 8

func (r *rise) loadAll() error {
	entries, err := readList()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isWatchdog(e.File) && !kmod.Live(kmod.Name(e.File)) {
			insert(e)
			r.dog.pet()
		}
	}
	return nil
}

func readList() ([]kmod.Entry, error) {
	f, err := os.Open(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // all is built in
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return kmod.ParseList(f)
}

// isWatchdog goes by where the kernel's tree keeps them, or by the common names where the
// initramfs keeps all modules in one folder.
func isWatchdog(file string) bool {
	name := kmod.Name(file)
	return strings.Contains(file, "/watchdog/") || strings.HasSuffix(name, "_wdt") || name == "watchdog" || name == "i6300esb" || name == "softdog" || name == "ipmi_watchdog"
}

// insert goes on when a module does not load: the hardware for it may not be here.
func insert(e kmod.Entry) {
	if err := kmod.Insert(e.File, e.Params); err != nil && !errors.Is(err, unix.ENODEV) {
		say("%v", err)
	}
}
