package machines

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/cut"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/update/starts"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/tests/vm"
)

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

// TestUpdatePowerCuts records an update of a real box, write by write, and cuts its power: TRIBUTARY_BOOTS times (15), of
// which each cut is judged, booted, and has to be as judged; and TRIBUTARY_CUTS times (60) for the judge alone. The cuts
// lie at and between all changes of the update's phase and of the firmware's variables. With more than 15, a release that
// does not work is recorded too. TRIBUTARY_PART=2/4 boots the second quarter.
func TestUpdatePowerCuts(t *testing.T) {
	boots, cuts := number(t, "TRIBUTARY_BOOTS", 15), number(t, "TRIBUTARY_CUTS", 60)
	r, system := recorded(t, boots > 15)
	replay, ends, err := r.replay()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(9, 9))
	list := r.edges(ends)
	t.Logf("%d steps; %d edges of phases and firmware", len(ends), len(list)-1)
	places := choose(list, boots, random)
	for range cuts { // anywhere, for the judge alone
		places = append(places, place{step: list[0].lo + random.IntN(len(ends)-list[0].lo), meant: -1})
	}
	slices.SortStableFunc(places, func(a, b place) int { return a.step - b.step })
	part, parts := 1, 1
	if s := os.Getenv("TRIBUTARY_PART"); s != "" {
		if _, err := fmt.Sscanf(s, "%d/%d", &part, &parts); err != nil {
			t.Fatal(err)
		}
	}
	c := &cutter{T: t, record: r, system: system, seen: map[string]int{}, began: time.Now()}
	slots := make(chan struct{}, number(t, "TRIBUTARY_GUESTS", min(2, runtime.NumCPU())))
	var wg sync.WaitGroup
	defer wg.Wait()
	n := 0
	for _, p := range places {
		var now moment
		p.step, now, p.may = r.seen(ends, max(p.step, c.last), p.meant)
		p.step = max(p.step, c.last)
		c.last = p.step
		image, err := replay.Cut(p.step, random)
		if err != nil {
			t.Fatal(err)
		}
		if p.edge != "" {
			if n++; n%parts != part%parts {
				continue
			}
		}
		if p.edge == "" {
			if part == 1 {
				c.judge(p, image, now)
			}
			continue
		}
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err == nil {
			err = c.materialize(image, filepath.Join(dir, "disk.raw"))
		}
		if err != nil {
			t.Fatal(err)
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer os.RemoveAll(dir)
			c.boot(p, dir, now)
		})
	}
	wg.Wait()
	t.Logf("in %.0f s, cuts that were judged: %v; booted and as judged: %d", time.Since(c.began).Seconds(), c.seen, c.booted)
}

// place is where a log is cut. edge is what came before; empty: for the judge alone. may are the phases that the disk may
// be in.
type place struct {
	step int
	edge string
	// meant is the last moment that the cut sees, -1 for all that came before it in the log.
	meant int
	may   []string
}

// choose gives n places so that each edge has one at its first step before any has two: the first step after a change, the
// last one before the next, and any between.
func choose(list []edge, n int, random *rand.Rand) (places []place) {
	for round := 0; len(places) < n; round++ {
		for _, e := range list {
			p := place{step: e.lo, edge: e.name, meant: -1}
			switch {
			case round == 0:
				p.meant = e.moment
			case round == 1:
				p.step = e.hi
			default:
				p.step += random.IntN(e.hi - e.lo + 1)
			}
			if len(places) < n {
				places = append(places, p)
			}
		}
		if round == 0 { // the longest stretches are looked at in their middle first
			for _, e := range longest(list, min(3, n-len(places))) {
				places = append(places, place{step: (e.lo + e.hi) / 2, edge: e.name, meant: -1})
			}
		}
	}
	return places
}

func longest(list []edge, n int) []edge {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b edge) int { return (b.hi - b.lo) - (a.hi - a.lo) })
	return list[:min(max(n, 0), len(list))]
}

// cutter judges and boots what cuts left.
type cutter struct {
	*testing.T
	record *record
	system *System
	last   int
	began  time.Time
	mu     sync.Mutex
	seen   map[string]int
	booted int
}

