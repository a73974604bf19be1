// Package realtime answers: is what the profile keeps for real-time work left alone?
//
// The kernel is told at its start to keep processors free (isolcpus). What it does not do
// by itself is done here: interrupts of devices and work of the kernel go to the other
// processors, the isolated ones run at full clock rate, huge pages are on the NUMA nodes
// that the profile names. plan.go decides, as a plain function of files of /proc and /sys;
// keep.go writes, notes what it found before it writes, and puts that back when the
// profile asks for it no more.
package realtime

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/cpulist"
)

// Wish is what the profile asks for.
type Wish struct {
	// Isolate are the processors to be left alone, as the profile writes them: "2-N". Empty:
	// those that the kernel keeps free, whoever told it to.
	Isolate string
	// RealTime asks for a fully preemptible kernel.
	RealTime bool
	Pages    []Pages
}

// Pages is a number of huge pages of one size.
type Pages struct {
	SizeKiB int64
	// Node is where they shall be; -1 spreads them over all.
	Node  int
	Count int64
}

// Files of the kernel that are looked at, and written.
const (
	fileIsolated  = "sys/devices/system/cpu/isolated"
	filePossible  = "sys/devices/system/cpu/possible"
	fileRealTime  = "sys/kernel/realtime"
	fileDefault   = "proc/irq/default_smp_affinity"
	fileWorkqueue = "sys/devices/virtual/workqueue/cpumask"
	dirCPU        = "sys/devices/system/cpu"
	dirNode       = "sys/devices/system/node"
	dirIRQ        = "proc/irq"
)

// fullRate is a governor, and a preference of intel_pstate's and amd_pstate's.
const fullRate = "performance"

// State is what is so now.
type State struct {
	Possible, Isolated []int
	RealTime           bool
	// Masks are fileDefault and fileWorkqueue, as far as they are there.
	Masks map[string][]int
	IRQs  []IRQ
	// Governors are by the path of the file, and so are Preferences, what processors that choose their rate by
	// themselves are asked for; those who cannot run at full rate are left out.
	Governors, Preferences map[string]string
	Pages                  []PagesOn
}

// IRQ is one interrupt.
type IRQ struct {
	Number int
	// Name is the device that asked for it; empty for none.
	Name string
	// May are the processors that it may go to, On those that it does.
	May, On []int
}

func (i *IRQ) path() string { return dirIRQ + "/" + strconv.Itoa(i.Number) + "/smp_affinity_list" }

// PagesOn are pages of one size on one node.
type PagesOn struct {
	SizeKiB int64
	Node    int
	Count   int64
}

func (p *PagesOn) path() string {
	return fmt.Sprintf("%s/node%d/hugepages/hugepages-%dkB/nr_hugepages", dirNode, p.Node, p.SizeKiB)
}

// Write is one file to be written. Paths have no leading slash.
type Write struct {
	Path, Value string
	// Found is what stood there.
	Found string
}

// Plan lists what is to be written. Where no processor is kept free and no pages are asked
// for there is nothing.
func Plan(s *State, w Wish) (out []Write) {
	kept := s.Isolated
	rest := without(s.Possible, kept)
	if len(kept) > 0 && len(rest) > 0 {
		for _, path := range []string{fileDefault, fileWorkqueue} {
			if now, ok := s.Masks[path]; ok && overlap(now, kept) {
				next := without(now, kept)
				if len(next) == 0 {
					next = rest
				}
				out = append(out, Write{path, cpulist.FormatMask(next), cpulist.FormatMask(now)})
			}
		}
		for i := range s.IRQs {
			irq := &s.IRQs[i]
			if !overlap(irq.May, kept) {
				continue
			}
			next := without(irq.May, kept)
			if len(next) == 0 {
				next = rest
			}
			out = append(out, Write{irq.path(), cpulist.Format(next), cpulist.Format(irq.May)})
		}
		for _, n := range kept { // the governor first: it has some drivers set the preference
			for _, f := range []struct {
				name string
				now  map[string]string
			}{{"scaling_governor", s.Governors}, {"energy_performance_preference", s.Preferences}} {
				path := fmt.Sprintf("%s/cpu%d/cpufreq/%s", dirCPU, n, f.name)
				if now, ok := f.now[path]; ok && now != fullRate {
					out = append(out, Write{path, fullRate, now})
				}
			}
		}
	}
	return append(out, planPages(s.Pages, w.Pages)...)
}

