// Package hardware answers: which box is this, of which family, and what is in it now?
//
// It reads what the kernel tells under /proc, /sys and /etc (an fs.FS passed in, so
// that a recording serves as well as the machine), and the network interfaces through
// a function passed in: a process in a network namespace of its own still sees the
// host's /sys/class/net. What cannot be read is left empty; a probe never fails.
package hardware

import (
	"bufio"
	"bytes"
	"cmp"
	"io/fs"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
)

// Source is where a probe reads.
type Source struct {
	// Root is a file system rooted at "/".
	Root fs.FS
	// Links lists the network interfaces; nil lists none. See Host.
	Links func() []Link
	// Disk is the size of the file system that holds the device's data; nil is unknown.
	Disk func() int64
	// Arch is a GOARCH; empty means this build's.
	Arch string
	// Asked is what no file tells.
	Asked Asked
}

// Link is one network interface as netlink shows it.
type Link struct {
	Name string
	MAC  string
	// Kind is netlink's type of it ("device" for hardware); Port says that it belongs to
	// a bridge or bond; Loopback is the machine's own.
	Kind           string
	Port, Loopback bool
}

// maxRead bounds each file; what is longer is cut.
const maxRead = 256 << 10

// Probe reads everything once.
func Probe(s Source) api.Hardware {
	p := prober{s.Root}
	h := api.Hardware{
		Arch:      cmp.Or(s.Arch, runtime.GOARCH),
		Vendor:    p.name("sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/board_vendor"),
		Product:   p.name("sys/class/dmi/id/product_name", "sys/class/dmi/id/board_name", "proc/device-tree/model"),
		Serial:    p.name("sys/class/dmi/id/product_serial", "sys/class/dmi/id/board_serial", "proc/device-tree/serial-number"),
		Kernel:    p.text("proc/sys/kernel/osrelease"),
		OS:        osName(p.read("etc/os-release")),
		Cgroup:    cgroupVersion(p.read("proc/self/mountinfo")),
		DiskBytes: 0,
	}
	if h.Vendor == "" && h.Product != "" { // a device tree says both: "NVIDIA Jetson …"
		h.Vendor, _, _ = strings.Cut(h.Product, " ")
	}
	h.Power = power(s.Root)
	h.CPUs, h.CPUModel = cpus(p.read("proc/cpuinfo"))
	h.MemoryBytes = memory(p.read("proc/meminfo"))
	if s.Disk != nil {
		h.DiskBytes = s.Disk()
	}
	if s.Links != nil {
		h.NICs = p.nics(s.Links())
	}
	return h
}

type prober struct{ root fs.FS }

func (p prober) read(name string) []byte {
	b, err := fs.ReadFile(p.root, name)
	if err != nil {
		return nil
	}
	return b[:min(len(b), maxRead)]
}

// text is a file's first line without the zero bytes that a device tree ends in.
func (p prober) text(name string) string {
	b, _, _ := bytes.Cut(bytes.TrimRight(p.read(name), "\x00"), []byte("\n"))
	return strings.TrimSpace(string(b))
}

// name is the first of the files that says something.
func (p prober) name(files ...string) string {
	for _, f := range files {
		if s := hwprofiles.Clean(p.text(f)); s != "" {
			return s
		}
	}
	return ""
}

func lines(b []byte, fn func(key, value string)) {
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(make([]byte, 0, 4096), maxRead)
	for s.Scan() {
		if key, value, ok := strings.Cut(s.Text(), ":"); ok {
			fn(strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
}

// cpus reads /proc/cpuinfo. x86 tells a "model name"; arm64 tells only numbers of
// implementer and part, and a "Model" on some boards.
func cpus(b []byte) (n int, model string) {
	var part string
	lines(b, func(key, value string) {
		switch key {
		case "processor":
			n++
		case "model name", "Model":
			model = cmp.Or(model, value)
		case "CPU part":
			part = cmp.Or(part, "ARM part "+value)
		}
	})
	return n, cmp.Or(model, part)
}

// memory reads MemTotal of /proc/meminfo, which is in KiB.
func memory(b []byte) (total int64) {
	lines(b, func(key, value string) {
		if key == "MemTotal" {
			kib, err := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 64)
			if err == nil && kib > 0 && kib < 1<<50 {
				total = kib << 10
			}
		}
	})
	return total
}

// osName is PRETTY_NAME of os-release(5).
func osName(b []byte) string {
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return ""
}

// cgroupVersion is 2 where the controllers are in the unified tree, 1 where they are
// mounted one by one (a hybrid host included), 0 where neither is.
func cgroupVersion(mountinfo []byte) int {
	version := 0
	for line := range strings.SplitSeq(string(mountinfo), "\n") {
		_, after, ok := strings.Cut(line, " - ")
		switch fields := strings.Fields(after); {
		case !ok || len(fields) == 0:
		case fields[0] == "cgroup":
			return 1
		case fields[0] == "cgroup2":
			version = 2
		}
	}
	return version
}

// nics leaves out what comes and goes with containers: bridges, their ports, and
// everything that is neither hardware nor the end of a cable.
func (p prober) nics(links []Link) []api.NIC {
	var out []api.NIC
	for _, l := range links {
		wire := l.Kind == "device" || l.Kind == "veth" && !l.Port || l.Kind == "bond" || l.Kind == "vlan"
		if l.Loopback || !wire {
			continue
		}
		nic := api.NIC{Name: l.Name, MAC: l.MAC}
		dir := "sys/class/net/" + l.Name + "/"
		if fs.ValidPath(dir+"speed") && strings.EqualFold(p.text(dir+"address"), l.MAC) {
			if speed, err := strconv.Atoi(p.text(dir + "speed")); err == nil && speed > 0 {
				nic.Speed = speed
			}
		}
		out = append(out, nic)
	}
	slices.SortFunc(out, func(a, b api.NIC) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Labels are the facts that fleets select by, under api.Reserved.
func Labels(h api.Hardware) map[string]string {
	out := map[string]string{}
	for key, value := range map[string]string{
		"arch": h.Arch, "vendor": h.Vendor, "product": h.Product, "os": h.OS,
		"profile": h.Profile, "cpus": strconv.Itoa(h.CPUs), "memory-gib": strconv.FormatInt((h.MemoryBytes+1<<29)>>30, 10),
	} {
		if v := labelValue(value); v != "" && v != "0" {
			out[api.Reserved+key] = v
		}
	}
	return out
}

// labelValue makes text fit for a label: letters, digits, "-", "_" and "." of 63 at
// most, letters or digits at both ends. The rest becomes one "-" a run.
func labelValue(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	out := b.String()
	return strings.Trim(out[:min(len(out), 63)], "-_.")
}
