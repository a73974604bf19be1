package meter

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Hierarchy says where a host keeps its cgroups.
type Hierarchy struct {
	// V2 is true when the whole tree is cgroup v2 (unified). On a hybrid host the
	// controllers are v1 and V2 is false.
	V2 bool
	// Roots maps a controller to its mount point ("memory", "cpuacct", "pids");
	// for v2 the one root is under "".
	Roots map[string]string
}

// FindHierarchy reads the hierarchy from the text of /proc/self/mountinfo
// (proc(5)). Lines that make no sense are passed over.
func FindHierarchy(mountinfo []byte) Hierarchy {
	h := Hierarchy{Roots: map[string]string{}}
	unified := ""
	s := bufio.NewScanner(bytes.NewReader(mountinfo))
	s.Buffer(make([]byte, 0, 4096), 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		if !ok {
			continue
		}
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			unified = left[4]
		case "cgroup":
			for _, opt := range strings.Split(right[2], ",") {
				switch opt {
				case "memory", "cpuacct", "pids":
					h.Roots[opt] = left[4]
				}
			}
		}
	}
	if len(h.Roots) == 0 && unified != "" {
		h.V2 = true
		h.Roots[""] = unified
	}
	return h
}

// host reads from the running system.
type host struct {
	h     Hierarchy
	files fs.FS // rooted at "/"
}

// Host returns the reader for the machine this runs on.
func Host() (Reader, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	h := FindHierarchy(b)
	if len(h.Roots) == 0 {
		return nil, errors.New("meter: no cgroup file system is mounted")
	}
	return &host{h: h, files: os.DirFS("/")}, nil
}

func (r *host) Read(t Target) (Reading, error) {
	got, err := ReadCgroup(r.files, r.h, t.Cgroup)
	if err != nil {
		return got, err
	}
	if t.NetNS != "" {
		got.RxBytes, got.TxBytes, err = readNetNS(t.NetNS)
	}
	return got, err
}

// ReadCgroup reads one cgroup below root (a file system rooted at "/"). A cgroup
// that does not exist reads as zero.
func ReadCgroup(root fs.FS, h Hierarchy, cgroup string) (Reading, error) {
	var out Reading
	read := func(controller, name string) []byte {
		p := strings.TrimPrefix(filepath.Join(h.Roots[controller], cgroup, name), "/")
		b, err := fs.ReadFile(root, p)
		if err != nil {
			return nil
		}
		return b
	}
	if cgroup == "" || cgroup == "/" {
		return out, fmt.Errorf("meter: refusing to meter the root cgroup")
	}
	if h.V2 {
		return ParseV2(read("", "cpu.stat"), read("", "memory.current"), read("", "memory.stat"), read("", "pids.current"))
	}
	return ParseV1(read("cpuacct", "cpuacct.usage"), read("memory", "memory.usage_in_bytes"), read("memory", "memory.stat"), read("pids", "pids.current"))
}

// ParseV1 makes a reading from the files of cgroup v1: cpuacct.usage (ns),
// memory.usage_in_bytes, memory.stat, pids.current. Nil files count as zero.
func ParseV1(cpuacctUsage, usageInBytes, memoryStat, pidsCurrent []byte) (Reading, error) {
	var p parser
	ns := p.number(cpuacctUsage)
	use := p.number(usageInBytes)
	inactive := p.field(memoryStat, "total_inactive_file")
	pids := p.number(pidsCurrent)
	return Reading{CPUMicros: ns / 1000, MemoryBytes: use - min(use, inactive), Pids: pids}, p.err
}

// ParseV2 makes a reading from the files of cgroup v2: cpu.stat (usage_usec),
// memory.current, memory.stat, pids.current. Nil files count as zero.
func ParseV2(cpuStat, memoryCurrent, memoryStat, pidsCurrent []byte) (Reading, error) {
	var p parser
	usec := p.field(cpuStat, "usage_usec")
	use := p.number(memoryCurrent)
	inactive := p.field(memoryStat, "inactive_file")
	pids := p.number(pidsCurrent)
	return Reading{CPUMicros: usec, MemoryBytes: use - min(use, inactive), Pids: pids}, p.err
}

type parser struct{ err error }

func (p *parser) number(b []byte) uint64 {
	text := string(bytes.TrimSpace(b))
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("meter: cgroup file holds no number: %w", err)
	}
	return n
}

func (p *parser) field(b []byte, name string) uint64 {
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(line, []byte(" "))
		if ok && string(key) == name {
			return p.number(value)
		}
	}
	return 0
}

// readNetNS sums the counters of all interfaces but loopback. A namespace that is
// gone reads as zero.
func readNetNS(path string) (rx, tx uint64, err error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, 0, nil
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE) // by default also XFRM, which not every kernel has at hand
	if err != nil {
		// A bind mount that lost its namespace is a plain file.
		return 0, 0, nil
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return 0, 0, fmt.Errorf("meter: list interfaces of %s: %w", path, err)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Name == "lo" || a.Statistics == nil {
			continue
		}
		rx += a.Statistics.RxBytes
		tx += a.Statistics.TxBytes
	}
	return rx, tx, nil
}
