package meter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

var v1Files = map[string]string{
	"cpuacct/t/c1/cpuacct.usage":        "1234567890\n",
	"memory/t/c1/memory.usage_in_bytes": "10485760\n",
	"memory/t/c1/memory.stat":           "cache 4194304\nrss 6291456\ninactive_file 99\ntotal_cache 4194304\ntotal_inactive_file 2097152\n",
	"pids/t/c1/pids.current":            "7\n",
}

var v2Files = map[string]string{
	"cg/t/c1/cpu.stat":       "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_periods 0\n",
	"cg/t/c1/memory.current": "10485760\n",
	"cg/t/c1/memory.stat":    "anon 6291456\nfile 4194304\ninactive_anon 5\nactive_file 5\ninactive_file 2097152\n",
	"cg/t/c1/pids.current":   "7\n",
}

func TestBothCgroupVersionsReadAlike(t *testing.T) {
	want := Reading{CPUMicros: 1234567, MemoryBytes: 8388608, Pids: 7}
	for name, c := range map[string]struct {
		files map[string]string
		h     Hierarchy
	}{
		"v1": {v1Files, Hierarchy{Roots: map[string]string{"cpuacct": "/cpuacct", "memory": "/memory", "pids": "/pids"}}},
		"v2": {v2Files, Hierarchy{V2: true, Roots: map[string]string{"": "/cg"}}},
	} {
		root := fstest.MapFS{}
		for path, text := range c.files {
			root[path] = &fstest.MapFile{Data: []byte(text)}
		}
		got, err := ReadCgroup(root, c.h, "/t/c1")
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
		if got, err := ReadCgroup(root, c.h, "/t/gone"); err != nil || got != (Reading{}) {
			t.Errorf("%s: a cgroup that is gone reads %+v, %v", name, got, err)
		}
		if _, err := ReadCgroup(root, c.h, "/"); err == nil {
			t.Errorf("%s: the root cgroup was metered", name)
		}
	}
}

func TestHierarchyIsFound(t *testing.T) {
	hybrid := "25 20 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" +
		"26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n" +
		"30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"31 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"32 25 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\nnonsense\n"
	h := FindHierarchy([]byte(hybrid))
	if h.V2 || h.Roots["cpuacct"] != "/sys/fs/cgroup/cpu,cpuacct" || h.Roots["memory"] != "/sys/fs/cgroup/memory" || h.Roots["pids"] == "" {
		t.Errorf("hybrid: %+v", h)
	}
	h = FindHierarchy([]byte("26 25 0:23 / /sys/fs/cgroup rw shared:5 - cgroup2 cgroup2 rw,nsdelegate\n"))
	if !h.V2 || h.Roots[""] != "/sys/fs/cgroup" {
		t.Errorf("unified: %+v", h)
	}
}

// box is a machine whose containers use what the test says; its store may fail.
type box struct {
	wall, up time.Duration
	boot     int
	targets  map[string]*Target
	reads    map[string]*Reading
	blob     []byte
	full     bool
}

func (b *box) Load() ([]byte, error) { return b.blob, nil }
func (b *box) Save(blob []byte) error {
	if b.full {
		return errors.New("disk full")
	}
	b.blob = bytes.Clone(blob)
	return nil
}
func (b *box) Read(t Target) (Reading, error) {
	if r := b.reads[t.ID]; r != nil {
		return *r, nil
	}
	return Reading{}, nil
}
func (b *box) now() time.Time { return time.Unix(1_700_000_000, 0).Add(b.wall) }
func (b *box) list() (out []Target) {
	for _, t := range b.targets {
		out = append(out, *t)
	}
	return out
}
func (b *box) pass(d time.Duration) { b.wall += d; b.up += d }

