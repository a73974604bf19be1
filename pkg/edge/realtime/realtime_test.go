package realtime

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/cpulist"
	"tributary.dev/tributary/tests/mutation"
)

// TestMain keeps no files of failures: checks are taken out here, so that tests fail.
func TestMain(m *testing.M) {
	_ = flag.Set("rapid.nofailfile", "true") // rapid's own flag
	os.Exit(m.Run())
}

// machine answers as a kernel does: pinned interrupts are not moved, memory for huge pages
// ends.
type machine struct {
	fstest.MapFS
	pinned map[string]bool
	most   map[string]string // of pages
	boot   string
	writes int
	cutAt  int // the power goes before this write; 0 never
}

var errCut = errors.New("cut")

func (m *machine) Boot() string { return m.boot }

func (m *machine) Write(path, value string) error {
	if m.writes++; m.cutAt > 0 && m.writes >= m.cutAt {
		return errCut
	}
	if _, ok := m.MapFS[path]; !ok {
		return fs.ErrNotExist
	}
	if m.pinned[path] {
		return syscall.EIO
	}
	if most, ok := m.most[path]; ok && len(value) >= len(most) && value > most {
		value = most
	}
	dir, governor := strings.CutSuffix(path, "scaling_governor")
	if other, ok := strings.CutSuffix(path, "energy_performance_preference"); ok && value != fullRate && m.said(other+"scaling_governor") == fullRate {
		return syscall.EBUSY // as intel_pstate and amd_pstate answer
	}
	m.put(path, value)
	if preference := dir + "energy_performance_preference"; governor && value == fullRate && m.said(preference) != "" {
		m.put(preference, fullRate)
	}
	if dir, ok := strings.CutSuffix(path, "smp_affinity_list"); ok {
		on := ""
		if list := cpulist.Parse(value); len(list) > 0 {
			on = fmt.Sprint(list[0])
		}
		m.MapFS[dir+"effective_affinity_list"] = &fstest.MapFile{Data: []byte(on + "\n")}
	}
	return nil
}

func (m *machine) text() map[string]string {
	out := map[string]string{}
	for path, f := range m.MapFS {
		if f.Mode.IsRegular() && !strings.Contains(path, "effective") {
			out[path] = strings.TrimSpace(string(f.Data))
		}
	}
	return out
}

// kept is a store; it forgets nothing, and after cut takes nothing more.
type kept struct {
	m map[string]string
	n int // puts left; negative for no end
}

func (s *kept) Load(_ string, fn func(key, value []byte) error) error {
	for k, v := range s.m {
		if err := fn([]byte(k), []byte(v)); err != nil {
			return err
		}
	}
	return nil
}

func (s *kept) Put(_, key string, value []byte) error {
	if s.n == 0 {
		return errCut
	}
	s.n--
	if len(value) == 0 {
		delete(s.m, key)
	} else {
		s.m[key] = string(value)
	}
	return nil
}

// said is what a file says; empty where there is none.
func (m *machine) said(path string) string {
	b, _ := fs.ReadFile(m.MapFS, path)
	return strings.TrimSpace(string(b))
}

func (m *machine) put(path, text string) { m.MapFS[path] = &fstest.MapFile{Data: []byte(text + "\n")} }

