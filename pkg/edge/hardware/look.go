package hardware

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"tributary.dev/tributary/pkg/api"
)

// Asked is what the kernel tells only to who asks by a call. Each may be nil, and each
// answers with nothing where there is none.
type Asked struct {
	// Card tells of a network interface.
	Card func(name string) Card
	// Eswitch gives the mode of each card's switch, by PCI address.
	Eswitch func() map[string]string
	// NVMe gives the SMART log (NVM Express Base Specification 2.0, 5.16.1.3) of a controller: nvme0.
	NVMe func(controller string) (log []byte, ok bool)
	// ATA asks a SATA disk: sda.
	ATA func(disk string) (ATA, bool)
}

// Card is what ethtool tells of an interface.
type Card struct {
	Firmware string `json:"firmware,omitempty"`
	// Features are those that are on, by the kernel's names.
	Features []string `json:"features,omitempty"`
}

// Bounds of what is looked at. What is beyond is left out, and its list is named in Cut.
const (
	maxNetDevices = 512
	maxCards      = 64 // accelerators
	maxCPUs       = 4096
	maxNodes      = 64
	maxDisks      = 256
	maxWatchdogs  = 8
	maxTPMs       = 4
	maxChips      = 64
	maxSensors    = 64 // of one chip
	maxWord       = 96 // bytes of one text
)

// looker is one look.
type looker struct {
	prober
	Source
	out api.Inventory
}

// Look reads everything once. It never fails: what cannot be read is left out.
func Look(s Source) api.Inventory {
	l := &looker{prober: prober{s.Root}, Source: s}
	l.buses()
	l.netDevices()
	l.accelerators()
	l.cpu()
	l.nodes()
	l.disks()
	l.tpms()
	l.watchdogs()
	l.sensors()
	return l.out
}

// names lists a folder, in order and bounded; what is cut off is named.
func (l *looker) names(dir string, most int, what string) []string {
	entries, err := fs.ReadDir(l.root, dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if fs.ValidPath(e.Name()) && len(e.Name()) <= maxWord && utf8.ValidString(e.Name()) {
			out = append(out, e.Name())
		}
	}
	if len(out) > most {
		out = out[:most]
		if what != "" && !slices.Contains(l.out.Cut, what) {
			l.out.Cut = append(l.out.Cut, what)
		}
	}
	return out
}

// word is a short text of one line.
func (l *looker) word(name string) string { return clip(l.text(name)) }

func clip(s string) string {
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s), "")
	for len(s) > maxWord {
		s = strings.ToValidUTF8(s[:maxWord], "")
	}
	return strings.TrimSpace(s)
}

// number reads a decimal number, or one in 0x form.
func (l *looker) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(l.text(name), 0, 64)
	return n, err == nil
}

// count is a number that makes sense as one: 0 otherwise.
func (l *looker) count(name string) int {
	n, ok := l.number(name)
	if !ok || n < 0 || n > 1<<31-1 {
		return 0
	}
	return int(n)
}

// some is a number from 0, or nil where there is none: sysfs says -1 for unknown.
func (l *looker) some(name string) *int {
	n, ok := l.number(name)
	if !ok || n < 0 || n > 1<<31-1 {
		return nil
	}
	v := int(n)
	return &v
}

// follow gives where a symbolic link leads, as a path from the root; empty where there is
// none, or where it leads out. No folder on the way to it is itself a link: the entries of
// classes and buses are such, those within them are not (base).
func (l *looker) follow(name string) string {
	to, err := fs.ReadLink(l.root, name)
	if err != nil || strings.HasPrefix(to, "/") {
		return ""
	}
	to = path.Join(path.Dir(name), to)
	if !fs.ValidPath(to) || strings.HasPrefix(to, "..") {
		return ""
	}
	return to
}

// base is the last name of where a symbolic link leads.
func (l *looker) base(name string) string {
	to, err := fs.ReadLink(l.root, name)
	if err != nil {
		return ""
	}
	return clip(path.Base(to))
}