// verdict judges a disk.
func (c *cutter) verdict(disk io.ReaderAt, now moment) (s starts.Start, vars []byte, err error) {
	info, err := os.Stat(c.record.path("before.raw"))
	if err != nil {
		return s, nil, err
	}
	if vars, err = os.ReadFile(c.record.vars(now.Vars)); err != nil {
		return s, nil, err
	}
	fw, err := firmware(vars)
	if err != nil {
		return s, nil, err
	}
	if s, err = starts.Judge(disk, info.Size(), runtime.GOARCH, fw, c.system.signed()); err == nil {
		err = stateOpens(disk, info.Size())
	}
	return s, vars, err
}

func (c *cutter) judge(p place, disk io.ReaderAt, now moment) (starts.Start, []byte) {
	s, vars, err := c.verdict(disk, now)
	if err != nil {
		c.Errorf("power cut after step %d (%s): %v", p.step, p.edge, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[fmt.Sprintf("%s from %s, once: %v", s.Slot, s.ESP, s.Once)]++
	return s, vars
}

// materialize writes what a cut left into a file.
func (c *cutter) materialize(image *cut.Image, disk string) error {
	if err := vm.CopyDisk(c.record.path("work.raw"), disk, 0); err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = image.Extents(func(off int64, data []byte) error {
		_, err := f.WriteAt(data, off)
		return err
	})
	return errors.Join(err, f.Close())
}

// stateOpens holds STATE's header against its checksum; a real boot opens it.
func stateOpens(disk io.ReaderAt, size int64) error {
	table, _, err := gpt.Read(disk, size)
	if err != nil {
		return err
	}
	_, p := table.Find("state")
	return starts.Header(io.NewSectionReader(disk, table.Offset(p), table.Size(p)))
}

// boot starts a machine from what a cut left, and holds it against what the judge says: which root starts, that STATE
// opens with all musts of boot, that the agent runs, and that the update's state is the one that was on the disk. Then the
// machine has said all that it is asked for.
func (c *cutter) boot(p place, dir string, now moment) {
	disk := filepath.Join(dir, "disk.raw")
	f, err := os.Open(disk)
	if err != nil {
		c.Error(err)
		return
	}
	want, vars := c.judge(p, f, now)
	_ = f.Close()
	if err := os.WriteFile(filepath.Join(dir, "vars.fd"), vars, 0o644); err != nil {
		c.Error(err)
		return
	}
	at, name := time.Now(), fmt.Sprintf("cut after step %d (%s)", p.step, p.edge)
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	m, err := vm.Start(ctx, vm.Spec{Name: "cut", MemoryMiB: 768, Disks: []vm.Disk{{Path: disk}}, Vars: filepath.Join(dir, "vars.fd"), NICs: []vm.NIC{{Alone: true}}, Watchdog: true, Life: patience})
	if err != nil {
		c.Errorf("%s: %v", name, err)
		return
	}
	defer func() {
		if err := m.Close(); err != nil {
			c.Error(err)
		}
	}()
	root, err := m.Expect(ctx, `roothash=([0-9a-f]{64})`)
	var stands []string
	if err == nil {
		stands, err = m.Expect(ctx, `msg="the update stands" phase=([a-z]+) slot=`)
	}
	switch bad := failures(m); {
	case err != nil:
		c.Errorf("%s: %v", name, err)
	case root[1] != hex.EncodeToString(want.Root[:]):
		c.Errorf("%s: it starts root %.12s, the judge said %x from slot %s", name, root[1], want.Root[:6], want.Slot)
	case len(bad) > 0:
		c.Errorf("%s: steps that failed:\n%s", name, strings.Join(bad, "\n"))
	case !slices.Contains(p.may, stands[1]):
		c.Errorf("%s: the update stands at %s; the disk had %v", name, stands[1], p.may)
	default:
		c.mu.Lock()
		c.booted++
		c.mu.Unlock()
		c.Logf("%s: slot %s (once: %v) up after %.0f s, as judged; the update stands at %s", name, want.Slot, want.Once, time.Since(at).Seconds(), stands[1])
	}
}
