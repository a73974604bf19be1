package hwprofiles

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"tributary.dev/tributary/pkg/api"
)

// Probe is what a box shows of itself, and the form in which it is recorded: a YAML
// file that `edgectl hw probe --record` writes. What is not known is left out; nothing
// in it names one box or its owner.
type Probe struct {
	// Source says where a recording comes from, Expect which profile it must meet; both
	// are for tests.
	Source string `json:"source,omitempty"`
	Expect string `json:"expect,omitempty"`

	// Arch is a GOARCH; others than amd64 and arm64 may stand here too.
	Arch string `json:"arch,omitempty"`
	// Hypervisor is qemu, kvm, vmware, virtualbox, hyperv, xen, amazon, google, apple,
	// bhyve, parallels or other; empty on real hardware.
	Hypervisor string `json:"hypervisor,omitempty"`

	DMI        DMI        `json:"dmi,omitzero"`
	DeviceTree DeviceTree `json:"deviceTree,omitzero"`
	CPU        string     `json:"cpu,omitempty"`       // model name
	CPUs       int64      `json:"cpus,omitempty"`      // threads, or cores where only they are told
	MemoryMiB  int64      `json:"memoryMiB,omitempty"` // as fitted, or as the kernel has it
	// Ports counts the network interfaces that are hardware of the box.
	Ports int64 `json:"ports,omitempty"`
	// PCI lists devices as "vendor:device class", four hexadecimal digits each.
	PCI []string `json:"pci,omitempty"`
}

// DMI is the part of SMBIOS that tells families apart.
type DMI struct {
	Vendor      string `json:"vendor,omitempty"`
	Product     string `json:"product,omitempty"`
	Version     string `json:"version,omitempty"`
	Family      string `json:"family,omitempty"`
	BoardVendor string `json:"boardVendor,omitempty"`
	Board       string `json:"board,omitempty"`
	Firmware    string `json:"firmware,omitempty"` // the vendor of BIOS or UEFI
	// Chassis is a word of chassisWords.
	Chassis string `json:"chassis,omitempty"`
}

// DeviceTree is the root node's model and compatible strings, most exact first.
type DeviceTree struct {
	Model      string   `json:"model,omitempty"`
	Compatible []string `json:"compatible,omitempty"`
}

// ParseProbe reads a recorded probe. The error is an *api.Error by field and line.
func ParseProbe(b []byte) (Probe, error) {
	var p Probe
	lines, err := api.DecodeFile(b, "the probe", &p)
	if err != nil {
		return Probe{}, err
	}
	c := &checker{lines: lines}
	c.between("cpus", p.CPUs, 0, maxCPUs, "CPUs")
	c.between("memoryMiB", p.MemoryMiB, 0, maxMemory, "MiB")
	c.between("ports", p.Ports, 0, maxPorts, "ports")
	for i, d := range p.PCI {
		c.fault(deviceShape().MatchString(d), fmt.Sprintf("pci[%d]", i), `write "vendor:device class", four hexadecimal digits each`, "%s is no PCI device", quote(d))
	}
	if err := api.JoinErrors(c.list, "the probe"); err != nil {
		return Probe{}, err
	}
	p.bound()
	return p, nil
}

var deviceShape = compiled(`^[0-9a-f]{4}:[0-9a-f]{4}( [0-9a-f]{4})?$`)

// ReadProbe reads what there is of a box: a recorded probe, or the text that dmidecode
// or lspci -nn prints. What says nothing of a box is refused.
func ReadProbe(b []byte) (Probe, error) {
	switch {
	case LooksLikeDMIDecode(b):
		return ParseDMIDecode(b)
	case LooksLikeLsPCI(b):
		return ParseLsPCI(b)
	}
	p, err := ParseProbe(b)
	if err != nil {
		return Probe{}, err
	}
	said := p
	if said.Source, said.Expect = "", ""; reflect.DeepEqual(said, Probe{}) {
		return Probe{}, &api.Error{Code: api.Invalid, Message: "it says nothing of a box", Remedy: "name its arch at least"}
	}
	return p, nil
}

// Record is the probe as a YAML file.
func (p Probe) Record() ([]byte, error) {
	p.bound()
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("record the probe: %w", err)
	}
	return api.YAML(b)
}

// Bounds of a probe: what is longer is cut, so that matching takes bounded time.
const (
	maxText = 256
	maxList = 512

	maxCPUs   = 8192
	maxMemory = 64 << 20 // MiB
	maxPorts  = 4096
)

