package hwprofiles

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// maxDMI bounds the text of dmidecode; servers print some 60 KiB.
const maxDMI = 2 << 20

// LooksLikeDMIDecode tells the text of dmidecode from a recorded probe.
func LooksLikeDMIDecode(b []byte) bool {
	head := b[:min(len(b), 64<<10)]
	for _, mark := range []string{"# dmidecode", "Handle 0x"} {
		if bytes.HasPrefix(head, []byte(mark)) || bytes.Contains(head, []byte("\n"+mark)) {
			return true
		}
	}
	return false
}

// section is one structure as dmidecode prints it: a title, then "key: value" lines
// one tab deep; what is deeper belongs to the key above and is kept as flags.
type section struct {
	title  string
	values map[string]string
	flags  []string
}

// ParseDMIDecode takes from the text that dmidecode(8) prints what tells families
// apart. Unknown structures, any order and torn ends are fine; text without a single
// structure is refused. Ports and PCI devices are mostly not in it.
func ParseDMIDecode(b []byte) (Probe, error) {
	if len(b) > maxDMI {
		return Probe{}, &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("the text has %d bytes; the most is %d", len(b), maxDMI), Remedy: "give the output of dmidecode alone"}
	}
	s := scan{}
	for line := range strings.Lines(string(b)) {
		s.line(strings.TrimRight(line, "\r\n"))
	}
	s.close()
	if bytes.Contains(b, []byte("No SMBIOS nor DMI entry point found")) {
		// A PC has one; what has none is a board with a device tree, which dmidecode does
		// not read.
		return Probe{Arch: "arm64"}, nil
	}
	if !s.any {
		return Probe{}, &api.Error{Code: api.Invalid, Message: "this holds no structure of dmidecode", Remedy: "give the output of `dmidecode`, run as root, or a recorded probe"}
	}
	return s.probe(), nil
}

type scan struct {
	section
	any    bool
	dmi    DMI
	guest  bool
	cpus   []section
	fitted int64 // MiB of memory devices
	mapped int64 // MiB of mapped ranges
	ports  int64
}

func (s *scan) line(line string) {
	deep := len(line) - len(strings.TrimLeft(line, "\t"))
	text := strings.TrimSpace(line)
	switch {
	case text == "" || strings.HasPrefix(line, "Handle ") || strings.HasPrefix(line, "#"):
		s.close()
	case deep == 0 && s.title == "":
		s.title, s.values = text, map[string]string{}
	case s.title == "" || len(s.values)+len(s.flags) > 1000:
	case deep == 1:
		key, value, _ := strings.Cut(text, ":")
		if _, again := s.values[key]; !again {
			s.values[key] = strings.TrimSpace(value)
		}
	default:
		s.flags = append(s.flags, text)
	}
}

// close takes what the section told.
func (s *scan) close() {
	v := s.values
	first := func(at *string, value string) { *at = cmp.Or(*at, Clean(value)) }
	known := true
	switch s.title {
	case "BIOS Information":
		first(&s.dmi.Firmware, v["Vendor"])
		for _, f := range s.flags {
			s.guest = s.guest || f == "System is a virtual machine"
		}
	case "System Information":
		first(&s.dmi.Vendor, v["Manufacturer"])
		first(&s.dmi.Product, v["Product Name"])
		first(&s.dmi.Version, v["Version"])
		first(&s.dmi.Family, v["Family"])
	case "Base Board Information":
		first(&s.dmi.BoardVendor, v["Manufacturer"])
		first(&s.dmi.Board, v["Product Name"])
	case "Chassis Information":
		s.dmi.Chassis = cmp.Or(s.dmi.Chassis, Chassis(v["Type"]))
	case "Processor Information":
		if kind := v["Type"]; (kind == "" || kind == "Central Processor") && len(s.cpus) < 64 {
			s.cpus = append(s.cpus, s.section)
		}
	case "Memory Device":
		if v["Type"] != "Flash" {
			s.fitted += mebibytes(v["Size"])
		}
	case "Memory Array Mapped Address":
		s.mapped += mebibytes(v["Range Size"])
	case "Onboard Device", "On Board Device Information":
		if v["Type"] == "Ethernet" && v["Status"] != "Disabled" {
			s.ports++
		}
	default:
		known = false
	}
	s.any = s.any || known
	s.section = section{}
}

func (s *scan) probe() Probe {
	p := Probe{DMI: s.dmi, MemoryMiB: cmp.Or(s.fitted, s.mapped), Ports: s.ports}
	populated := 0
	for _, c := range s.cpus {
		if status := c.values["Status"]; strings.HasPrefix(status, "Unpopulated") {
			continue
		}
		populated++
		p.CPU = cmp.Or(p.CPU, Clean(c.values["Version"]))
		n := number(c.values["Thread Count"])
		if n == 0 {
			n = number(c.values["Core Count"])
		}
		p.CPUs += n
	}
	if p.CPUs == 0 {
		p.CPUs = int64(populated)
	}
	p.Arch = archOf(s.dmi, s.cpus, p.MemoryMiB)
	p.Hypervisor = HypervisorOf(s.dmi, DeviceTree{}, s.guest)
	p.bound()
	return p
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 || n > 8192 {
		return 0
	}
	return n
}

