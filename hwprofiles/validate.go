package hwprofiles

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// checker collects every fault of a profile with its line.
type checker struct {
	lines map[string]int
	list  []*api.Error
}

func (c *checker) fault(ok bool, field, remedy, format string, args ...any) {
	if ok {
		return
	}
	line, at := 0, field
	for at != "" && line == 0 {
		line = c.lines[at]
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
	}
	c.list = append(c.list, &api.Error{Code: api.Invalid, Field: field, Line: line, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) oneOf(field, value string, allowed ...string) {
	c.fault(slices.Contains(allowed, value), field, "use "+strings.Join(allowed, ", "), "%q is not known", value)
}

func (c *checker) between(field string, value, least, most int64, unit string) {
	c.fault(value >= least && value <= most, field, fmt.Sprintf("use %d to %d %s", least, most, unit), "%d is out of range", value)
}

// list checks that each entry is short and fits shape.
func (c *checker) texts(field string, list []string, most int, shape func() *regexp.Regexp) {
	c.fault(len(list) <= most, field, "shorten the list", "there are %d entries; the most is %d", len(list), most)
	for i, s := range list[:min(len(list), most)] {
		at := fmt.Sprintf("%s[%d]", field, i)
		c.fault(len(s) <= 128 && shape().MatchString(s), at, "it must look like "+shape().String(), "%s does not fit", quote(s))
		c.fault(!slices.Contains(list[:i], s), at, "remove one", "%s is given twice", quote(s))
	}
}

// compiled puts a regular expression off until it is needed: they take milliseconds,
// and every program that imports this would pay at its start.
func compiled(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

var (
	classShape   = compiled(`^[a-z0-9][a-z0-9-]*$`)
	moduleShape  = compiled(`^[a-zA-Z0-9][a-zA-Z0-9_-]*$`)
	ttyShape     = compiled(`^(tty[0-9]{1,2}|tty(S|AMA|USB|AML|FIQ|mxc|LP|THS|TCU|PS|SC|MSM)[0-9]{1,2}|hvc[0-9]{1,2})$`)
	cpusShape    = compiled(`^[0-9]{1,4}(-([0-9]{1,4}|N))?(,[0-9]{1,4}(-([0-9]{1,4}|N))?){0,15}$`)
	dtbShape     = compiled(`^[a-z0-9][a-z0-9,._-]*(/[a-z0-9][a-z0-9,._-]*){1,2}\.dtb$`)
	patternShape = compiled(`^[ -~]+$`)
	pciShape     = compiled(`^[0-9a-f]{4}:([0-9a-f]{4}|\*)$`)
)

// validate names every fault of a whole profile (bases applied).
func validate(p Profile, lines map[string]int) error {
	c := &checker{lines: lines}
	c.fault(p.Title != "" && len(p.Title) <= 100 && patternShape().MatchString(p.Title), "title", "say in one line what family this is", "a title of 1 to 100 plain characters is wanted")
	c.oneOf("arch", p.Arch, "amd64", "arm64")
	c.fault(len(p.Match) <= 64, "match", "use patterns", "there are %d rules; the most is 64", len(p.Match))
	for i, r := range p.Match[:min(len(p.Match), 64)] {
		c.rule(fmt.Sprintf("match[%d]", i), r)
	}
	c.kernel(p)
	c.fault(len(p.Modules) > 0, "modules", "name at least base", "there are no modules")
	c.fault(len(p.Initramfs) > 0, "initramfs", "name at least boot", "there are no modules")
	c.texts("modules", p.Modules, 32, classShape)
	c.texts("initramfs", p.Initramfs, 32, classShape)
	c.texts("firmware", p.Firmware, 32, classShape)
	c.texts("extensions", p.Extensions, 8, classShape)
	for i, m := range p.Microcode {
		c.oneOf(fmt.Sprintf("microcode[%d]", i), m, "intel", "amd")
	}
	c.fault(len(p.Microcode) == 0 || p.Arch == "amd64", "microcode", "remove it", "only amd64 loads microcode")
	c.partitions(p.Partitions)
	c.cpu(p.CPU)
	c.ptp(p.PTP)
	c.devices(p)
	c.watchdog(p.Watchdog)
	c.fault(len(p.Consoles) > 0 && len(p.Consoles) <= 8, "consoles", "name 1 to 8", "there are %d consoles", len(p.Consoles))
	for i, t := range p.Consoles {
		at := fmt.Sprintf("consoles[%d]", i)
		c.fault(ttyShape().MatchString(t.TTY), at+".tty", "name it as under /dev: ttyS0, ttyAMA0, tty0, hvc0", "%s is no terminal", quote(t.TTY))
		c.fault(t.Baud == 0 || slices.Contains([]int64{9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600, 1500000}, t.Baud), at+".baud", "use 115200, or what the line is set to", "%d is no usual speed", t.Baud)
	}
	c.between("relay.cache", p.Relay.Cache, 0, 64<<20, "MiB")
	c.power(p.Power)
	for i, s := range p.PhysicalPresence.Proof {
		c.oneOf(fmt.Sprintf("physicalPresence.proof[%d]", i), s, "button")
	}
	c.fault(!p.PhysicalPresence.Shell || len(p.PhysicalPresence.Proof) > 0, "physicalPresence.shell", "name a proof, or leave the shell to challenge and response", "a shell without any proof would be open to everyone")
	c.between("physicalPresence.window", p.PhysicalPresence.Window, 0, 3600, "seconds")
	if err := api.JoinErrors(c.list, "the profile"); err != nil {
		return err
	}
	return nil
}

func (c *checker) rule(at string, r Rule) {
	texts := [][]string{r.Vendor, r.Product, r.Board, r.Family, r.Firmware, r.DeviceTree, r.CPU}
	for i, name := range []string{"vendor", "product", "board", "family", "firmware", "deviceTree", "cpu"} {
		c.texts(at+"."+name, texts[i], 64, patternShape)
		for j, s := range texts[i][:min(len(texts[i]), 64)] {
			c.fault(strings.Trim(s, "* ") != "", fmt.Sprintf("%s.%s[%d]", at, name, j), "leave the condition out", "the pattern fits everything")
			c.fault(strings.Count(s, "*") <= 8, fmt.Sprintf("%s.%s[%d]", at, name, j), "use fewer", "there are more than 8 stars")
		}
	}
	c.texts(at+".pci", r.PCI, 64, pciShape)
	c.texts(at+".withoutPCI", r.WithoutPCI, 64, pciShape)
	for i, s := range r.Chassis {
		c.oneOf(fmt.Sprintf("%s.chassis[%d]", at, i), s, chassisNames()...)
	}
	for i, s := range r.Hypervisor {
		c.oneOf(fmt.Sprintf("%s.hypervisor[%d]", at, i), s, hypervisorNames()...)
	}
	if r.Virtual != "" {
		c.oneOf(at+".virtual", r.Virtual, "no", "yes", "any")
	}
	c.between(at+".minMemory", r.MinMemory, 0, 64<<20, "MiB")
	c.between(at+".maxMemory", r.MaxMemory, 0, 64<<20, "MiB")
	c.fault(r.MaxMemory == 0 || r.MaxMemory >= r.MinMemory, at+".maxMemory", "turn them round", "the most is below the least")
	c.between(at+".minCPUs", r.MinCPUs, 0, 8192, "CPUs")
	c.between(at+".minPorts", r.MinPorts, 0, 256, "ports")
	c.between(at+".minGPUs", r.MinGPUs, 0, 64, "accelerators")
	c.fault(r.conditions() > 0, at, "give a condition, or remove the rule", "the rule fits every box")
}

var argShape = compiled(`^[a-zA-Z][a-zA-Z0-9_.-]*(=[a-zA-Z0-9_.,:;/@+*%-]+)?$`)

// foreign are arguments that a profile must not give, and why.
var foreign = []struct{ keys, why string }{
	{"console", "name it under consoles"},
	{"isolcpus nohz_full rcu_nocbs irqaffinity hugepages hugepagesz default_hugepagesz", "say it under cpu"},
	{"init rdinit root rootfstype rootflags rootwait ro rw roothash initrd resume noinitrd", "the image builder says where the root is"},
	{"single emergency rescue s S rd.break systemd.unit systemd.debug-shell debug_shell shell", "it would open a shell to everyone"},
	{"nokaslr nosmep nosmap nopti pti mitigations nospectre_v1 nospectre_v2 spectre_v2 l1tf mds tsx_async_abort kpti selinux apparmor security lsm audit iomem slub_debug randomize_kstack_offset", "it would weaken the kernel's protections"},
	{"kgdboc kgdbwait kgdbcon earlycon earlyprintk ekgdboc kdb netconsole", "it would show or open the kernel to whoever is at the line"},
	{"nowatchdog nosoftlockup", "a box that hangs would stay so"},
	{"acpi_rsdp acpi_override dsdt efi efi_pstore.pstore_disable kexec_load_disabled crashkernel module_blacklist_override", "it would take trust from the signed image"},
	{"ip nfsroot nfsaddrs netdev", "network settings come from CONFIG and the core"},
}

// maxArgs bounds the whole line: x86 takes 2048 bytes, and the builder adds its own.
const maxArgs = 1400

func (c *checker) kernel(p Profile) {
	c.oneOf("kernel.flavour", p.Kernel.Flavour, "cloud", "full", "rt")
	tree := p.Kernel.DeviceTree
	c.fault(tree == "" || len(tree) <= 128 && dtbShape().MatchString(tree), "kernel.deviceTree", "name it as below /usr/lib/linux-image-VERSION: rockchip/rk3588-rock-5b.dtb", "%s is no device tree", quote(tree))
	c.fault(tree == "" || p.Arch == "arm64", "kernel.deviceTree", "remove it", "only arm64 boards have device trees")
	var panics bool
	for i, arg := range p.Kernel.Args {
		at := fmt.Sprintf("kernel.args[%d]", i)
		key, value := c.argument(at, arg)
		if key == "panic" {
			panics = true
			n, err := strconv.Atoi(value)
			c.fault(err == nil && n >= -1 && n != 0 && n < 200, at, "use panic=10", "%s: a box that panics must restart within 199 seconds", arg)
		}
	}
	c.fault(panics, "kernel.args", "add panic=10", "a box that panics would stay so")
	n := len(strings.Join(p.Cmdline(), " "))
	c.fault(n <= maxArgs, "kernel.args", "shorten them", "the arguments take %d bytes; the most is %d", n, maxArgs)
}

// argument checks one word of the kernel's command line, and takes it apart.
func (c *checker) argument(at, arg string) (key, value string) {
	c.fault(len(arg) <= 200 && argShape().MatchString(arg), at, "one argument an entry, without blanks and quotes", "%s is no kernel argument", quote(arg))
	key, value, _ = strings.Cut(arg, "=")
	// The kernel takes - and _ as the same.
	plain := strings.ReplaceAll(key, "-", "_")
	for _, f := range foreign {
		c.fault(!slices.Contains(strings.Fields(strings.ReplaceAll(f.keys, "-", "_")), plain), at, f.why, "%s has no place in a profile", key)
	}
	c.fault(!strings.HasPrefix(key, "tributary.") && !strings.HasPrefix(key, "systemd.") && !strings.HasPrefix(key, "rd."), at, "the image builder owns it", "%s has no place in a profile", key)
	c.fault(plain != "lockdown" || value == "integrity" || value == "confidentiality", at, "use lockdown=integrity", "%s would weaken the kernel's protections", arg)
	c.fault(plain != "module.sig_enforce" || value == "" || value == "1", at, "leave it out, or use 1", "%s would let unsigned modules in", arg)
	c.fault(!strings.HasSuffix(plain, "lockup_panic") || value == "1", at, "use 1", "%s would leave a box that hangs as it is", arg)
	c.fault(plain != "nmi_watchdog" || strings.HasPrefix(value, "panic"), at, "use nmi_watchdog=panic,1", "%s would leave a box that hangs as it is", arg)
	return plain, value
}

// CheckArgument says what is wrong with a word for the kernel that whoever builds an image
// adds by hand: it is held to what a profile is held to. Words of the installer (tributary.install.*)
// pass.
func CheckArgument(arg string) error {
	if strings.HasPrefix(arg, "tributary.install.") && argShape().MatchString(arg) && len(arg) <= 200 {
		return nil
	}
	var c checker
	c.argument(arg, arg)
	if len(c.list) == 0 {
		return nil
	}
	return c.list[0]
}

func (c *checker) partitions(p Partitions) {
	// Two UKIs must fit in an ESP while one replaces the other, the LUKS2 header takes
	// 16 MiB of STATE, and FAT32 starts at 33 MiB.
	c.between("partitions.esp", p.ESP, 96, 4096, "MiB")
	c.between("partitions.root", p.Root, 384, 65536, "MiB")
	c.between("partitions.verity", p.Verity, 8, 4096, "MiB")
	c.between("partitions.config", p.Config, 34, 4096, "MiB")
	c.between("partitions.state", p.State, 64, 65536, "MiB")
	c.between("partitions.data", p.Data, 64, 1<<20, "MiB")
	// SHA-256 over 4096-byte blocks: 1/128 for the leaves, 1/127 with all levels above.
	need := p.Root/127 + 1
	c.fault(p.Verity >= need, "partitions.verity", fmt.Sprintf("use %d MiB or more", need), "the hash tree of a full root does not fit")
}

func (c *checker) cpu(p CPU) {
	c.fault(p.Isolate == "" || cpusShape().MatchString(p.Isolate), "cpu.isolate", "write a list such as 2-N", "%s is no list of CPUs", quote(p.Isolate))
	c.fault(p.Housekeeping == "" || cpusShape().MatchString(p.Housekeeping), "cpu.housekeeping", "write a list such as 0-1", "%s is no list of CPUs", quote(p.Housekeeping))
	c.fault((p.Isolate == "") == (p.Housekeeping == ""), "cpu", "give both", "isolate and housekeeping belong together")
	c.fault(!slices.Contains(strings.FieldsFunc(p.Isolate, func(r rune) bool { return r == ',' }), "0") && !strings.HasPrefix(p.Isolate, "0-"), "cpu.isolate", "start from 1 or 2", "CPU 0 can't be isolated: the kernel's own work is there")
	c.fault(len(p.HugePages) <= 16, "cpu.hugePages", "one entry a size, or one a size and node", "there are %d entries", len(p.HugePages))
	seen := map[string]bool{}
	for i, h := range p.HugePages[:min(len(p.HugePages), 16)] {
		at := fmt.Sprintf("cpu.hugePages[%d]", i)
		c.oneOf(at+".size", h.Size, "2M", "1G")
		where := h.Size
		if h.Node != nil {
			c.between(at+".node", int64(*h.Node), 0, 1023, "")
			where = fmt.Sprintf("%s on node %d", h.Size, *h.Node)
			c.fault(!seen[h.Size], at+".node", "give each entry of the size a node, or none", "%s pages are asked for with and without a node", h.Size)
		} else {
			c.fault(!slices.ContainsFunc(p.HugePages[:i], func(o HugePages) bool { return o.Size == h.Size && o.Node != nil }), at, "give each entry of the size a node, or none", "%s pages are asked for with and without a node", h.Size)
		}
		c.fault(!seen[where], at, "join them to one entry", "%s is there twice", where)
		seen[where] = true
		most := int64(65536)
		if h.Size == "1G" {
			most = 512
		}
		c.between(at+".count", h.Count, 1, most, "pages")
	}
}

func (c *checker) devices(p Profile) {
	c.fault(len(p.NICs) <= 16, "nics", "shorten the list", "there are %d policies; the most is 16", len(p.NICs))
	for i, n := range p.NICs[:min(len(p.NICs), 16)] {
		at := fmt.Sprintf("nics[%d]", i)
		c.texts(at+".drivers", n.Drivers, 32, moduleShape)
		c.oneOf(at+".role", n.Role, Uplink, Site, Fronthaul, Any)
		c.between(at+".virtualFunctions", n.VirtualFunctions, 0, 256, "functions")
	}
	c.texts("gpu.drivers", p.GPU.Drivers, 8, moduleShape)
	if err := api.CheckAcceleratorPolicies(p.GPU.Policies); err != nil {
		c.fault(false, "gpu.policies"+err.Field, err.Remedy, "%s", err.Message)
	}
}

func (c *checker) watchdog(w Watchdog) {
	c.fault(len(w.Drivers) > 0, "watchdog.drivers", "end the list with softdog", "there is no watchdog")
	c.texts("watchdog.drivers", w.Drivers, 16, moduleShape)
	c.between("watchdog.timeout", w.Timeout, 10, 600, "seconds")
	c.between("watchdog.unwatchedGap", w.UnwatchedGap, 0, 600, "seconds")
	c.fault(w.UnwatchedGap == 0 || w.Gap != "", "watchdog.gap", "say what is unwatched", "the gap has no reason")
	c.fault(len(w.Gap) <= 400, "watchdog.gap", "shorten it", "the reason is too long")
}

func (c *checker) power(p Power) {
	for i, s := range p.Sensors {
		c.oneOf(fmt.Sprintf("power.sensors[%d]", i), s, "rapl", "hwmon", "ipmi")
	}
	c.fault(p.IdleW > 0 && p.IdleW <= 5000, "power.idleW", "use what the box draws with nothing to do", "%g W is out of range", p.IdleW)
	c.fault(p.MaxW >= p.IdleW && p.MaxW <= 20000, "power.maxW", "use what the box draws at full load", "%g W is out of range", p.MaxW)
	c.fault(p.GPUIdleW >= 0 && p.GPUMaxW >= p.GPUIdleW && p.GPUMaxW <= 5000, "power.gpuMaxW", "use what one card draws at full load", "%g to %g W is out of range", p.GPUIdleW, p.GPUMaxW)
}
