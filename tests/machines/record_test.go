package machines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/disk/cut"
	"tributary.dev/tributary/pkg/edge/update/starts"
	"tributary.dev/tributary/tests/vm"
)

// record is all that a machine made durable while it was updated, in a folder: its disk as it was before, the log of its
// writes and flushes, and what was seen beside them.
type record struct {
	dir     string
	Moments []moment
}

// moment is what changed between two looks at a machine: what the firmware keeps, or the phase of the update, which the
// machine says once it is on the disk.
type moment struct {
	// From and At are the sizes of the disk's log at the look before and at this one.
	From, At int64
	When     time.Time
	// Vars numbers the file of the firmware's variables; Phase is the update's. Changed names what is new, if that is
	// more than other variables' content.
	Vars    int
	Phase   string
	Changed string
}

func (r *record) path(name string) string { return filepath.Join(r.dir, name) }
func (r *record) vars(n int) string       { return r.path(fmt.Sprintf("vars-%d.fd", n)) }

// phases are said by edged; see pkg/edge/update/run.go.
var phases = regexp.MustCompile(`msg="the update goes on" phase=([a-z]+)`)

// watcher looks at a machine that is being recorded.
type watcher struct {
	*record
	flash, serial string
	last          []byte
	read          int64 // of the serial line
	rest          []byte
	before        struct {
		vars []byte
		size int64
	}
	fw   starts.Firmware
	stop context.CancelFunc
	done chan error
}

// watch notes what changes until it is stopped. flash is the file of the firmware's variables, serial that of the serial line.
func (r *record) watch(ctx context.Context, flash, serial string) *watcher {
	w := &watcher{record: r, flash: flash, serial: serial, done: make(chan error, 1)}
	ctx, w.stop = context.WithCancel(ctx)
	go func() {
		for {
			err := w.look()
			select {
			case <-ctx.Done():
				w.done <- err
				return
			case <-time.After(20 * time.Millisecond):
			}
			if err != nil {
				w.done <- err
				return
			}
		}
	}()
	return w
}

// end stops watching.
func (w *watcher) end() error {
	w.stop()
	return <-w.done
}

func (w *watcher) look() error {
	vars, err := os.ReadFile(w.flash)
	if err != nil {
		return err
	}
	said, err := w.more()
	if err != nil {
		return err
	}
	info, err := os.Stat(w.path("writes.log")) // last: what was seen came before
	if err != nil {
		return err
	}
	m := moment{From: w.before.size, At: info.Size(), When: time.Now(), Phase: "idle"}
	if n := len(w.Moments); n > 0 {
		m.Vars, m.Phase = w.Moments[n-1].Vars, w.Moments[n-1].Phase
	}
	for _, found := range phases.FindAllSubmatch(said, -1) {
		m.Phase = string(found[1])
		m.Changed = "phase " + m.Phase
		w.Moments = append(w.Moments, m)
	}
	if bytes.Equal(vars, w.before.vars) && !bytes.Equal(vars, w.last) { // two looks see the same: it stands
		fw, err := firmware(vars)
		if err == nil {
			m.Vars, m.Changed = len(w.Moments), ""
			if !reflect.DeepEqual(fw, w.fw) {
				m.Changed, w.fw = fmt.Sprintf("firmware: once %.4s, order %.4s", fw.Next, fw.Order), fw
			}
			if err := os.WriteFile(w.vars(m.Vars), vars, 0o644); err != nil {
				return err
			}
			w.last = vars
			w.Moments = append(w.Moments, m)
		}
	}
	w.before.vars, w.before.size = vars, info.Size()
	return nil
}

// more is what the serial line said since the last look, in whole lines.
func (w *watcher) more() ([]byte, error) {
	f, err := os.Open(w.serial)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // its folder goes with the machine
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, w.read, 1<<40))
	w.read += int64(len(b))
	w.rest = append(w.rest, b...)
	n := bytes.LastIndexByte(w.rest, '\n') + 1
	lines := w.rest[:n:n]
	w.rest = w.rest[n:]
	return lines, err
}