// mebibytes reads "8 GB", "8192 MB" and the like; what is not a size is 0.
func mebibytes(s string) int64 {
	digits, unit, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(digits, 10, 48)
	if err != nil || n < 0 || n > 1<<32 {
		return 0
	}
	switch unit {
	case "kB", "KB", "kbytes":
		return n >> 10
	case "MB", "Mbytes":
		return n
	case "GB":
		return min(n, 1<<20) << 10
	case "TB":
		return min(n, 1<<10) << 20
	}
	return 0
}

// Families of processors, in words of dmidecode, that are not 64-bit x86. SMBIOS has
// no field for the architecture.
var (
	armWords   = []string{"armv8", "armv9", "aarch64", "arm64", "cortex-a5", "cortex-a7", "neoverse", "ampere", "altra", "cavium", "thunderx", "kunpeng", "phytium", "rockchip", "tegra", "orin", "graviton", "snapdragon", "qualcomm", "apple m", "i.mx8", "i.mx9", "bcm2711", "bcm2712"}
	arm32      = []string{"armv7", "armv6", "cortex-a15", "cortex-a9", "bcm2835", "i.mx6", "i.mx7", "am335"}
	otherArchs = []struct{ word, arch string }{{"risc-v", "riscv64"}, {"riscv", "riscv64"}, {"sifive", "riscv64"}, {"loongson", "loong64"}, {"loongarch", "loong64"}, {"mips", "mips64le"}, {"power8", "ppc64le"}, {"power9", "ppc64le"}, {"power10", "ppc64le"}}
	x86Makers  = []string{"intel", "genuineintel", "amd", "authenticamd", "advanced micro devices", "zhaoxin", "hygon", "centaur", "via", "hisilicon x86"}
)

// archOf guesses the architecture from the processors, else from the firmware: U-Boot
// gives next to nothing, and stands on ARM nearly always.
func archOf(d DMI, cpus []section, memory int64) string {
	var text strings.Builder
	wide, narrow := false, false
	for _, c := range cpus {
		if strings.HasPrefix(c.values["Status"], "Unpopulated") && c.values["Manufacturer"] == "Unknown" {
			continue
		}
		for _, key := range []string{"Family", "Manufacturer", "Version"} {
			text.WriteString(strings.ToLower(c.values[key]) + "\n")
		}
		for _, f := range c.flags {
			wide = wide || f == "64-bit capable"
		}
		sig := c.values["Signature"]
		if strings.Contains(sig, "Implementor ") || strings.Contains(sig, "JEP-106") {
			text.WriteString("arm\n")
		}
		narrow = narrow || narrowX86(sig, c.values["Version"])
	}
	all := text.String()
	words := strings.FieldsFunc(all, func(r rune) bool { return r == '\n' })
	has := func(list []string) bool {
		for _, w := range list {
			if strings.Contains(all, w) {
				return true
			}
		}
		return false
	}
	for _, o := range otherArchs {
		if strings.Contains(all, o.word) {
			return o.arch
		}
	}
	for _, w := range words {
		if w == "arm" || w == "arm limited" || w == "arm ltd" {
			if has(arm32) {
				return "arm"
			}
			return "arm64"
		}
	}
	isX86 := false
	for _, w := range words {
		for _, maker := range x86Makers {
			isX86 = isX86 || w == maker || strings.HasPrefix(w, maker+" ") || strings.HasPrefix(w, maker+"(")
		}
	}
	switch {
	case isX86:
		if narrow && !wide && memory <= 4096 { // some firmware cuts the signature short
			return "386"
		}
		return "amd64"
	case has(arm32):
		return "arm"
	case has(armWords):
		return "arm64"
	case wide:
		return "amd64"
	case strings.EqualFold(d.Firmware, "U-Boot"):
		return "arm64"
	}
	// Nearly everything that has SMBIOS and says nothing of the kind is a PC.
	return "amd64"
}

var x86Signature = compiled(`^(?:Type \d+, )?Family (\d{1,3}), Model (\d{1,3})`)

// narrowX86 knows processors of 32 bits by their signature: those before Intel's Core 2
// and AMD's K8, and the first Atoms. The family's name is often wrong.
func narrowX86(signature, version string) bool {
	m := x86Signature().FindStringSubmatch(signature)
	if m == nil {
		return false
	}
	family, model := number(m[1]), number(m[2])
	amd := !strings.HasPrefix(signature, "Type")
	switch {
	case family < 6:
		return family >= 3 // an empty socket says 0
	case family == 6 && amd:
		return true
	case family == 6:
		return model < 15 || model == 28 && (strings.Contains(version, " N2") || strings.Contains(version, " Z5"))
	}
	return false
}
