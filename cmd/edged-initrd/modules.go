package main

import (
	"errors"
	"os"
	"strings"

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

func (r *rise) modules() error {
	entries, err := readList()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isWatchdog(e.File) {
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
