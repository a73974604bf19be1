package state_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/link/spool/disktest"
)

// box is what a device keeps: state, spool, a mirror and a file, in one folder.
type box struct {
	state  *state.Store
	spool  *spool.Spool
	mirror *state.Mirror
	file   string
}

func openBox(dir string, disk spool.FS) (b *box, err error) {
	b = &box{file: filepath.Join(dir, "identity")}
	log := slog.New(slog.DiscardHandler)
	if b.state, err = state.Open(state.Config{Path: filepath.Join(dir, "state.db"), Log: log}); err != nil {
		return nil, err
	}
	b.mirror = b.state.Mirror("meter")
	b.spool, err = spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), DB: b.state.DB(), MaxBytes: 8 << 20, Now: time.Now, Rand: rand.Reader, Log: log, FS: disk})
	return b, err
}

// value is n, and so much behind it that files grow.
func value(n uint64) []byte {
	return append(binary.BigEndian.AppendUint64(nil, n), bytes.Repeat([]byte{byte(n)}, int(n*7919%2500))...)
}

func number(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// writers are the ways to write durably; each takes the n-th value.
func (b *box) writers() map[string]func(n uint64) error {
	return map[string]func(uint64) error{
		"state":  func(n uint64) error { return b.state.Put("power", "n", value(n)) },
		"mirror": func(n uint64) error { return b.mirror.Save(value(n)) },
		"file":   func(n uint64) error { return atomicfile.Write(b.file, value(n), 0o600) },
		"spool": func(n uint64) error {
			_, err := b.spool.Append(api.RecordEvent, value(n))
			return err
		},
		"copy": func(uint64) error { return b.state.Copy() }, // must do no harm
	}
}

// newest is the last value of each that the disk holds.
func (b *box) newest() (map[string]uint64, error) {
	inState, err := b.state.Get("power", "n")
	inMirror, err2 := b.mirror.Load()
	inFile, err3 := os.ReadFile(b.file)
	if errors.Is(err3, os.ErrNotExist) {
		err3 = nil
	}
	out := map[string]uint64{"state": number(inState), "mirror": number(inMirror), "file": number(inFile)}
	records, err4 := b.spool.Read(0, 1<<30)
	for _, r := range records {
		if n := number(r.Payload); n != out["spool"]+1 || !bytes.Equal(r.Payload, value(n)) {
			return nil, fmt.Errorf("spool: %d follows %d", n, out["spool"])
		}
		out["spool"]++
	}
	return out, errors.Join(err, err2, err3, err4)
}

// alone runs the test that calls it once more, in a process with mounts of its own, and
// reports whether this is that process. Elsewhere a namespace that somebody makes just now
// would keep a copy of the disk, and with it the disk that has no power.
func alone(t *testing.T) bool {
	t.Helper()
	if testing.Short() {
		t.Skip("takes several seconds: not in the short form")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a disk and takes its power")
	}
	if os.Getenv("POWER_ALONE") != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "POWER_ALONE=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // and nothing propagates
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs leave to make a mount namespace: ", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	} else if bytes.Contains(out, []byte("--- SKIP")) {
		t.Skip("see above")
	}
	return false
}

// TestPowerWriter is the box that will lose its power, in a process of its own: it says
// each write that was acknowledged.
func TestPowerWriter(t *testing.T) {
	dir := os.Getenv("POWER_DIR")
	if dir == "" {
		t.Skip("it is the other half of TestPowerCut")
	}
	broken := os.Getenv("POWER_BROKEN") != ""
	var under spool.FS = spool.OS{}
	if broken {
		under = disktest.Unsynced{FS: under}
	}
	b, err := openBox(dir, under)
	if err != nil {
		t.Fatal(err)
	}
	begun, err := b.newest()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var said sync.Mutex
	for name, write := range b.writers() {
		if broken && name != "spool" { // the syncs of others would help it
			continue
		}
		wg.Go(func() {
			for n := begun[name] + 1; write(n) == nil; n++ {
				said.Lock()
				fmt.Printf("%s %d\n", name, n)
				said.Unlock()
			}
		})
	}
	wg.Wait()
}

// disk is an ext4 file system in a file.
type disk struct{ image, dir string }

func newDisk(t *testing.T) *disk {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4 (Debian package e2fsprogs)")
	}
	d := &disk{image: filepath.Join(t.TempDir(), "disk"), dir: t.TempDir()}
	if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 96<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if err := d.mount(); err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	t.Cleanup(func() {
		if err := d.unmount(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *disk) mount() error {
	out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

func (d *disk) unmount() error { return unix.Unmount(d.dir, 0) }

// cut takes the power: what was not synced, data and journal alike, is gone
// (EXT4_IOC_SHUTDOWN with NOLOGFLUSH, as xfstests' godown).
func (d *disk) cut() error {
	const shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush), f.Close())
}

// live runs the writer until it has acknowledged some writes of each kind, cuts the power,
// and returns the last number acknowledged of each.
func (d *disk) live(t *testing.T, some int, broken string) map[string]uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestPowerWriter$", "-test.v")
	cmd.Env = append(os.Environ(), "POWER_DIR="+d.dir, "POWER_BROKEN="+broken)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last, count := map[string]uint64{}, map[string]int{}
	kinds := 5
	if broken != "" {
		kinds = 1
	}
	enough := func() bool {
		for _, n := range count {
			if n < some {
				return false
			}
		}
		return len(count) == kinds
	}
	off := false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.ParseUint(text, 10, 64)
		// What comes after the cut counts no more: a sync that was under way may still claim
		// to have succeeded, on a machine that would be off.
		if err != nil || off {
			continue
		}
		last[name] = n
		count[name]++
		if enough() {
			off = true
			if err := d.cut(); err != nil {
				t.Errorf("the power stays: %v", err)
				cancel()
			}
		}
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // it may have died of a page that the disk no longer gives
	if !off {
		t.Fatalf("the writer ended by itself after %v", count)
	}
	if err := errors.Join(d.unmount(), d.mount()); err != nil {
		t.Fatal(err)
	}
	return last
}

// A box loses its power while it writes, on a real file system that then forgets all that
// was not synced. What was acknowledged is there, and no file has to be rebuilt.
func TestPowerCut(t *testing.T) {
	if !alone(t) {
		return
	}
	d := newDisk(t)
	for round := range 6 {
		last := d.live(t, 3+11*round, "")
		b, err := openBox(d.dir, spool.OS{})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if b.state.Origin() != state.Intact {
			t.Errorf("round %d: the state is %s", round, b.state.Origin())
		}
		kept, err := b.newest()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for _, name := range []string{"state", "mirror", "file", "spool"} {
			if kept[name] < last[name] || last[name] == 0 {
				t.Errorf("round %d: %s: %d was acknowledged, %d is there", round, name, last[name], kept[name])
			}
		}
		if err := errors.Join(b.spool.Close(), b.state.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// A spool that does not sync must lose something here, or the test above shows nothing.
func TestPowerCutFindsWhoDoesNotSync(t *testing.T) {
	if !alone(t) {
		return
	}
	for range 5 {
		d := newDisk(t)
		last := d.live(t, 200, "yes")
		b, err := openBox(d.dir, spool.OS{})
		if err != nil {
			return // lost altogether
		}
		kept, err := b.newest()
		if err := errors.Join(b.spool.Close(), b.state.Close()); err != nil {
			t.Fatal(err)
		}
		if err != nil || kept["spool"] < last["spool"] {
			return
		}
	}
	t.Error("nothing was lost in five cuts")
}
