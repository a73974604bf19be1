package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The model: a disk with two slots and the file of the state, a firmware with two variables and a boot manager that
// counts, releases that behave in their ways, and power that goes at any point. The real Step runs on it.

type kind string

const (
	good        kind = "good"
	hangs       kind = "hangs" // before the agent: hang, panic, unmountable root
	agentDies   kind = "agent"
	silent      kind = "silent" // cannot reach the parent
	breaksApps  kind = "apps"
	noKernel    kind = "kernel" // a must of boot fails
	unsteady    kind = "unsteady"
	wrongArch   kind = "arch"
	below       kind = "below"
	unsignedRel kind = "unsigned"
)

type candidate struct {
	Release
	kind kind
}

// slotDisk is what lies in the partitions of a slot. An empty root is torn.
type slotDisk struct {
	root    string // content of root and verity tree
	ids     string // GPT IDs
	esp     string // root hash that the UKI names; "" when the ESP is torn
	counted int    // starts counted by the boot manager
	blessed bool
}

type world struct {
	t        failer
	releases map[string]candidate // by root hash
	byDigest map[string]candidate
	slots    map[Slot]*slotDisk
	file     []byte // update.json
	order    []Slot
	next     Slot
	floor    uint64

	running  Slot
	boot     int
	uptime   time.Duration
	now      time.Time
	done     *Done
	parentUp bool
	open     bool
	want     *Want
	apps     []string
	held     bool // until another release runs than the first

	cut     int // effects until the power goes; -1: it stays
	entered map[string]int
	cleared map[string]int
	healthy map[string]bool // boots in which all conditions held once
}

var errCut = errors.New("power cut")

// effect is one thing that is on the disk or in the firmware afterwards, whole.
func (w *world) effect() {
	if w.cut == 0 {
		panic(errCut)
	}
	if w.cut > 0 {
		w.cut--
	}
}

func (w *world) bootable(s Slot) bool {
	d := w.slots[s]
	return d.esp != "" && d.esp == d.ids && d.root == d.esp
}

// start is what the firmware does: BootNext, used up before it is entered, then the order, then whatever ESP there is.
func (w *world) start() {
	w.done, w.cut, w.uptime = nil, -1, 0
	for range 4 {
		list := slices.Clone(w.order)
		if w.next != "" {
			list = append([]Slot{w.next}, list...)
			w.next = ""
		}
		for _, s := range append(list, "a", "b") {
			if !w.bootable(s) {
				continue
			}
			d := w.slots[s]
			if !d.blessed {
				d.counted++
			}
			w.boot++
			r := w.releases[d.root]
			if st := w.state(); st.Good != "" && s != st.Good && w.bootable(st.Good) && (st.Phase != Confirming || w.order[0] != s) {
				w.entered[fmt.Sprint(r.Digest, "/", w.attempt())]++
			}
			if r.kind == hangs {
				break // the watchdog resets the box
			}
			w.running = s
			return
		}
	}
	w.t.Fatalf("BRICK: nothing starts: order %v, slots a %+v b %+v", w.order, *w.slots["a"], *w.slots["b"])
}

func (w *world) attempt() uint64 {
	if t := w.state().Target; t != nil {
		return t.Attempt
	}
	return 0
}

func (w *world) state() State {
	if w.file == nil {
		return State{Format: format, Phase: Idle, Slots: map[Slot]Release{}, WellSince: -1}
	}
	s, err := Decode(w.file)
	if err != nil {
		w.t.Fatalf("the state cannot be read again: %v", err)
	}
	return s
}

func (w *world) facts() Facts {
	d := w.slots[w.running]
	r := w.releases[d.root]
	other := w.slots[w.running.Other()]
	f := Facts{Now: w.now, Uptime: w.uptime, Boot: fmt.Sprint(w.boot), Running: w.running, Root: d.root, Version: r.Version, Counter: r.Counter,
		Arch: "amd64", Profile: "vm", Floor: w.floor, Variables: true, Order: w.order, Next: w.next, Entered: other.counted > 0, Blessed: d.blessed,
		Want: w.want, Open: w.open, Done: w.done}
	minute := int(w.uptime / time.Minute)
	f.Health.Known, f.Health.Wanted = true, w.apps
	f.Health.Kernel = Condition{OK: r.kind != noKernel, Detail: "a must failed"}
	f.Health.Agent = Condition{OK: r.kind != agentDies && (r.kind != unsteady || minute%2 == 0), Detail: "it crashes"}
	f.Health.Parent = Condition{OK: w.parentUp && r.kind != silent, Detail: "no answer"}
	if f.Health.Held = w.held && r.Digest == "sha256:0"; f.Health.Held {
		return f
	}
	if r.kind != breaksApps && w.uptime >= 2*time.Minute {
		f.Health.Apps = w.apps
	}
	if f.Health.Kernel.OK && f.Health.Agent.OK && f.Health.Parent.OK && r.kind != breaksApps {
		w.healthy[d.root] = true
	}
	return f
}

