package hardware

import (
	"path"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// speeds are the kernel's words for transfer rates in MT/s a lane (drivers/pci/probe.c).
var speeds = map[string]int{"2.5 GT/s": 2500, "5.0 GT/s": 5000, "8.0 GT/s": 8000, "16.0 GT/s": 16000, "32.0 GT/s": 32000, "64.0 GT/s": 64000}

// buses reads every function of every PCI bus. One file of each function tells most.
func (l *looker) buses() {
	const root = "sys/bus/pci/devices"
	for _, name := range l.names(root, maxPCI, "pci") {
		if !isPCI(name) {
			continue
		}
		dir := root + "/" + name + "/"
		f := api.PCIFunction{Address: name}
		for line := range strings.SplitSeq(string(l.read(dir+"uevent")), "\n") {
			key, value, _ := strings.Cut(line, "=")
			switch key {
			case "DRIVER":
				f.Driver = clip(value)
			case "PCI_ID":
				f.ID = strings.ToLower(clip(value))
			case "PCI_CLASS":
				if value = clip(value); len(value) < 6 {
					value = strings.Repeat("0", 6-len(value)) + value
				}
				f.Class = strings.ToLower(value)
			}
		}
		if len(f.ID) != 9 || len(f.Class) != 6 {
			continue // it went away
		}
		if above := path.Base(path.Dir(l.follow(root + "/" + name))); isPCI(above) {
			f.Bridge = above
		}
		f.Node = l.some(dir + "numa_node")
		if group := l.base(dir + "iommu_group"); group != "" {
			if n, ok := atoi(group); ok {
				f.IOMMUGroup = &n
			}
		}
		if at := l.base(dir + "physfn"); isPCI(at) {
			f.Physical = at
		} else {
			f.MaxVirtualFunctions = l.count(dir + "sriov_totalvfs")
		}
		if f.MaxVirtualFunctions > 0 {
			f.VirtualFunctions = l.count(dir + "sriov_numvfs")
		}
		if f.Physical == "" { // of virtual functions the kernel tells zeros
			f.Width, f.MaxWidth = lanes(l.count(dir+"current_link_width")), lanes(l.count(dir+"max_link_width"))
			f.MaxSpeed = speeds[strings.TrimSuffix(l.text(dir+"max_link_speed"), " PCIe")]
		}
		l.out.PCI = append(l.out.PCI, f)
	}
}

// lanes is a width that a link can have: 255 is the kernel's word for unknown.
func lanes(n int) int {
	if n > 32 {
		return 0
	}
	return n
}

func atoi(s string) (n int, ok bool) {
	if s == "" || len(s) > 9 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}
