package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/cmdline"
	"tributary.dev/tributary/pkg/edge/boot/nvram"
	"tributary.dev/tributary/pkg/edge/update"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/manifest"
)

// Where the appliance keeps what outlives an update.
const (
	updateState = "/state/update.json"
	keptRoot    = "/state/release-root.json"
	floorFile   = "/state/security-counter" // beside the TPM's, for boxes without one
	panicFile   = "/state/last-panic"
	anchorRoot  = "/usr/share/tributary/release-root.json"
	trialMost   = 24 * time.Hour
)

// openUpdate makes the updater of an appliance. A box that cannot be updated still runs its apps.
func (b *box) openUpdate(context.Context) (err error) {
	if b.updater, err = b.makeUpdate(); err != nil {
		b.log.Error("this box cannot be updated", "err", err)
	}
	return nil
}

// makeUpdate gives the updater of an appliance, and nil on any other machine.
func (b *box) makeUpdate() (*update.Manager, error) {
	slot, err := os.ReadFile(filepath.Join(boot.Dir, "slot"))
	if err != nil {
		return nil, nil // edged is a program among others here
	}
	if err := errors.Join(nvram.Variables(), nvram.Dumps()); err != nil {
		b.log.Warn("what the firmware keeps is not shown", "err", err)
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	words := cmdline.Parse(string(line))
	hash, err := words.RootHash()
	if err != nil {
		return nil, err
	}
	name, err := text(filepath.Join(boot.Dir, "disk"))
	if err != nil {
		return nil, err
	}
	disk, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	size, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	profile, err1 := text(filepath.Join(boot.Dir, "profile"))
	bootID, err2 := text("/proc/sys/kernel/random/boot_id")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	counter, _ := strconv.ParseUint(words["tributary.counter"], 10, 64) // an image without one has none
	floor := &floor{log: b.log}
	flash := &update.Flash{Disk: disk, Size: size, Arch: runtime.GOARCH}
	running := update.Slot(strings.TrimSpace(string(slot)))
	b.keysOfFirmware = b.firmwareKeys(&update.Flash{Disk: disk, Size: size, Arch: runtime.GOARCH}, running)
	return update.New(update.Config{
		State: updateState, Work: filepath.Join(b.o.data, "update"), Anchor: anchorRoot, Kept: keptRoot,
		Running: running, RootHash: fmt.Sprintf("%x", hash), Version: words["tributary.version"], Counter: counter,
		Arch: runtime.GOARCH, Profile: profile, BootID: bootID,
		Flash: flash, Firmware: trialFirmware{&update.BootVariables{Vars: efi.FS(efi.Dir), Flash: flash}, b.keysOfFirmware}, Artifacts: b.fromUSB(b.artifacts()),
		Bless: func(s update.Slot) error {
			d, err := blk.Read(name, hash)
			if err != nil {
				return err
			}
			node, _, err := d.ByLabel("esp-" + string(s))
			if err != nil {
				return err
			}
			return update.BlessOn(node, filepath.Join(boot.Dir, "esp"))
		},
		Want: b.wantedRelease, Health: b.trialHealth, Floor: floor.get, Raise: floor.raise,
		Open: func(t time.Time) bool { return b.updateSettings().UpdateHours.Contain(t) }, Rate: func() int64 { return b.updateSettings().UpdateBytesPerSecond },
		Past: b.clock.Floor, Reboot: func(ctx context.Context, reason string) error { _, err := boot.Ask(ctx, "reboot", reason); return err },
		Now: b.clock.Now, Uptime: uptime, Log: b.log,
		Deadlines: update.Default.Within(words.Seconds("tributary.trial", 0, trialMost)), Panic: update.LastWords(panicFile),
		Room: func() func() {
			limit, began := debug.SetMemoryLimit(update.Memory), time.Now()
			peakFromHere()
			return func() {
				b.log.Info("the work on the other slot is over", "seconds", int(time.Since(began).Seconds()), "peak", peakMemory())
				debug.SetMemoryLimit(limit)
				debug.FreeOSMemory()
			}
		},
	}), nil
}

func text(file string) (string, error) {
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)), err
}

func uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// floor is the lowest security counter that this box still takes. The TPM keeps it, where there is one, and then does not
// open STATE for a release below; the file keeps it for all boxes.
type floor struct {
	log  *slog.Logger
	once sync.Once
	n    atomic.Uint64
}

