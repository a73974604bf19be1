package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/edge/update/guard"
	"tributary.dev/tributary/pkg/efi"
)

// rollback gives what has the box start its other slot, on trial. run and state are the box's folders.
func rollback(run, state, where string) func(context.Context, func(string)) error {
	return func(_ context.Context, say func(string)) error {
		slot, err := os.ReadFile(filepath.Join(run, "slot"))
		if err != nil {
			return err
		}
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return err
		}
		g := &guard.Guard{Path: filepath.Join(state, "update.json"), Running: strings.TrimSpace(string(slot))}
		version, err := g.Back(strings.TrimSpace(string(boot)), "a person at the console ("+where+")", floor(state), time.Now())
		if err != nil {
			return err
		}
		say(fmt.Sprintf("Slot %s with %s starts next; if it is not well, this one comes back.", strings.ToUpper(guard.Other(g.Running)), version))
		return guard.Next(efi.FS(efi.Dir), guard.Other(g.Running))
	}
}

// floor is the lowest security counter that the box still takes, as edged keeps it for boxes with and without a TPM.
func floor(state string) uint64 {
	b, err := os.ReadFile(filepath.Join(state, "security-counter"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // rubbish is no floor
	return n
}