// bound cleans and cuts what came from outside.
func (p *Probe) bound() {
	for _, s := range []*string{&p.Source, &p.Expect, &p.Arch, &p.Hypervisor, &p.DMI.Chassis} {
		*s = plain(*s)
	}
	for _, s := range []*string{&p.DMI.Vendor, &p.DMI.Product, &p.DMI.Version, &p.DMI.Family,
		&p.DMI.BoardVendor, &p.DMI.Board, &p.DMI.Firmware, &p.DeviceTree.Model, &p.CPU} {
		*s = Clean(*s)
	}
	p.CPUs, p.MemoryMiB, p.Ports = min(max(p.CPUs, 0), maxCPUs), min(max(p.MemoryMiB, 0), maxMemory), min(max(p.Ports, 0), maxPorts)
	clip := func(list []string) []string {
		out := make([]string, 0, min(len(list), maxList))
		for _, s := range list[:min(len(list), maxList)] {
			if s = Clean(s); s != "" {
				out = append(out, s)
			}
		}
		return out[:len(out):len(out)]
	}
	if p.DeviceTree.Compatible = clip(p.DeviceTree.Compatible); len(p.DeviceTree.Compatible) == 0 {
		p.DeviceTree.Compatible = nil
	}
	if p.PCI = clip(p.PCI); len(p.PCI) == 0 {
		p.PCI = nil
	}
}

// fillers are what makers leave in firmware fields that they did not fill.
var fillers = []string{"none", "default string", "not specified", "not applicable", "not available", "not provided", "not present", "n/a", "na", "unknown",
	"unknown product", "invalid", "empty", "oem", "o.e.m.", "o.e.m", "system manufacturer", "system product name", "system version", "system name", "system serial number", "base board serial number", "chassis serial number",
	"base board manufacturer", "base board product name", "base board version", "product name", "type1family", "type1productconfigid",
	"type2 - board vendor name1", "type2 - board product name1", "chassis manufacture", "chassis manufacturer", "undefined", "unspecified", "<out of spec>", "<bad index>", "other",
	"standard", "reserved", "no enclosure", "dmi_sys", "xxxxxxxxxxx"}

// plain is text without doubled blanks and without what is not seen (control characters, what turns the direction of
// writing), cut where it is long.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == 0xfffd {
			return ' '
		}
		return r
	}, s[:min(len(s), 4*maxText)])
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxText {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:maxText], ""))
	}
	return s
}

// Clean is a firmware text made plain, and empty where it is one of the words that
// stand for an empty field.
func Clean(s string) string {
	s = plain(s)
	lower := strings.ToLower(s)
	switch {
	case slices.Contains(fillers, lower), strings.HasPrefix(lower, "to be filled by"):
	case strings.Trim(lower, "0.-_*x ") == "":
	case len(lower) > 4 && strings.Contains("01234567890", lower):
	default:
		return s
	}
	return ""
}

// chassisWords fold the SMBIOS chassis types (DSP0134, table 17) into what matters
// here. The number is that of /sys/class/dmi/id/chassis_type.
var chassisWords = []struct {
	word  string
	types []int
	names []string
}{
	{"desktop", []int{3, 4, 6, 7, 15, 16, 24}, []string{"desktop", "low profile desktop", "mini tower", "tower", "space-saving", "lunch box", "sealed-case pc"}},
	{"laptop", []int{8, 9, 10, 12, 14, 31, 32}, []string{"portable", "laptop", "notebook", "docking station", "sub notebook", "convertible", "detachable"}},
	{"all-in-one", []int{13}, []string{"all in one"}}, // a PC behind a screen
	{"hand-held", []int{11, 30}, []string{"hand held", "tablet"}},
	{"rack", []int{17, 18, 23, 25, 26, 28, 29}, []string{"main server chassis", "expansion chassis", "rack mount chassis", "multi-system", "compactpci", "blade", "blade enclosing", "blade enclosure"}},
	{"embedded", []int{33, 34, 35, 36}, []string{"iot gateway", "embedded pc", "mini pc", "stick pc"}},
}

func chassisNames() (names []string) {
	for _, c := range chassisWords {
		names = append(names, c.word)
	}
	return names
}

// Chassis folds a chassis type, as a name of dmidecode or a number of sysfs, into a
// word; empty when it tells nothing.
func Chassis(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, c := range chassisWords {
		if slices.Contains(c.names, s) {
			return c.word
		}
		for _, n := range c.types {
			if s == fmt.Sprint(n) {
				return c.word
			}
		}
	}
	return ""
}

