package hardware

import (
	"cmp"
	"io/fs"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
)

// Box reads what tells families of boxes apart. As with Probe, what cannot be read is
// left empty.
func Box(s Source) hwprofiles.Probe {
	p := prober{s.Root}
	dmi := func(name string) string { return p.name("sys/class/dmi/id/" + name) }
	b := hwprofiles.Probe{
		Arch: cmp.Or(s.Arch, runtime.GOARCH),
		DMI: hwprofiles.DMI{Vendor: dmi("sys_vendor"), Product: dmi("product_name"), Version: dmi("product_version"), Family: dmi("product_family"),
			BoardVendor: dmi("board_vendor"), Board: dmi("board_name"), Firmware: dmi("bios_vendor"), Chassis: hwprofiles.Chassis(p.text("sys/class/dmi/id/chassis_type"))},
		DeviceTree: hwprofiles.DeviceTree{Model: p.text("proc/device-tree/model"), Compatible: strings.FieldsFunc(string(p.read("proc/device-tree/compatible")), func(r rune) bool { return r == 0 })},
		MemoryMiB:  memory(p.read("proc/meminfo")) >> 20,
		PCI:        p.pci(),
	}
	cpuinfo := p.read("proc/cpuinfo")
	n, model := cpus(cpuinfo)
	b.CPU, b.CPUs = hwprofiles.Clean(model), int64(n)
	guest := cpuFlag(cpuinfo, "hypervisor")
	if p.text("sys/hypervisor/type") == "xen" { // a Xen host's own system is real hardware
		guest = !strings.Contains(p.text("proc/xen/capabilities"), "control_d")
	}
	b.Hypervisor = hwprofiles.HypervisorOf(b.DMI, b.DeviceTree, guest)
	if s.Links != nil {
		for _, l := range s.Links() {
			if l.Kind == "device" && !l.Loopback {
				b.Ports++
			}
		}
	}
	return b
}

// cpuFlag looks for a word among the flags of the first processor.
func cpuFlag(cpuinfo []byte, flag string) (found bool) {
	seen := false
	lines(cpuinfo, func(key, value string) {
		if key == "flags" && !seen {
			seen, found = true, slices.Contains(strings.Fields(value), flag)
		}
	})
	return found
}

// maxPCI bounds how many devices are read; a large server has some hundreds, most of
// them bridges and parts of the processor, which are left out.
const maxPCI = 2048

func (p prober) pci() (out []string) {
	entries, err := fs.ReadDir(p.root, "sys/bus/pci/devices")
	if err != nil {
		return nil
	}
	hex := func(dir, file string, digits int) string {
		s, ok := strings.CutPrefix(p.text(dir+file), "0x")
		if _, err := strconv.ParseUint(s, 16, 32); !ok || err != nil || len(s) < digits {
			return ""
		}
		return strings.ToLower(s[:digits])
	}
	for _, e := range entries[:min(len(entries), maxPCI)] {
		dir := "sys/bus/pci/devices/" + e.Name() + "/"
		vendor, device, class := hex(dir, "vendor", 4), hex(dir, "device", 4), hex(dir, "class", 4)
		if vendor == "" || device == "" || !hwprofiles.Telling(class) {
			continue
		}
		out = append(out, strings.TrimSpace(vendor+":"+device+" "+class))
	}
	slices.Sort(out)
	return out
}

// Running names the hardware profile of the image that runs, from the signed kernel
// command line; empty where no image of ours runs.
func Running(s Source) (name string) {
	for _, word := range strings.Fields(prober{s.Root}.text("proc/cmdline")) {
		if v, ok := strings.CutPrefix(word, "tributary.profile="); ok {
			name = v
		}
	}
	return name
}

// power is the model of the profile that the running image carries; nil where none runs.
func power(root fs.FS) *api.PowerModel {
	p, err := hwprofiles.Installed(root)
	if err != nil {
		return nil
	}
	m := p.Power
	return &api.PowerModel{Sensors: m.Sensors, IdleW: m.IdleW, MaxW: m.MaxW, GPUIdleW: m.GPUIdleW, GPUMaxW: m.GPUMaxW}
}

// Fitting names the profile that fits the box best; empty where none is for its
// architecture. It reads all profiles, which takes some 15 ms.
func Fitting(s Source) string {
	all, err := hwprofiles.All()
	if err != nil {
		return ""
	}
	return hwprofiles.Match(Box(s), all).Profile
}