// recorded updates a box to a release that works; with back, then to one that loses its parent, and back. The folder that
// TRIBUTARY_RECORD names keeps what was recorded, and gives it to the next run.
func recorded(t *testing.T, back bool) (*record, *System) {
	t.Helper()
	r := &record{dir: os.Getenv("TRIBUTARY_RECORD")}
	if r.dir == "" {
		r.dir = t.TempDir()
	} else if raw, err := os.ReadFile(r.path("moments.json")); err == nil {
		if err := json.Unmarshal(raw, &r.Moments); err != nil {
			t.Fatal(err)
		}
		_, system := needSystem(t, needs{})
		return r, system
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path("writes.log"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	u := needUpdating(t, 30*time.Minute, needs{flashed: func(b *Box) error {
		b.DiskLog = r.path("writes.log")
		return vm.CopyDisk(b.Disk(), r.path("before.raw"), 0)
	}})
	w := r.watch(u.ctx, u.tree.boxes["box"].path("vars.fd"), u.tree.Machine("box").SerialLog())
	u.updates(Variant{Version: "v2", Counter: 1})
	if back {
		u.release(Variant{Version: "v3", Counter: 1, Words: []string{"module_blacklist=virtio_net", shortTrial}})
		u.runs("v3")
		u.runs("v2")
		u.refused(`the parent was not reached within`)
	}
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(r.Moments)
	if err := errors.Join(err, u.tree.boxes["box"].PowerCut(), os.WriteFile(r.path("moments.json"), raw, 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Logf("recorded in %.0f s", time.Since(at).Seconds())
	return r, u.system
}

// edge is a stretch of a log between two changes: the steps from lo to hi, as Replay.Cut counts them. moment is the change
// that it begins with.
type edge struct {
	name   string
	lo, hi int
	moment int
}

// edges are the stretches of the update: what begins with the change of that name.
func (r *record) edges(ends []int64) (list []edge) {
	steps := func(at int64) int { n, _ := slices.BinarySearch(ends, at+1); return n }
	began := slices.IndexFunc(r.Moments, func(m moment) bool { return m.Phase != "idle" })
	if began < 0 {
		return nil
	}
	list = []edge{{name: "before", lo: max(1, steps(r.Moments[began].From)-50), moment: began - 1}}
	for i, m := range r.Moments[began:] {
		if m.Changed == "" {
			continue
		}
		n := max(1, steps(m.At))
		list[len(list)-1].hi = max(n, list[len(list)-1].lo)
		list = append(list, edge{name: m.Changed, lo: n, moment: began + i})
	}
	list[len(list)-1].hi = len(ends)
	return list
}

// seen is what was known when the log had n steps: the firmware's variables, and the phases that the disk may be in,
// since a phase is heard of a little after it is on the disk. Where the variables changed between two looks, n goes back
// to the first. Where nothing was written between two changes, meant is the last that is seen; -1: all are.
func (r *record) seen(ends []int64, n, meant int) (int, moment, []string) {
	for _, m := range r.Moments {
		if strings.HasPrefix(m.Changed, "firmware") && m.From < ends[n-1] && ends[n-1] < m.At {
			n, _ = slices.BinarySearch(ends, m.From+1)
			n = max(1, n)
		}
	}
	at := 0
	for i, m := range r.Moments {
		if m.At <= ends[n-1] && (meant < 0 || i <= meant) {
			at = i
		}
	}
	now := r.Moments[at]
	may := []string{now.Phase}
	for _, m := range r.Moments[at+1:] {
		if m.When.Sub(r.Moments[at+1].When) < 2*time.Second {
			may = append(may, m.Phase)
		}
	}
	return n, now, may
}

// replay makes disks out of the record, in order of the steps.
func (r *record) replay() (replay *cut.Replay, ends []int64, err error) {
	raw, err := os.ReadFile(r.path("writes.log"))
	if err != nil {
		return nil, nil, err
	}
	log, ends, err := cut.Decode(raw)
	if err != nil {
		return nil, nil, err
	}
	if err := vm.CopyDisk(r.path("before.raw"), r.path("work.raw"), 0); err != nil {
		return nil, nil, err
	}
	base, err := os.OpenFile(r.path("work.raw"), os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	return &cut.Replay{Base: base, Log: log}, ends, nil
}

// Every edge of an update is cut at its first step, with what was known then and nothing later, and the same number of cuts
// as was asked for comes out.
func TestEdges(t *testing.T) {
	began := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	ends := make([]int64, 100)
	for i := range ends {
		ends[i] = int64(i+1) * 10
	}
	r := &record{}
	add := func(from, at int64, vars int, phase, changed string) {
		r.Moments = append(r.Moments, moment{From: from, At: at, When: began.Add(time.Duration(len(r.Moments)) * time.Minute), Vars: vars, Phase: phase, Changed: changed})
	}
	add(0, 100, 0, "idle", "")
	add(600, 600, 0, "check", "phase check")
	add(650, 700, 0, "armed", "phase armed")
	add(700, 700, 1, "armed", "firmware: once b") // nothing was written since
	add(700, 720, 2, "armed", "firmware: once used up")
	add(900, 900, 2, "idle", "phase idle")
	list := r.edges(ends)
	random := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{7, 15, 60} {
		places := choose(list, n, random)
		if len(places) != n {
			t.Fatalf("%d places for %d", len(places), n)
		}
		for i, e := range list {
			step, now, may := r.seen(ends, places[i].step, places[i].meant)
			if places[i].edge != e.name || step != e.lo && e.name != "firmware: once used up" || !slices.Contains(may, now.Phase) {
				t.Errorf("%s: step %d, %+v", e.name, step, now)
			}
			if e.name == "phase armed" && now.Vars != 0 || e.name == "firmware: once b" && now.Vars != 1 {
				t.Errorf("%s is seen with the variables %d", e.name, now.Vars)
			}
		}
	}
	if step, now, _ := r.seen(ends, 71, -1); step != 70 || now.Vars != 1 {
		t.Errorf("between two looks at the variables: step %d with %d", step, now.Vars)
	}
}