// hypervisors tell a guest by what its firmware says. The order counts: clouds
// before the hypervisors that they build on.
var hypervisors = []struct {
	name                      string
	vendor, product, firmware []string
}{
	{"amazon", []string{"Amazon EC2"}, nil, nil},
	{"google", nil, []string{"Google Compute Engine*"}, nil},
	{"hyperv", nil, []string{"Virtual Machine"}, []string{"Hyper-V*"}},
	{"vmware", []string{"VMware*"}, []string{"VMware*"}, nil},
	{"virtualbox", []string{"innotek*"}, []string{"VirtualBox*"}, nil},
	{"parallels", []string{"Parallels*"}, []string{"Parallels*"}, nil},
	{"xen", []string{"Xen"}, []string{"HVM domU*"}, []string{"Xen"}},
	{"bhyve", []string{"*BHYVE*"}, []string{"BHYVE*"}, []string{"BHYVE*"}},
	{"apple", nil, []string{"Apple Virtualization*"}, nil},
	{"kvm", []string{"DigitalOcean", "OpenStack*", "Red Hat*KVM*", "oVirt*", "KubeVirt*", "Vultr", "Linode", "Akamai*", "Alibaba Cloud*", "UpCloud", "Nutanix*AHV*", "Exoscale"},
		[]string{"KVM*", "OpenStack*", "RHEV*", "oVirt*", "KubeVirt*", "Alibaba Cloud ECS*", "Droplet", "vServer", "AHV", "*OracleCloud*"}, nil},
	{"qemu", []string{"QEMU*"}, []string{"Standard PC (*", "QEMU*", "Bochs*"}, []string{"SeaBIOS*", "Bochs*"}},
}

func hypervisorNames() []string {
	names := []string{"other"}
	for _, h := range hypervisors {
		names = append(names, h.name)
	}
	return names
}

// HypervisorOf names the hypervisor that firmware and processor show; flag says that
// the processor, or the firmware's own characteristics, call this a guest.
func HypervisorOf(d DMI, t DeviceTree, flag bool) string {
	if strings.HasSuffix(strings.ToLower(d.Product), ".metal") || strings.Contains(strings.ToLower(d.Product), ".metal-") {
		return "" // a whole server of a cloud
	}
	for _, h := range hypervisors {
		for _, pair := range []struct {
			patterns []string
			text     string
		}{{h.vendor, d.Vendor}, {h.product, d.Product}, {h.firmware, d.Firmware}} {
			for _, pattern := range pair.patterns {
				if glob(pattern, pair.text) {
					return h.name
				}
			}
		}
	}
	for _, c := range t.Compatible {
		switch {
		case c == "linux,dummy-virt", c == "qemu,pseries":
			return "qemu"
		case strings.HasPrefix(c, "xen,"):
			return "xen"
		}
	}
	if flag {
		return "other"
	}
	return ""
}

// glob reports whether text fits pattern, in any case; * stands for any run. It takes
// time in the product of their lengths at most.
func glob(pattern, text string) bool {
	p, s := strings.ToLower(pattern), strings.ToLower(text)
	if s == "" {
		return false
	}
	star, mark, i, j := -1, 0, 0, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && p[i] == s[j]:
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(p[i:], "*") == ""
}

// accelerators counts graphics and compute cards that are more than a screen: 3D
// controllers, processing accelerators, and NVIDIA's displays.
func (p Probe) accelerators() (n int64) {
	for _, d := range p.PCI {
		id, class, _ := strings.Cut(d, " ")
		if class == "0302" || class == "1200" || class == "0300" && strings.HasPrefix(id, "10de:") {
			n++
		}
	}
	return n
}

// Describe is the box in one line.
func (p Probe) Describe() string {
	name := strings.TrimSpace(cmp.Or(p.DMI.Vendor, p.DMI.BoardVendor) + " " + cmp.Or(p.DMI.Product, p.DMI.Board))
	parts := []string{cmp.Or(p.DeviceTree.Model, name, "a box without a name"), cmp.Or(p.Arch, "architecture unknown")}
	if p.DMI.Vendor != "" && p.DMI.Product != "" && strings.HasPrefix(strings.ToLower(p.DMI.Product), strings.ToLower(p.DMI.Vendor)) {
		parts[0] = cmp.Or(p.DeviceTree.Model, p.DMI.Product)
	}
	if p.CPU != "" {
		parts = append(parts, p.CPU)
	}
	if p.CPUs > 0 {
		parts = append(parts, plural(p.CPUs, "CPU"))
	}
	if p.MemoryMiB > 0 {
		parts = append(parts, fmt.Sprintf("%.1f GiB", float64(p.MemoryMiB)/1024))
	}
	if p.Ports > 0 {
		parts = append(parts, plural(p.Ports, "network port"))
	}
	if n := p.accelerators(); n > 0 {
		parts = append(parts, plural(n, "accelerator"))
	}
	if p.Hypervisor == "other" {
		parts = append(parts, "a virtual machine")
	} else if p.Hypervisor != "" {
		parts = append(parts, "guest of "+p.Hypervisor)
	}
	return strings.Join(parts, ", ")
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