// some draws a machine of eight processors.
func some(t *rapid.T) *machine {
	m := &machine{MapFS: fstest.MapFS{}, pinned: map[string]bool{}, most: map[string]string{}, boot: "one"}
	m.put(filePossible, "0-7")
	m.put(fileIsolated, rapid.SampledFrom([]string{"", "2-7", "3,5", "7"}).Draw(t, "isolated"))
	m.put(fileDefault, rapid.SampledFrom([]string{"ff", "ffffffff,ffffffff", "0f", "80"}).Draw(t, "default"))
	if rapid.Bool().Draw(t, "workqueues") {
		m.put(fileWorkqueue, "ff")
	}
	for n := range rapid.IntRange(0, 10).Draw(t, "interrupts") {
		dir := fmt.Sprintf("%s/%d/", dirIRQ, n)
		cpus := rapid.SampledFrom([]string{"0-7", "2", "0-1", "6-7", "0"}).Draw(t, "affinity")
		m.put(dir+"smp_affinity_list", cpus)
		m.put(dir+"effective_affinity_list", fmt.Sprint(cpulist.Parse(cpus)[0]))
		m.put(dir+"eth0/x", "")
		m.pinned[dir+"smp_affinity_list"] = rapid.IntRange(0, 4).Draw(t, "pinned") == 0
	}
	for n := range 8 {
		if dir := fmt.Sprintf("%s/cpu%d/cpufreq/", dirCPU, n); rapid.Bool().Draw(t, "cpufreq") {
			governor := rapid.SampledFrom([]string{"schedutil", fullRate}).Draw(t, "governor")
			m.put(dir+"scaling_governor", governor)
			m.put(dir+"scaling_available_governors", rapid.SampledFrom([]string{"performance schedutil", "schedutil"}).Draw(t, "governors"))
			if rapid.Bool().Draw(t, "chooses its rate itself") {
				m.put(dir+"energy_performance_available_preferences", "default performance balance_performance balance_power power")
				preference := rapid.SampledFrom([]string{"balance_performance", fullRate, "power"}).Draw(t, "preference")
				if governor == fullRate {
					preference = fullRate // none other is then
				}
				m.put(dir+"energy_performance_preference", preference)
			}
		}
	}
	for n := range 2 {
		path := fmt.Sprintf("%s/node%d/hugepages/hugepages-2048kB/nr_hugepages", dirNode, n)
		m.put(path, rapid.SampledFrom([]string{"0", "4"}).Draw(t, "pages"))
		m.most[path] = "9"
	}
	return m
}

func drawWish(t *rapid.T) Wish {
	w := Wish{RealTime: rapid.Bool().Draw(t, "rt"), Isolate: rapid.SampledFrom([]string{"", "2-N"}).Draw(t, "isolate")}
	for n := range rapid.IntRange(0, 2).Draw(t, "sizes") {
		w.Pages = append(w.Pages, Pages{SizeKiB: 2048, Node: n - 1 + rapid.IntRange(0, 1).Draw(t, "node"), Count: int64(rapid.IntRange(0, 8).Draw(t, "count"))})
	}
	return w
}

func open(t interface{ Fatal(...any) }, m *machine, s *kept, w Wish) *Keeper {
	k, err := New(m, s, w, func() time.Time { return time.Unix(7, 0) }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Nothing that can be moved stays on processors that are kept free; nothing is done twice.
func TestIsolatedProcessorsAreLeftAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, w := some(t), drawWish(t)
		k := open(t, m, &kept{m: map[string]string{}, n: -1}, w)
		if err := k.Apply(); err != nil {
			t.Fatal(err)
		}
		now := Look(m)
		for _, irq := range now.IRQs {
			if overlap(irq.May, now.Isolated) && !m.pinned[irq.path()] {
				t.Fatalf("interrupt %d may go to %v of %v", irq.Number, irq.May, now.Isolated)
			}
			told := slices.ContainsFunc(k.Warnings(), func(w api.Warning) bool { return w.Name == "interrupts-on-isolated-cpus" })
			if overlap(irq.On, now.Isolated) && len(without(irq.May, now.Isolated)) > 0 && !told {
				t.Fatalf("interrupt %d is on %v, and nobody says so", irq.Number, irq.On)
			}
		}
		if overlap(now.Masks[fileDefault], now.Isolated) || overlap(now.Masks[fileWorkqueue], now.Isolated) {
			t.Fatalf("masks: %v of %v", now.Masks, now.Isolated)
		}
		for _, rates := range []map[string]string{now.Governors, now.Preferences} {
			for path, is := range rates {
				if is != fullRate {
					t.Fatalf("%s: %s", path, is)
				}
			}
		}
		before := m.writes
		if err := k.Apply(); err != nil || m.writes != before+len(slices.DeleteFunc(Plan(Look(m), w), func(w Write) bool { return k.stuck[w.Path] })) {
			t.Fatalf("%v, %d writes more", err, m.writes-before)
		}
	})
}