func (b *box) meter(t interface{ Fatal(...any) }) *Meter {
	m, err := New(Config{Store: b, Reader: b, Targets: b.list, Now: b.now, Uptime: func() time.Duration { return b.up }, BootID: fmt.Sprint("boot", b.boot)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Whatever is restarted, killed or full: what the records say in sum is what the
// containers used, no more, and no less once a last reading was possible. Records
// neither overlap nor leave a gap.
func TestUseIsCountedExactlyOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &box{up: time.Hour, targets: map[string]*Target{}, reads: map[string]*Reading{}}
		m := b.meter(t)
		var truth, sum api.ContainerUse
		var end int64
		var journal []api.Usage // durable records, by the agent's rule
		n := 0
		record := func() {
			u, err := m.Collect()
			if err != nil {
				return
			}
			// The agent dies at any point between these steps.
			cut := rapid.IntRange(0, 2).Draw(t, "cut")
			if cut == 0 {
				m = b.meter(t)
				return
			}
			if len(journal) == 0 || journal[len(journal)-1].To != u.To {
				journal = append(journal, u)
			}
			if cut == 1 {
				m = b.meter(t)
				return
			}
			_ = m.Commit(u.To)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			b.pass(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.SampledFrom([]string{"start", "work", "work", "sample", "end", "clear", "kill", "record", "record", "full", "clock"}).Draw(t, "step") {
			case "start":
				n++
				id := fmt.Sprint("c#", n)
				b.targets[id] = &Target{ID: id, App: "a", Service: "s", Cgroup: "/x", Started: b.now()}
				b.reads[id] = &Reading{MemoryBytes: 1000}
			case "work":
				for id, r := range b.reads {
					if b.targets[id].Ended.IsZero() {
						c, x := uint64(rapid.IntRange(0, 1e6).Draw(t, "cpu")), uint64(rapid.IntRange(0, 1e6).Draw(t, "rx"))
						r.CPUMicros, r.RxBytes, r.TxBytes = r.CPUMicros+c, r.RxBytes+x, r.TxBytes+2*x
						truth.CPUMicros, truth.RxBytes, truth.TxBytes = truth.CPUMicros+c, truth.RxBytes+x, truth.TxBytes+2*x
					}
				}
			case "sample":
				_ = m.Sample()
			case "end":
				for _, tgt := range b.targets {
					if tgt.Ended.IsZero() {
						tgt.Ended = b.now()
						truth.RunMillis += uint64(tgt.Ended.Sub(tgt.Started).Milliseconds())
						break
					}
				}
			case "clear": // the container is removed, after its last reading is kept
				for id, tgt := range b.targets {
					if !tgt.Ended.IsZero() && m.Final(*tgt) == nil {
						delete(b.targets, id)
						delete(b.reads, id)
						if rapid.Bool().Draw(t, "forget") {
							m.Forget(id)
						}
						break
					}
				}
			case "kill":
				m = b.meter(t)
			case "record":
				record()
			case "full":
				b.full = !b.full
			}
		}
		b.full = false
		for id, tgt := range b.targets {
			if tgt.Ended.IsZero() {
				tgt.Ended = b.now()
				truth.RunMillis += uint64(tgt.Ended.Sub(tgt.Started).Milliseconds())
			}
			_ = id
		}
		for range 2 {
			u, err := m.Collect()
			if err != nil {
				t.Fatal(err)
			}
			if len(journal) == 0 || journal[len(journal)-1].To != u.To {
				journal = append(journal, u)
			}
			if err := m.Commit(u.To); err != nil {
				t.Fatal(err)
			}
		}
		for _, u := range journal {
			if u.From < end || end != 0 && u.From != end || u.To <= u.From {
				t.Fatalf("interval %d to %d follows one that ends at %d", u.From, u.To, end)
			}
			end = u.To
			for _, use := range u.Uses {
				sum.CPUMicros += use.CPUMicros
				sum.RxBytes += use.RxBytes
				sum.TxBytes += use.TxBytes
				sum.RunMillis += use.RunMillis
			}
		}
		if sum.CPUMicros != truth.CPUMicros || sum.RxBytes != truth.RxBytes || sum.TxBytes != truth.TxBytes || sum.RunMillis != truth.RunMillis {
			t.Fatalf("counted %+v, used %+v", sum, truth)
		}
	})
}

func TestMemoryIsIntegrated(t *testing.T) {
	b := &box{up: time.Hour, targets: map[string]*Target{}, reads: map[string]*Reading{}}
	b.targets["c#0"] = &Target{ID: "c#0", App: "a", Service: "s", Started: b.now()}
	b.reads["c#0"] = &Reading{MemoryBytes: 1 << 20}
	m := b.meter(t)
	for range 100 { // from 1 to 2 MiB in 100 s: 150 MiB·s
		b.pass(time.Second)
		b.reads["c#0"].MemoryBytes += (1 << 20) / 100
		if err := m.Sample(); err != nil {
			t.Fatal(err)
		}
	}
	u, err := m.Collect()
	if err != nil {
		t.Fatal(err)
	}
	want := 150.0 * (1 << 20)
	if got := float64(u.Uses[0].MemoryByteSeconds); got < want*0.99 || got > want*1.01 {
		t.Errorf("%.0f byte-seconds, want about %.0f", got, want)
	}
	if u.Uses[0].RunMillis != 100_000 {
		t.Errorf("ran %d ms", u.Uses[0].RunMillis)
	}
}

func TestClockStepsAndRebootsDoNotInventTime(t *testing.T) {
	b := &box{up: time.Hour, targets: map[string]*Target{}, reads: map[string]*Reading{}}
	b.targets["c#0"] = &Target{ID: "c#0", App: "a", Service: "s", Started: b.now()}
	b.reads["c#0"] = &Reading{CPUMicros: 10}
	m := b.meter(t)
	_ = m.Sample()
	b.pass(10 * time.Second)
	b.wall += 1000 * time.Hour // the clock is set
	u, err := m.Collect()
	if err != nil || u.Uses[0].RunMillis != 10_000 {
		t.Fatalf("%+v, %v", u, err)
	}
	_ = m.Commit(u.To)
	b.wall -= 2000 * time.Hour
	b.up, b.boot = 100*time.Hour, 1 // and the device is restarted, long ago
	m = b.meter(t)
	if u, err = m.Collect(); err != nil || len(u.Uses) != 0 || u.From >= u.To {
		t.Fatalf("after a reboot: %+v, %v", u, err)
	}
}

// Whichever way the clock is set, and wherever it stands: intervals have a length, none
// overlap, and run time is what passed.
func TestIntervalsHaveALengthWhenTheClockIsSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &box{up: time.Hour, wall: -1_700_000_000 * time.Second, targets: map[string]*Target{}, reads: map[string]*Reading{}}
		m := b.meter(t)
		b.targets["c#0"] = &Target{ID: "c#0", App: "a", Service: "s", Started: b.now()}
		b.reads["c#0"] = &Reading{}
		_ = m.Sample()
		var last int64
		var ran, sum time.Duration
		for n := range rapid.IntRange(2, 20).Draw(t, "intervals") {
			// What starts and is not read yet when the clock is set is the hardest.
			id := fmt.Sprintf("d%d#0", n)
			b.targets[id] = &Target{ID: id, App: "a", Service: "s", Started: b.now()}
			b.wall += rapid.SampledFrom([]time.Duration{0, 0, time.Hour, -time.Hour, 40_000 * time.Hour}).Draw(t, "set")
			b.pass(15 * time.Minute)
			ran += time.Duration(n+2) * 15 * time.Minute
			u, err := m.Collect()
			if err != nil {
				t.Fatal(err)
			}
			if length := time.Duration(u.To-u.From) * time.Millisecond; length < 7*time.Minute || last != 0 && u.From != last {
				t.Fatalf("from %d to %d (%s) after %d", u.From, u.To, length, last)
			}
			last = u.To
			for _, use := range u.Uses {
				sum += time.Duration(use.RunMillis) * time.Millisecond
			}
			if sum > ran {
				t.Fatalf("%s of run time in %s", sum, ran)
			}
			if err := m.Commit(u.To); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The host's own reader, on a namespace that is none and a cgroup that is none.
func TestHostReadsNothingAsNothing(t *testing.T) {
	r, err := Host()
	if err != nil {
		t.Skip("needs a cgroup file system: " + err.Error())
	}
	plain := t.TempDir() + "/plain"
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := r.Read(Target{Cgroup: "/tributary/none-such", NetNS: plain})
	if err != nil || got != (Reading{}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzState(f *testing.F) {
	s, _ := decodeState(nil)
	s.advance(Target{ID: "x", App: "a", Service: "s"}, Reading{CPUMicros: 5}, instant{wall: 1, up: 1, boot: "b"})
	blob, _ := s.encode()
	f.Add(blob)
	f.Add([]byte{0xa1, 0x01, 0x01})
	f.Add([]byte("not cbor"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		again, err := s.encode()
		if err != nil {
			return
		}
		if _, err := decodeState(again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}

func FuzzCgroup(f *testing.F) {
	for _, files := range []map[string]string{v1Files, v2Files} {
		for _, text := range files {
			f.Add([]byte(text), []byte("1\n"))
		}
	}
	f.Fuzz(func(t *testing.T, stat, number []byte) {
		for _, parse := range []func(a, b, c, d []byte) (Reading, error){ParseV1, ParseV2} {
			if r, err := parse(stat, number, stat, number); err == nil && r.MemoryBytes > 1<<63 && len(number) < 18 {
				t.Fatalf("memory underflow: %+v", r)
			}
		}
		FindHierarchy(stat)
	})
}

// Who lists the targets has a lock, under which it also calls the meter: neither waits
// for the other for ever.
func TestTargetsMayLockWhatCallsTheMeter(t *testing.T) {
	b := &box{targets: map[string]*Target{}, reads: map[string]*Reading{}}
	var mu sync.Mutex
	inside := make(chan bool)
	m := b.meter(t)
	m.cfg.Targets = func() []Target {
		inside <- true
		mu.Lock()
		defer mu.Unlock()
		return nil
	}
	done := make(chan error, 2)
	for _, cut := range []func() error{m.Sample, func() error { _, err := m.Collect(); return err }} {
		mu.Lock()
		go func() { done <- cut() }()
		<-inside
		m.Retain(nil)
		mu.Unlock()
		if err := wait.For(t, "the meter and its caller", done); err != nil {
			t.Fatal(err)
		}
	}
}

// A container that ends after it was listed and before it is read is counted once.
func TestEndBetweenListAndReading(t *testing.T) {
	for name, forget := range map[string]func(*Meter, string){
		"forgotten":          (*Meter).Forget,
		"no longer retained": func(m *Meter, _ string) { m.Retain(nil) },
	} {
		b := &box{targets: map[string]*Target{}, reads: map[string]*Reading{}}
		x := Target{ID: "x", App: "app", Service: "web"}
		b.targets["x"], b.reads["x"] = &x, &Reading{CPUMicros: 7}
		m := b.meter(t)
		list := m.cfg.Targets
		m.cfg.Targets = func() []Target {
			out := list()
			if err := m.Final(x); err != nil {
				t.Fatal(err)
			}
			forget(m, "x")
			return out
		}
		u, err := m.Collect()
		if err != nil || len(u.Uses) != 1 || u.Uses[0].CPUMicros != 7 {
			t.Errorf("%s: counted %+v, %v; want 7 µs once", name, u.Uses, err)
		}
	}
}

// What services used of cards goes into each interval once, over crashes and counters that
// begin anew.
func TestAccelerators(t *testing.T) {
	store := &memory{}
	cards := map[string]api.AcceleratorUse{"shop/web": {HeldMillis: 1000, EnergyMillijoules: 5}}
	config := Config{Store: store, Reader: nothing{}, Now: func() time.Time { return time.Unix(1000, 0) }, Uptime: func() time.Duration { return time.Hour }, BootID: "b",
		Accelerators: func() map[string]api.AcceleratorUse { return cards }}
	m, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	collect := func() (out api.AcceleratorUse) {
		t.Helper()
		u, err := m.Collect()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Commit(u.To); err != nil {
			t.Fatal(err)
		}
		for _, c := range u.Uses {
			if c.App != "shop" || c.Service != "web" {
				t.Errorf("%+v", c)
			}
			out = c.Accelerator
		}
		return out
	}
	for i, c := range []struct {
		now  uint64
		want uint64
	}{{1000, 1000}, {1000, 0}, {1700, 700}, {300, 300}, {400, 100}} {
		if i == 2 { // a crash: what is on the disk is all
			if m, err = New(config); err != nil {
				t.Fatal(err)
			}
		}
		cards = map[string]api.AcceleratorUse{"shop/web": {HeldMillis: c.now, EnergyMillijoules: 5}}
		if got := collect(); got.HeldMillis != c.want {
			t.Errorf("%d: %+v, want %d", i, got, c.want)
		}
	}
	store.fails = true
	cards = map[string]api.AcceleratorUse{"shop/web": {HeldMillis: 900, EnergyMillijoules: 5}}
	if _, err := m.Collect(); err == nil {
		t.Fatal("a full disk takes it")
	}
	store.fails = false
	if got := collect(); got.HeldMillis != 500 {
		t.Errorf("after a full disk %+v, want 500", got)
	}
}

type memory struct {
	blob  []byte
	fails bool
}

func (s *memory) Load() ([]byte, error) { return s.blob, nil }

func (s *memory) Save(b []byte) error {
	if s.fails {
		return errors.New("the disk is full")
	}
	s.blob = b
	return nil
}

type nothing struct{}

func (nothing) Read(Target) (Reading, error) { return Reading{}, nil }
