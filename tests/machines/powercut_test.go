package machines

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/cut"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/update/starts"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/tests/vm"
)

// moment is what the firmware kept when the log of the disk had that many bytes.
type moment struct {
	at   int64
	vars []byte
}

// watch notes the firmware's variables whenever they change, until ctx ends. A cut before the change of a moment may be
// judged with the variables of after it, for as long as one look takes: nothing else is written then but STATE.
func watch(ctx context.Context, vars, log string) (moments []moment) {
	var last, before []byte
	for ctx.Err() == nil {
		b, err := os.ReadFile(vars)
		info, err2 := os.Stat(log)
		if err == nil && err2 == nil && bytes.Equal(b, before) && !bytes.Equal(b, last) { // two looks see the same: it stands
			moments = append(moments, moment{info.Size(), b})
			last = b
		}
		before = b
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return moments
}

// firmware reads a variable store in the terms of the judge.
func firmware(fd []byte) (fw starts.Firmware, err error) {
	vars, err := keys.Stored(fd)
	if err != nil {
		return fw, err
	}
	esp := func(n uint16) gpt.GUID {
		o, err := efi.Entry(vars, n)
		if err != nil {
			return gpt.GUID{}
		}
		id, _ := efi.PartitionOf(o.Path)
		return id
	}
	if n, set, err := efi.Next(vars); err == nil && set {
		fw.Next = esp(n)
	}
	order, err := efi.Order(vars)
	for _, n := range order {
		if id := esp(n); id != (gpt.GUID{}) {
			fw.Order = append(fw.Order, id)
		}
	}
	return fw, err
}

// signed knows what is on a box's ESPs by the signatures themselves.
func (s *System) signed() starts.Known {
	certs := s.set.Certificates()
	return starts.Known{
		Manager: func(b []byte) bool { return uki.Verify(b, certs...) == nil },
		Kernel: func(b []byte) (root [32]byte, ok bool) {
			line, err := uki.Read(b, ".cmdline")
			if err != nil || uki.Verify(b, certs...) != nil {
				return root, false
			}
			m := regexp.MustCompile(`roothash=([0-9a-f]{64})`).FindSubmatch(line)
			if m == nil {
				return root, false
			}
			_, err = hex.Decode(root[:], m[1])
			return root, err == nil
		},
	}
}

// number reads a count from the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestUpdatePowerCuts records an update of a real box, write by write, and cuts the power in it: TRIBUTARY_CUTS times (200)
// for the judge, of which TRIBUTARY_BOOTS (15) are really booted and have to agree with it.
func TestUpdatePowerCuts(t *testing.T) {
	u := needUpdating(t, 60*time.Minute)
	cuts, boots := number(t, "TRIBUTARY_CUTS", 200), number(t, "TRIBUTARY_BOOTS", 15)
	box := u.tree.boxes["box"]
	u.off()
	before, log := box.path("before.raw"), box.path("writes.log")
	if err := vm.CopyDisk(box.Disk(), before, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	box.DiskLog = log
	ctx, stop := context.WithCancel(u.ctx)
	defer stop()
	watched := make(chan []moment, 1)
	go func() { watched <- watch(ctx, box.path("vars.fd"), log) }()
	if err := box.Start(u.ctx); err != nil {
		t.Fatal(err)
	}
	u.runs("v1")
	u.updates(Variant{Version: "v2", Counter: 1})
	u.off()
	stop()
	moments := <-watched
	box.DiskLog = ""
	u.replay(before, log, moments, cuts, boots)
}

// off switches the box off in good order.
func (u *updating) off() {
	u.Helper()
	box := u.tree.boxes["box"]
	if err := box.machine.PowerButton(u.ctx); err != nil {
		u.Fatal(err)
	}
	if err := box.machine.Wait(u.ctx); err != nil {
		u.Fatal(err)
	}
	if err := box.PowerCut(); err != nil {
		u.Fatal(err)
	}
}

func (u *updating) replay(before, log string, moments []moment, cuts, boots int) {
	u.Helper()
	raw, err := os.ReadFile(log)
	if err != nil {
		u.Fatal(err)
	}
	writes, ends, err := cut.Decode(raw)
	if err != nil {
		u.Fatal(err)
	}
	base, err := os.OpenFile(before, os.O_RDWR, 0)
	if err != nil {
		u.Fatal(err)
	}
	defer base.Close()
	info, err := base.Stat()
	if err != nil {
		u.Fatal(err)
	}
	random := rand.New(rand.NewPCG(9, 9))
	places := make([]int, cuts)
	for i := range places {
		places[i] = 1 + random.IntN(len(writes))
		if i%2 == 0 && len(moments) > 0 { // half of them around what the firmware was told
			n, _ := slices.BinarySearch(ends, moments[random.IntN(len(moments))].at)
			places[i] = min(max(1, n+random.IntN(400)-300), len(writes))
		}
	}
	slices.Sort(places)
	replay := &cut.Replay{Base: base, Log: writes}
	seen, booted := map[string]int{}, 0
	u.Logf("%d steps, %d changes of the firmware's variables", len(writes), len(moments))
	for i, n := range places {
		image, err := replay.Cut(n, random)
		if err != nil {
			u.Fatal(err)
		}
		vars := moments[0].vars
		for _, m := range moments {
			if m.at <= ends[n-1] {
				vars = m.vars
			}
		}
		fw, err := firmware(vars)
		if err != nil {
			u.Fatal(err)
		}
		s, err := starts.Judge(image, info.Size(), runtime.GOARCH, fw, u.system.signed())
		if err == nil {
			err = stateOpens(image, info.Size())
		}
		if err != nil {
			u.Fatalf("power cut after step %d of %d: %v", n, len(writes), err)
		}
		seen[fmt.Sprintf("%s from %s, once: %v", s.Slot, s.ESP, s.Once)]++
		if i*boots/cuts != (i+1)*boots/cuts {
			booted++
			u.boots(fmt.Sprintf("cut after step %d", n), before, image, vars, s)
		}
	}
	u.Logf("%d power cuts judged: %v; %d booted and as judged", cuts, seen, booted)
}

// stateOpens holds STATE's header against its checksum; a real boot opens it.
func stateOpens(image *cut.Image, size int64) error {
	table, _, err := gpt.Read(image, size)
	if err != nil {
		return err
	}
	_, p := table.Find("state")
	return starts.Header(offset{image, table.Offset(p)})
}

// offset is a disk from some place on.
type offset struct {
	image *cut.Image
	at    int64
}

func (o offset) ReadAt(p []byte, off int64) (int, error) { return o.image.ReadAt(p, o.at+off) }

// boots starts a machine from what a cut left, and holds it against what the judge said.
func (u *updating) boots(name, base string, image *cut.Image, vars []byte, want starts.Start) {
	u.Helper()
	dir, err := os.MkdirTemp(u.TempDir(), "")
	if err != nil {
		u.Fatal(err)
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk.raw")
	if err := vm.CopyDisk(base, disk, 0); err != nil {
		u.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		u.Fatal(err)
	}
	err = image.Extents(func(off int64, data []byte) error {
		_, err := f.WriteAt(data, off)
		return err
	})
	if err != nil {
		u.Fatal(err)
	}
	_ = unix.Fsync(int(f.Fd()))
	if err := f.Close(); err != nil {
		u.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vars.fd"), vars, 0o644); err != nil {
		u.Fatal(err)
	}
	at := time.Now()
	m, err := vm.Start(u.ctx, vm.Spec{Name: "cut", MemoryMiB: 768, Disks: []vm.Disk{{Path: disk}}, Vars: filepath.Join(dir, "vars.fd"), NICs: []vm.NIC{{Alone: true}}, Watchdog: true, Life: patience})
	if err != nil {
		u.Fatal(err)
	}
	defer func() {
		if err := m.Close(); err != nil {
			u.Error(err)
		}
	}()
	version, err := m.Expect(u.ctx, `roothash=([0-9a-f]{64})`)
	if err == nil {
		_, err = m.Expect(u.ctx, up)
	}
	switch bad := failures(m); {
	case err != nil:
		u.Fatalf("%s: %v", name, err)
	case version[1] != hex.EncodeToString(want.Root[:]):
		u.Errorf("%s: it starts root %.12s, the judge said %x from slot %s", name, version[1], want.Root[:6], want.Slot)
	case len(bad) > 0:
		u.Errorf("%s: steps that failed:\n%s", name, strings.Join(bad, "\n"))
	default:
		u.Logf("%s: slot %s (once: %v) up after %.0f s, as judged", name, want.Slot, want.Once, time.Since(at).Seconds())
	}
}