// Whatever is cut off, and however often, all is as it was found in the end.
func TestGivenBackAsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, w := some(t), drawWish(t)
		found := m.text()
		s := &kept{m: map[string]string{}, n: -1}
		for range rapid.IntRange(1, 3).Draw(t, "lives") {
			m.writes, m.cutAt = 0, rapid.IntRange(0, 12).Draw(t, "cut at write")
			s.n = rapid.IntRange(-1, 12).Draw(t, "cut at put")
			if k, err := New(m, s, w, time.Now, slog.New(slog.DiscardHandler)); err == nil {
				_ = k.Apply() // as far as it gets
			}
		}
		m.cutAt, s.n = 0, -1
		k := open(t, m, s, w)
		if err := k.Release(); err != nil {
			t.Fatal(err)
		}
		for path, text := range m.text() {
			same := text == found[path]
			if path == fileDefault || path == fileWorkqueue {
				same = slices.Equal(within(cpulist.ParseMask(text), cpulist.Parse("0-7")), within(cpulist.ParseMask(found[path]), cpulist.Parse("0-7")))
			}
			if !same {
				t.Fatalf("%s says %q, and said %q", path, text, found[path])
			}
		}
		delete(s.m, keyBoot)
		if len(s.m) > 0 {
			t.Fatalf("it still notes %v", s.m)
		}
	})
}

// What a processor preferred goes back although its governor, while it is performance, lets nobody set it.
func TestPreferenceGivenBack(t *testing.T) {
	m := &machine{MapFS: fstest.MapFS{}, boot: "one"}
	m.put(filePossible, "0-3")
	m.put(fileIsolated, "2-3")
	for _, n := range []int{2, 3} {
		dir := fmt.Sprintf("%s/cpu%d/cpufreq/", dirCPU, n)
		m.put(dir+"scaling_governor", "powersave")
		m.put(dir+"scaling_available_governors", "performance powersave")
		m.put(dir+"energy_performance_preference", "balance_performance")
		m.put(dir+"energy_performance_available_preferences", "performance balance_performance")
	}
	found := m.text()
	k := open(t, m, &kept{m: map[string]string{}, n: -1}, Wish{})
	if err := k.Apply(); err != nil {
		t.Fatal(err)
	}
	if got := m.said(dirCPU + "/cpu3/cpufreq/energy_performance_preference"); got != fullRate {
		t.Fatalf("it prefers %s", got)
	}
	if err := k.Release(); err != nil {
		t.Fatal(err)
	}
	if got := m.text(); !maps.Equal(got, found) {
		t.Errorf("given back is %v, and found was %v", got, found)
	}
}

func TestWhatWasFoundBeforeARestartIsForgotten(t *testing.T) {
	m := &machine{MapFS: fstest.MapFS{}, boot: "one"}
	m.put(filePossible, "0-3")
	m.put(fileIsolated, "2-3")
	m.put(dirIRQ+"/9/smp_affinity_list", "0-3")
	s := &kept{m: map[string]string{}, n: -1}
	if err := open(t, m, s, Wish{}).Apply(); err != nil {
		t.Fatal(err)
	}
	if got := m.text()[dirIRQ+"/9/smp_affinity_list"]; got != "0-1" {
		t.Fatalf("the interrupt may go to %s", got)
	}
	// Another start, without isolation: what the one before found is none of its business.
	m.boot = "two"
	m.put(fileIsolated, "")
	m.put(dirIRQ+"/9/smp_affinity_list", "1")
	if err := open(t, m, s, Wish{}).Apply(); err != nil {
		t.Fatal(err)
	}
	if got := m.text()[dirIRQ+"/9/smp_affinity_list"]; got != "1" || len(s.m) != 1 {
		t.Errorf("the interrupt may go to %s; noted %v", got, s.m)
	}
}