// planPages raises numbers of pages, and lowers none: what is more was somebody's wish too.
func planPages(now []PagesOn, want []Pages) (out []Write) {
	next := slices.Clone(now)
	for _, w := range want {
		var nodes []*PagesOn
		lacking := w.Count
		for i := range next {
			if p := &next[i]; p.SizeKiB == w.SizeKiB && (w.Node < 0 || p.Node == w.Node) {
				nodes, lacking = append(nodes, p), lacking-p.Count
			}
		}
		for i, p := range nodes {
			if lacking > 0 {
				more := (lacking + int64(len(nodes)-i) - 1) / int64(len(nodes)-i) // evenly over those that are left
				p.Count, lacking = p.Count+more, lacking-more
			}
		}
	}
	for i := range next {
		if next[i].Count != now[i].Count {
			out = append(out, Write{next[i].path(), strconv.FormatInt(next[i].Count, 10), strconv.FormatInt(now[i].Count, 10)})
		}
	}
	return out
}

// Findings are what the profile asks for and is not so: names, messages and remedies of
// warnings, without a time.
func Findings(s *State, w Wish) (out []api.Warning) {
	add := func(name, remedy, format string, args ...any) {
		out = append(out, api.Warning{Name: name, Severity: api.Degraded, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if w.RealTime && !s.RealTime {
		add("kernel-not-real-time", "install an image of the profile, whose kernel is", "the profile asks for a real-time kernel, and this one is not fully preemptible")
	}
	if asked := Asked(w.Isolate, s.Possible); len(asked) > 0 {
		if lack := without(asked, s.Isolated); len(lack) > 0 {
			add("cpus-not-isolated", "start the box from an image of the profile, whose command line isolates them", "the profile keeps the CPUs %s free, and the kernel does not so with %s", cpulist.Format(asked), cpulist.Format(lack))
		}
	}
	var names []string
	for _, irq := range s.IRQs {
		// One that may come nowhere else is a queue of its own of such a processor, which the
		// kernel keeps for it (managed_irq): it comes of what that processor began.
		if irq.Name != "" && overlap(irq.On, s.Isolated) && len(without(irq.May, s.Isolated)) > 0 {
			names = append(names, fmt.Sprintf("%d (%s)", irq.Number, irq.Name))
		}
	}
	if len(names) > 0 {
		add("interrupts-on-isolated-cpus", "the driver pins them: give their device fewer queues, or leave it out of this box", "%d interrupts go to CPUs that are kept free: %s", len(names), strings.Join(names[:min(len(names), 5)], ", "))
	}
	slow := map[string]bool{}
	for _, n := range s.Isolated {
		for path, is := range s.Governors {
			if is != fullRate && strings.HasPrefix(path, fmt.Sprintf("%s/cpu%d/", dirCPU, n)) {
				slow[strconv.Itoa(n)] = true
			}
		}
	}
	if len(slow) > 0 {
		list := slices.Sorted(maps.Keys(slow))
		add("cpus-not-at-full-rate", "have the firmware leave the clock rate to the system", "the CPUs %s are kept free, and their clock rate cannot be held up", strings.Join(list, ","))
	}
	for _, p := range w.Pages {
		var have int64
		for _, n := range s.Pages {
			if n.SizeKiB == p.SizeKiB && (p.Node < 0 || n.Node == p.Node) {
				have += n.Count
			}
		}
		if have < p.Count {
			where := "the box"
			if p.Node >= 0 {
				where = fmt.Sprintf("NUMA node %d", p.Node)
			}
			add("huge-pages-missing", "start the box again, when its memory is whole; with less memory than the profile expects, use another profile", "%s has %d of %d huge pages of %d KiB", where, have, p.Count, p.SizeKiB)
		}
	}
	return mergeByName(out)
}

// mergeByName joins findings of one name, which warnings are told by.
func mergeByName(list []api.Warning) (out []api.Warning) {
	for _, w := range list {
		if n := slices.IndexFunc(out, func(o api.Warning) bool { return o.Name == w.Name }); n >= 0 {
			out[n].Message += "; " + w.Message
			continue
		}
		out = append(out, w)
	}
	return out
}

// Asked reads a profile's list, in which N is the last processor.
func Asked(list string, possible []int) []int {
	if list == "" || len(possible) == 0 {
		return nil
	}
	last := slices.Max(possible)
	return slices.DeleteFunc(cpulist.Parse(strings.ReplaceAll(list, "N", strconv.Itoa(last))), func(n int) bool { return n > last })
}

func overlap(a, b []int) bool {
	return slices.ContainsFunc(a, func(n int) bool { return slices.Contains(b, n) })
}

func without(a, b []int) []int {
	return slices.DeleteFunc(slices.Clone(a), func(n int) bool { return slices.Contains(b, n) })
}