func (f *floor) get() uint64 {
	f.once.Do(func() {
		s, _ := text(floorFile)
		kept, _ := strconv.ParseUint(s, 10, 64) // rubbish is no floor
		in, err := boot.Floor(context.Background())
		if err == nil && in < kept { // it was not there when the release was confirmed
			err = boot.RaiseFloor(context.Background(), kept)
		}
		if err != nil && !errors.Is(err, boot.ErrNoTPM) {
			f.log.Warn("the TPM does not keep the security floor; a file does", "err", err)
		}
		f.n.Store(max(kept, in))
	})
	return f.n.Load()
}

// raise is called for a release that was confirmed. The file comes first: what it says is made up for in the TPM.
func (f *floor) raise(n uint64) error {
	if n <= f.get() {
		return nil
	}
	if err := atomicfile.Write(floorFile, fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
		return err
	}
	f.n.Store(n)
	if err := boot.RaiseFloor(context.Background(), n); err != nil && !errors.Is(err, boot.ErrNoTPM) {
		f.log.Warn("the TPM does not keep the security floor; a file does", "floor", n, "err", err)
	}
	return nil
}

// wantedRelease reads the manifest's item.
func (b *box) wantedRelease() (w *update.Want, known bool) {
	m := b.link.Manifest()
	if m == nil {
		return nil, false
	}
	item, ok := m.Manifest.Items[manifest.KeyRelease]
	if w := b.broughtRelease(item); w != nil {
		return w, true
	}
	if !ok || len(item.Refs) == 0 {
		return b.releaseFirst(), true
	}
	w = &update.Want{Repo: item.Refs[0].Repo, Digest: item.Refs[0].Digest}
	var more api.ReleaseWant
	if len(item.Body) > 0 && cbor.Unmarshal(item.Body, &more) == nil {
		w.Attempt = more.Attempt
	}
	if !b.mayUpdate(m.Manifest.Items[manifest.KeyPermits].Body, w.Digest) {
		return nil, false // what is under way goes on, and nothing begins
	}
	return w, true
}

// mayUpdate tells whether a release may be begun with: where a rollout gave it, only by its permit.
func (b *box) mayUpdate(body []byte, digest string) bool {
	var permits map[string]api.Permit
	if len(body) == 0 || cbor.Unmarshal(body, &permits) != nil {
		return true
	}
	p, has := permits[manifest.KeyRelease]
	if !has || b.updater != nil && begun(b.updater.State(), b.updater.Running(), digest) {
		return true
	}
	ok, _ := p.Open(b.clock.Now()) // check: the permit of a release
	return ok
}

// begun tells whether a box is on its way to a release, or runs it.
func begun(s update.State, running update.Slot, digest string) bool {
	return s.Target != nil && s.Target.Digest == digest || s.Slots[running].Digest == digest
}

// confirmed is the digest of the release that the box runs, once that is no trial any more; empty where
// there never was an update.
func (b *box) confirmed() string {
	if b.updater == nil {
		return ""
	}
	s := b.updater.State()
	if s.Phase == update.Trial || s.Phase == update.Confirming {
		return ""
	}
	return s.Slots[b.updater.Running()].Digest
}

// updateSettings reads the manifest's settings; an unknown manifest has none.
func (b *box) updateSettings() (s api.DeviceSettings) {
	m := b.link.Manifest()
	if m == nil {
		return s
	}
	if item, ok := m.Manifest.Items[manifest.KeyDevice]; ok && cbor.Unmarshal(item.Body, &s) != nil {
		return api.DeviceSettings{}
	}
	return s
}

// trialHealth is what a release on trial is judged by.
func (b *box) trialHealth() (h update.Health) {
	h.Kernel = bootHealth()
	h.Agent = update.Condition{OK: b.agent.Load() != nil, Detail: "its loops do not run"}
	_, connected := b.link.Parent()
	h.Parent = update.Condition{OK: connected, Detail: "no session with it came about"}
	h.Held = b.holdApps() != ""
	if m := b.link.Manifest(); m != nil {
		h.Known, h.Wanted = true, m.Manifest.AppNames()
	}
	for _, a := range b.work.Status() {
		if a.State == api.Running || a.State == api.Exited {
			h.Apps = append(h.Apps, a.Name)
		}
	}
	return h
}

// bootHealth reads process 1's report of this boot.
func bootHealth() update.Condition {
	raw, err := os.ReadFile(filepath.Join(boot.Dir, "boot.json"))
	var r boot.Report
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return update.Condition{Detail: "there is no report of this boot: " + err.Error()}
	}
	for _, s := range r.Steps {
		if bool(s.Must) && s.Error != "" {
			return update.Condition{Detail: s.Name + ": " + s.Error}
		}
	}
	return update.Condition{OK: r.Done, Detail: "boot is not through its list"}
}