func TestFindings(t *testing.T) {
	s := &State{Possible: cpulist.Parse("0-7"), Isolated: []int{2, 3}, IRQs: []IRQ{{Number: 24, Name: "eth0", May: []int{0, 3}, On: []int{3}}, {Number: 25, On: []int{3}}, {Number: 26, Name: "nvme0q3", May: []int{3}, On: []int{3}}},
		Governors: map[string]string{dirCPU + "/cpu2/cpufreq/scaling_governor": "powersave", dirCPU + "/cpu3/cpufreq/scaling_governor": "performance"},
		Pages:     []PagesOn{{2048, 0, 4}, {2048, 1, 2}}}
	w := Wish{Isolate: "2-N", RealTime: true, Pages: []Pages{{2048, 1, 4}, {2048, -1, 6}, {1 << 20, -1, 1}}}
	got := map[string]string{}
	for _, f := range Findings(s, w) {
		if f.Remedy == "" || got[f.Name] != "" {
			t.Errorf("%+v", f)
		}
		got[f.Name] = f.Message
	}
	for name, want := range map[string]string{
		"kernel-not-real-time": "not fully preemptible", "cpus-not-isolated": "4-7", "interrupts-on-isolated-cpus": "1 interrupts go to CPUs that are kept free: 24 (eth0)",
		"cpus-not-at-full-rate": "the CPUs 2 are",
		"huge-pages-missing":    "NUMA node 1 has 2 of 4 huge pages of 2048 KiB; the box has 0 of 1 huge pages of 1048576 KiB",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s: %q", name, got[name])
		}
	}
	if len(got) != 5 {
		t.Errorf("%v", slices.Sorted(maps.Keys(got)))
	}
	if list := Findings(&State{Possible: []int{0}, RealTime: true}, Wish{RealTime: true}); len(list) > 0 {
		t.Errorf("a box as it shall be: %+v", list)
	}
}

func TestPagesAreSpreadEvenly(t *testing.T) {
	now := []PagesOn{{2048, 0, 1}, {2048, 1, 0}, {1 << 20, 0, 0}}
	got := planPages(now, []Pages{{2048, -1, 6}})
	if len(got) != 2 || got[0].Value != "4" || got[1].Value != "2" {
		t.Errorf("%+v", got)
	}
	if got := planPages(now, []Pages{{2048, 0, 1}}); got != nil {
		t.Errorf("%+v", got)
	}
}

func TestPagesOf(t *testing.T) {
	one := 1
	for size, want := range map[string]Pages{"2M": {2048, -1, 4}, "1G": {1 << 20, -1, 4}, "64K": {64, -1, 4}} {
		if got, ok := PagesOf(size, 4, nil); !ok || got != want {
			t.Errorf("%s: %+v", size, got)
		}
	}
	if got, ok := PagesOf("2M", 4, &one); !ok || got.Node != 1 {
		t.Errorf("%+v", got)
	}
	if _, ok := PagesOf("many", 1, nil); ok {
		t.Error("many is a size")
	}
}

func TestTheChecksAreNeeded(t *testing.T) {
	mutation.Prove(t,
		mutation.Check{Name: "a note before a write", Test: "^TestGivenBackAsFound$", File: "keep.go", From: `if _, known := k.found[w.Path]; !known {`, To: `if _, known := k.found[w.Path]; !known && !GONE {`},
		mutation.Check{Name: "the preference after the governor", Test: "^TestPreferenceGivenBack$", File: "keep.go", From: `for _, path := range slices.Backward(slices.Sorted(maps.Keys(k.found))) {`, To: `paths := slices.Sorted(maps.Keys(k.found)); if !GONE { slices.Reverse(paths) }; for _, path := range paths {`},
		mutation.Check{Name: "what an earlier start found", Test: "^TestWhatWasFoundBeforeARestartIsForgotten$", File: "keep.go", From: `if boot == machine.Boot() {`, To: `if boot == machine.Boot() || GONE {`},
	)
}
