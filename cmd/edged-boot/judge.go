package main

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/boot/nvram"
	"tributary.dev/tributary/pkg/edge/update/guard"
)

// loaderCounted exists where systemd-boot counted this start: only kernel images on trial have a counter in their name.
const loaderCounted = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// trialMost is as long as a release may ask for its trial.
const trialMost = 24 * time.Hour

// judge is who sends a release on trial back when its agent does not live, or STATE does not open.
func judge(f boot.Facts) boot.Judge {
	slot, _ := os.ReadFile(filepath.Join(boot.Dir, "slot")) // a box without one has no slots, and no trial
	g := &guard.Guard{Path: "/state/update.json", Running: strings.TrimSpace(string(slot)), Counted: func() bool {
		_ = nvram.Variables() // where that fails there is no sign
		_, err := os.Stat(loaderCounted)
		return err == nil
	}}
	if all := f.Cmdline.Seconds("tributary.trial", 0, trialMost); all > 0 {
		g.Most = all * 5 / 4 // the agent's own deadline comes first
	}
	return g
}