// turn is one turn of the loop: observe, decide, keep, do. It is the shell of run.go in small.
func (w *world) turn() (did Do) {
	defer func() {
		if p := recover(); p == errCut {
			w.start()
		} else if p != nil {
			panic(p)
		}
	}()
	f := w.facts()
	before := w.state()
	s, do := Step(before, f, Default)
	if s.Later != nil && (before.Later == nil || *before.Later != *s.Later) {
		w.cleared[fmt.Sprint(s.Later.Digest, "/", s.Later.Attempt)]++
	}
	if before.Phase == Confirming && s.Phase == Verifying {
		w.cleared[fmt.Sprint(s.Target.Digest, "/", s.Target.Attempt)]++
	}
	if s.Phase == Confirming || before.Good != "" && s.Good != before.Good && before.Phase == Confirming {
		if !w.healthy[w.slots[s.Good.Other()].root] && !w.healthy[f.Root] {
			w.t.Fatalf("confirmed without health: %+v", s)
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		w.t.Fatal(err)
	}
	if string(b) != string(w.file) {
		w.effect()
		w.file = b
	}
	w.do(do, s)
	return do
}

func (w *world) do(do Do, s State) {
	other := w.running.Other()
	ok := &Done{Do: do}
	switch do {
	case Nothing:
		ok = nil
	case Check:
		r := w.byDigest[s.Target.Digest]
		if r.kind == unsignedRel {
			ok = &Done{Do: Check, Err: errors.New("signed by nobody we know"), Last: true, Why: CauseUnsigned}
			break
		}
		ok.Found = &Description{Release: r.Release, Arch: "amd64", Profile: "vm"}
		if r.kind == wrongArch {
			ok.Found.Arch = "arm64"
		}
	case Fetch, Verify:
		w.effect()
	case Write:
		if other == w.running {
			w.t.Fatal("writes to the running slot")
		}
		if w.order[0] == other {
			w.t.Fatal("writes to the slot that the firmware starts first")
		}
		d := w.slots[other]
		for _, f := range []func(){
			func() { d.ids = "" }, func() { d.root = "" }, func() { d.root = s.Target.RootHash }, func() { d.esp = "" },
			func() { d.ids = s.Target.RootHash }, func() { d.esp, d.counted, d.blessed = s.Target.RootHash, 0, false },
		} {
			w.effect()
			f()
		}
	case Arm:
		w.effect()
		w.next = other
	case Disarm:
		w.effect()
		w.next = ""
	case Reboot:
		w.start()
		return
	case Bless:
		w.effect()
		w.slots[w.running].blessed = true
	case Order:
		if !w.healthy[w.slots[w.running].root] {
			w.t.Fatal("the order changes for a release that was never healthy")
		}
		w.effect()
		w.order = []Slot{w.running, other}
	case Raise:
		w.effect()
		w.floor = max(w.floor, w.releases[w.slots[w.running].root].Counter)
	}
	w.done = ok
}

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func newWorld(t failer) *world {
	w := &world{t: t, releases: map[string]candidate{}, byDigest: map[string]candidate{}, entered: map[string]int{}, cleared: map[string]int{}, healthy: map[string]bool{},
		now: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), parentUp: true, open: true, apps: []string{"web"}, order: []Slot{"a", "b"}, cut: -1, floor: 5}
	kinds := []kind{good, good, hangs, agentDies, silent, breaksApps, noKernel, unsteady, wrongArch, below, unsignedRel}
	for i, k := range kinds {
		r := candidate{Release{Digest: fmt.Sprintf("sha256:%d", i), Version: fmt.Sprintf("1.%d", i), Counter: 5, RootHash: strings.Repeat(fmt.Sprintf("%02x", i), 32)}, k}
		if k == below {
			r.Counter = 4
		}
		w.releases[r.RootHash], w.byDigest[r.Digest] = r, r
	}
	first := w.byDigest["sha256:0"]
	w.slots = map[Slot]*slotDisk{"a": {root: first.RootHash, ids: first.RootHash, esp: first.RootHash, blessed: true}, "b": {}}
	w.start()
	return w
}

