package realtime

import (
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/cpulist"
)

// maxFile bounds what is read of one file, maxIRQs how many interrupts are looked at.
const (
	maxFile = 64 << 10
	maxIRQs = 8192
)

// Look reads what is so now. What cannot be read is left out, and nothing is done to it.
func Look(root fs.FS) *State {
	text := func(path string) (string, bool) {
		f, err := root.Open(path)
		if err != nil {
			return "", false
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxFile))
		return strings.TrimSpace(string(b)), err == nil
	}
	list := func(path string) []int { s, _ := text(path); return cpulist.Parse(s) }
	s := &State{Possible: list(filePossible), Isolated: list(fileIsolated), Masks: map[string][]int{}, Governors: map[string]string{}, Preferences: map[string]string{}}
	if v, _ := text(fileRealTime); v == "1" {
		s.RealTime = true
	}
	for _, path := range []string{fileDefault, fileWorkqueue} {
		if v, ok := text(path); ok {
			if mask := cpulist.ParseMask(v); mask != nil {
				s.Masks[path] = within(mask, s.Possible)
			}
		}
	}
	for _, e := range entries(root, dirIRQ) {
		n, err := strconv.Atoi(e.Name())
		if err != nil || len(s.IRQs) == maxIRQs {
			continue
		}
		irq := IRQ{Number: n, May: within(list(dirIRQ+"/"+e.Name()+"/smp_affinity_list"), s.Possible), On: list(dirIRQ + "/" + e.Name() + "/effective_affinity_list")}
		for _, a := range entries(root, dirIRQ+"/"+e.Name()) {
			if a.IsDir() {
				irq.Name = a.Name() // of those who share it, one
				break
			}
		}
		s.IRQs = append(s.IRQs, irq)
	}
	slices.SortFunc(s.IRQs, func(a, b IRQ) int { return a.Number - b.Number })
	for _, n := range s.Isolated {
		dir := dirCPU + "/cpu" + strconv.Itoa(n) + "/cpufreq/"
		choice := func(file, among string, to map[string]string) {
			now, ok := text(dir + file)
			can, _ := text(dir + among)
			if ok && slices.Contains(strings.Fields(can), fullRate) {
				to[dir+file] = now
			}
		}
		choice("scaling_governor", "scaling_available_governors", s.Governors)
		choice("energy_performance_preference", "energy_performance_available_preferences", s.Preferences)
	}
	for _, e := range entries(root, dirNode) {
		id, ok := strings.CutPrefix(e.Name(), "node")
		node, err := strconv.Atoi(id)
		if !ok || err != nil {
			continue
		}
		for _, p := range entries(root, dirNode+"/"+e.Name()+"/hugepages") {
			size, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(p.Name(), "hugepages-"), "kB"), 10, 64)
			if err != nil {
				continue
			}
			on := PagesOn{SizeKiB: size, Node: node}
			if v, ok := text(on.path()); ok {
				if on.Count, err = strconv.ParseInt(v, 10, 64); err == nil {
					s.Pages = append(s.Pages, on)
				}
			}
		}
	}
	return s
}

// within leaves out processors that cannot be there: the kernel's default mask names more.
func within(cpus, possible []int) []int {
	return slices.DeleteFunc(cpus, func(n int) bool { return !slices.Contains(possible, n) })
}

func entries(root fs.FS, dir string) []fs.DirEntry {
	list, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil
	}
	return list
}
