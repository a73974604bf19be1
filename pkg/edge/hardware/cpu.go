package hardware

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

func (l *looker) cpu() {
	const root = "sys/devices/system/cpu/"
	_, model := cpus(l.read("proc/cpuinfo"))
	c := api.CPU{Model: clip(model), Online: list(l.text(root + "online")), Offline: list(l.text(root + "offline")), Isolated: list(l.text(root + "isolated")),
		NoHZ: list(l.text(root + "nohz_full")), RealTime: l.text("sys/kernel/realtime") == "1"}
	sockets, cores := map[string]bool{}, map[string]bool{}
	siblings := map[string]bool{}
	for _, name := range l.names(root[:len(root)-1], maxCPUs, "cpu") {
		if n, ok := strings.CutPrefix(name, "cpu"); !ok || !digits(n) {
			continue
		}
		dir := root + name + "/topology/"
		socket, core := l.text(dir+"physical_package_id"), l.text(dir+"core_id")
		if socket == "" {
			continue // offline
		}
		c.Threads++
		sockets[socket], cores[socket+"/"+core] = true, true
		if shared := list(cmp.Or(l.text(dir+"core_cpus_list"), l.text(dir+"thread_siblings_list"))); strings.ContainsAny(shared, ",-") {
			siblings[shared] = true
		}
	}
	c.Sockets, c.Cores = len(sockets), len(cores)
	for s := range siblings {
		c.Siblings = append(c.Siblings, s)
	}
	slices.SortFunc(c.Siblings, func(a, b string) int { return cmp.Or(cmp.Compare(first(a), first(b)), cmp.Compare(a, b)) })
	policy := root + "cpufreq/policy" + strconv.Itoa(first(c.Online)) + "/"
	c.MinMHz, c.MaxMHz, c.BaseMHz = l.count(policy+"scaling_min_freq")/1000, l.count(policy+"scaling_max_freq")/1000, l.count(policy+"base_frequency")/1000
	c.Governor, c.Driver = l.word(policy+"scaling_governor"), l.word(policy+"scaling_driver")
	if c.Model != "" || c.Threads > 0 {
		l.out.CPU = &c
	}
}

// list is a CPU list as the kernel writes it, or nothing: "(null)" is what some kernels
// say for none.
func list(s string) string {
	if s == "" || len(s) > 1024 || strings.Trim(s, "0123456789,-") != "" {
		return ""
	}
	return s
}

// first is the first CPU of a list; 0 for none.
func first(list string) int {
	n, _ := atoi(list[:max(0, strings.IndexAny(list+",", ",-"))])
	return n
}

func digits(s string) bool {
	_, ok := atoi(s)
	return ok
}

// nodes reads memory and huge pages by NUMA node; a machine without nodes has one.
func (l *looker) nodes() {
	const root = "sys/devices/system/node"
	var ids []int
	for _, name := range l.names(root, 4*maxNodes, "nodes") {
		if n, ok := strings.CutPrefix(name, "node"); ok {
			if id, ok := atoi(n); ok {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	if len(ids) == 0 {
		if total := memory(l.read("proc/meminfo")); total > 0 {
			cpus := ""
			if l.out.CPU != nil {
				cpus = l.out.CPU.Online
			}
			l.out.Nodes = []api.Node{{CPUs: cpus, MemoryMiB: total >> 20, HugePages: l.hugePages("sys/kernel/mm/hugepages")}}
		}
		return
	}
	for _, id := range ids[:min(len(ids), maxNodes)] {
		dir := root + "/node" + strconv.Itoa(id) + "/"
		n := api.Node{ID: id, CPUs: list(l.text(dir + "cpulist")), MemoryMiB: nodeMemory(l.read(dir+"meminfo")) >> 20, HugePages: l.hugePages(dir + "hugepages")}
		if len(ids) > 1 {
			for _, word := range strings.Fields(l.text(dir + "distance")) {
				if d, ok := atoi(word); ok && len(n.Distances) < maxNodes {
					n.Distances = append(n.Distances, d)
				}
			}
		}
		l.out.Nodes = append(l.out.Nodes, n)
	}
}

// nodeMemory reads "Node 0 MemTotal: 16334956 kB".
func nodeMemory(b []byte) (total int64) {
	lines(b, func(key, value string) {
		if f := strings.Fields(key); len(f) == 3 && f[2] == "MemTotal" {
			if kib, err := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 64); err == nil && kib > 0 && kib < 1<<50 {
				total = kib << 10
			}
		}
	})
	return total
}

// hugePages lists the sizes of which pages are set aside.
func (l *looker) hugePages(dir string) (out []api.HugePages) {
	for _, name := range l.names(dir, 16, "") {
		rest, ok := strings.CutPrefix(name, "hugepages-")
		size, ok2 := atoi(strings.TrimSuffix(rest, "kB"))
		if n := l.count(dir + "/" + name + "/nr_hugepages"); ok && ok2 && size > 0 && n > 0 {
			out = append(out, api.HugePages{SizeKiB: int64(size), Count: int64(n)})
		}
	}
	slices.SortFunc(out, func(a, b api.HugePages) int { return cmp.Compare(a.SizeKiB, b.SizeKiB) })
	return out
}