func (w *world) check() {
	s := w.state()
	for key, n := range w.entered {
		if n > 1+w.cleared[key] {
			w.t.Fatalf("release %s was tried %d times, cleared of blame %d times", key, n, w.cleared[key])
		}
	}
	if g := s.Good; g != "" {
		if !w.bootable(g) {
			w.t.Fatalf("the good slot %s cannot be started: %+v", g, *w.slots[g])
		}
		if k := w.releases[w.slots[g].root].kind; k != good {
			w.t.Fatalf("a release that %s is taken for good", k)
		}
	}
	for _, d := range w.slots {
		if r := w.releases[d.root]; r.kind == below || r.kind == wrongArch || r.kind == unsignedRel {
			w.t.Fatalf("a release (%s) that is to be refused was written", r.kind)
		}
	}
}

// settle runs on without cuts until nothing more is done.
func (w *world) settle() {
	w.cut, w.open, w.parentUp = -1, true, true
	quiet := 0
	for i := 0; quiet < 90; i++ {
		if i > 2000 {
			w.t.Fatalf("does not come to rest: %+v", w.state())
		}
		if w.turn() == Nothing {
			quiet++
			w.uptime += time.Minute
			w.now = w.now.Add(time.Minute)
			if s := w.state(); s.Phase != Idle {
				quiet = 0
			} else if s.Later != nil && w.want != nil { // with nothing wanted, nothing is waited for
				quiet = 0
				w.now = w.now.Add(time.Hour)
			}
		}
		w.check()
	}
}

func TestAnyInterleaving(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 120).Draw(t, "length") {
			switch rapid.IntRange(0, 15).Draw(t, "event") {
			case 0:
				w.start() // power
			case 1, 2, 3:
				w.cut = rapid.IntRange(0, 8).Draw(t, "cut after")
			case 4:
				w.parentUp = !w.parentUp
			case 5:
				w.open = !w.open
			case 6, 7:
				w.want = nil
				if n := rapid.IntRange(0, 12).Draw(t, "release"); n < len(w.byDigest) {
					w.want = &Want{Digest: fmt.Sprintf("sha256:%d", n), Attempt: rapid.Uint64Range(0, 1).Draw(t, "attempt")}
				}
			case 8:
				w.uptime += 21 * time.Minute
				w.now = w.now.Add(21 * time.Minute)
			default:
				w.turn()
				w.uptime += 30 * time.Second
				w.now = w.now.Add(30 * time.Second)
			}
			w.check()
		}
		w.settle()
		s := w.state()
		if s.Phase != Idle {
			t.Fatalf("at rest in phase %s", s.Phase)
		}
		if w.order[0] != w.running || s.Good != w.running {
			t.Fatalf("at rest in slot %s; good is %s, the order %v", w.running, s.Good, w.order)
		}
		if w.want == nil {
			return
		}
		wanted := w.byDigest[w.want.Digest]
		refusal := s.Refusal(w.want, w.slots[w.running].root)
		switch {
		case w.slots[w.running].root == wanted.RootHash:
		case refusal == nil || refusal.Reason == "":
			t.Fatalf("release %s (%s) neither runs nor is refused: %+v", w.want.Digest, wanted.kind, s)
		case wanted.kind == good && refusal.Cause != CauseLost && refusal.Cause != CauseApps && refusal.Cause != CauseParent && refusal.Cause != CauseAgent && refusal.Cause != CauseUnsteady:
			t.Fatalf("a good release is refused: %s", refusal.Reason)
		}
	})
}