// pciOf is the address of the last PCI function on a path.
func pciOf(p string) string {
	for p != "" && p != "." && p != "/" {
		if b := path.Base(p); isPCI(b) {
			return b
		}
		p = path.Dir(p)
	}
	return ""
}

// isPCI tells whether a name is an address: 0000:03:00.1; some domains have five digits.
func isPCI(s string) bool {
	n := len(s)
	if n < 12 || n > 16 || s[n-2] != '.' || s[n-5] != ':' || s[n-8] != ':' || s[n-1] < '0' || s[n-1] > '7' {
		return false
	}
	for i := range n - 2 {
		if i == n-5 || i == n-8 {
			continue
		}
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// accelerators are the graphics and computing cards of three makers, found by what they
// are on the bus. What only their drivers' libraries tell comes from elsewhere.
func (l *looker) accelerators() {
	makers := map[string]string{"10de": "nvidia", "1002": "amd", "8086": "intel"}
	var render map[string][]string
	for _, f := range l.out.PCI {
		vendor := makers[f.ID[:min(4, len(f.ID))]]
		display, compute := strings.HasPrefix(f.Class, "03"), strings.HasPrefix(f.Class, "1200")
		if vendor == "" || !display && !(compute && vendor != "intel") { // Intel's of the other class compute radio, not graphics
			continue
		}
		if len(l.out.Accelerators) == maxCards {
			l.out.Cut = append(l.out.Cut, "accelerators")
			return
		}
		if render == nil {
			render = l.renderNodes()
		}
		a := api.Accelerator{ID: f.Address, Vendor: vendor, PCI: f.Address, NUMA: -1, Driver: f.Driver, Nodes: render[f.Address], Sharing: api.Sharing{Mode: api.SharingExclusive}}
		if f.Node != nil {
			a.NUMA = *f.Node
		}
		dir := "sys/bus/pci/devices/" + f.Address + "/"
		a.Model = l.word(dir + "product_name") // amdgpu alone
		if a.Model == "" {
			a.Model = f.ID
		}
		if vram, ok := l.number(dir + "mem_info_vram_total"); ok && vram > 0 {
			a.MemoryMiB = vram >> 20
		}
		a.VBIOS, a.Serial = l.word(dir+"vbios_version"), l.word(dir+"serial_number")
		l.out.Accelerators = append(l.out.Accelerators, a)
	}
}

// renderNodes are the device files of DRM by the PCI address that they are on.
func (l *looker) renderNodes() map[string][]string {
	out := map[string][]string{}
	for _, name := range l.names("sys/class/drm", 4*maxCards, "") {
		if !strings.HasPrefix(name, "renderD") && (!strings.HasPrefix(name, "card") || strings.Contains(name, "-")) {
			continue // a connector
		}
		at := pciOf(l.follow("sys/class/drm/" + name))
		out[at] = append(out[at], "/dev/dri/"+name)
	}
	delete(out, "")
	return out
}

func (l *looker) tpms() {
	for _, name := range l.names("sys/class/tpm", maxTPMs, "tpms") {
		dir := "sys/class/tpm/" + name + "/"
		t := api.TPMDevice{Name: name, Device: l.base(dir + "device")}
		switch l.text(dir + "tpm_version_major") {
		case "2":
			t.Version = "2.0"
		case "1":
			t.Version = "1.2"
		}
		l.out.TPMs = append(l.out.TPMs, t)
	}
}

// watchdogCardReset is WDIOF_CARDRESET of linux/watchdog.h: the last start was the watchdog's.
const watchdogCardReset = 0x20

func (l *looker) watchdogs() {
	for _, name := range l.names("sys/class/watchdog", maxWatchdogs, "watchdogs") {
		dir := "sys/class/watchdog/" + name + "/"
		boot, _ := l.number(dir + "bootstatus")
		l.out.Watchdogs = append(l.out.Watchdogs, api.Watchdog{Name: name, Identity: l.word(dir + "identity"), Timeout: l.count(dir + "timeout"),
			Active: l.text(dir+"state") == "active", Fired: boot&watchdogCardReset != 0})
	}
}