// TestWithdrawnWhileWaiting: a release that was cleared of blame waits to be tried again. Once nobody wants it the box is
// at rest; another one that is wanted then does not inherit the wait; and the same one does.
func TestWithdrawnWhileWaiting(t *testing.T) {
	later := Later{Digest: "sha256:1", NotBefore: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC), Times: 3}
	for _, c := range []struct {
		want *Want
		runs Slot
		kept bool
	}{{nil, "a", true}, {&Want{Digest: "sha256:0"}, "a", false}, {&Want{Digest: "sha256:5"}, "a", false}, {&Want{Digest: "sha256:1"}, "b", false}} {
		w := newWorld(t)
		w.turn()
		s := w.state()
		s.Later = &later
		w.file, _ = json.Marshal(s)
		w.want = c.want
		if w.turn() != Nothing && c.want == nil {
			t.Fatal("something is done though nothing is wanted")
		}
		w.settle()
		if s := w.state(); w.running != c.runs || (s.Later != nil) != c.kept {
			t.Fatalf("wanted %+v: in slot %s, %+v", c.want, w.running, s.Later)
		}
	}
}

// TestStories are the ways an update goes, without cuts.
func TestStories(t *testing.T) {
	for _, c := range []struct {
		n     int
		kind  kind
		cause Cause
		words string
	}{
		{1, good, "", ""}, {2, hangs, CauseLost, "hung, crashed or lost power"}, {3, agentDies, CauseAgent, "the agent was not healthy within 5 minutes: it crashes"},
		{4, silent, CauseParent, "the parent was not reached within 10 minutes"}, {5, breaksApps, CauseApps, "web ran before"},
		{6, noKernel, CauseKernel, "within 2 minutes"}, {7, unsteady, CauseAgent, "agent"}, {8, wrongArch, CauseUnfit, "arm64"},
		{9, below, CauseFloor, "none below 5"}, {10, unsignedRel, CauseUnsigned, "signed by nobody"},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			w := newWorld(t)
			w.uptime = 30 * time.Minute
			w.want = &Want{Digest: fmt.Sprintf("sha256:%d", c.n)}
			w.settle()
			s := w.state()
			if c.cause == "" {
				if w.running != "b" || s.Good != "b" || w.order[0] != "b" || !w.slots["b"].blessed {
					t.Fatalf("not confirmed: %+v", s)
				}
				return
			}
			r := s.Refusal(w.want, w.slots["a"].root)
			if w.running != "a" || w.order[0] != "a" || r == nil || r.Cause != c.cause || !strings.Contains(r.Reason, c.words) {
				t.Fatalf("slot %s, refusal %+v", w.running, r)
			}
			tried := w.entered[fmt.Sprintf("sha256:%d/0", c.n)]
			w.want.Attempt++ // something changes
			w.settle()
			if again := w.entered[fmt.Sprintf("sha256:%d/1", c.n)]; again != tried {
				t.Fatalf("tried %d times, and %d times after something changed", tried, again)
			}
		})
	}
}

// TestHeldApps: a box that takes its apps in another release alone does not wait for them before it tries that.
func TestHeldApps(t *testing.T) {
	w := newWorld(t)
	w.held, w.want = true, &Want{Digest: "sha256:1"}
	for range 10 { // no time passes
		w.turn()
	}
	if s := w.state(); w.running != "b" || s.Phase != Trial {
		t.Fatalf("slot %s runs after %s, and the update stands in %s", w.running, w.uptime, s.Phase)
	}
	w.settle()
	if s := w.state(); s.Good != "b" {
		t.Fatalf("not confirmed: %+v", s)
	}
}

// TestSilentParent: the parent is away before and after; the release is not to blame and is tried later.
func TestSilentParent(t *testing.T) {
	w := newWorld(t)
	w.want = &Want{Digest: "sha256:1"}
	for range 400 { // until it is on trial, then the parent goes
		if w.state().Phase == Trial {
			w.parentUp = false
		}
		w.turn()
		w.uptime += 30 * time.Second
		w.now = w.now.Add(30 * time.Second)
		w.check()
		if l := w.state().Later; l != nil {
			break
		}
	}
	s := w.state()
	if s.Later == nil || len(s.Refused) > 0 || w.running != "a" {
		t.Fatalf("not cleared of blame: %+v", s)
	}
	w.settle() // the parent is back
	if w.running != "b" || w.state().Good != "b" {
		t.Fatalf("not tried later: %+v", w.state())
	}
}
