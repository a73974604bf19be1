// Package hwprofiles answers: what does a family of box need, and which family is
// this box?
//
// One YAML file states one family; docs/hardware.md explains the fields. The files are
// embedded, so that the image builder, the first process and edgectl read the same.
package hwprofiles

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Profile is one family of box. Sizes are in MiB, times in seconds, power in watts.
type Profile struct {
	// Name is the file's name without .yaml.
	Name string `json:"name,omitempty"`
	// Title is one line for people.
	Title string `json:"title"`
	// Base is a profile that this one starts from: what the file leaves out comes from
	// there. Title and match are never taken over.
	Base string `json:"base,omitempty"`
	// Arch is a GOARCH, amd64 or arm64; Debian writes these two alike.
	Arch string `json:"arch"`
	// Match lists what such a box looks like; one rule suffices. Without rules the
	// profile is chosen only by name, or as the fallback of its architecture.
	Match  []Rule `json:"match,omitempty"`
	Kernel Kernel `json:"kernel"`
	// Modules are classes: the root file system carries what rootfs/modules/<class>.list
	// names. Initramfs is the same for what must be there before the root is.
	Modules   []string `json:"modules"`
	Initramfs []string `json:"initramfs"`
	// Firmware are classes of rootfs/firmware/<class>.list.
	Firmware []string `json:"firmware,omitempty"`
	// Microcode is carried in the UKI: intel, amd.
	Microcode []string `json:"microcode,omitempty"`
	// Extensions are verity extensions of the Release, such as GPU drivers.
	Extensions []string   `json:"extensions,omitempty"`
	Partitions Partitions `json:"partitions"`
	CPU        CPU        `json:"cpu,omitzero"`
	PTP        *PTP       `json:"ptp,omitempty"`
	NICs       []NIC      `json:"nics,omitempty"`
	GPU        GPU        `json:"gpu,omitzero"`
	Watchdog   Watchdog   `json:"watchdog"`
	// Consoles are where the recovery shell shows; the first is the kernel's main one.
	Consoles         []Console        `json:"consoles"`
	Relay            Relay            `json:"relay"`
	Power            Power            `json:"power"`
	PhysicalPresence PhysicalPresence `json:"physicalPresence"`
}

// Kernel says which of Debian's kernels is used, and its arguments.
type Kernel struct {
	// Flavour is "cloud" (virtual hardware only), "full" or "rt" (PREEMPT_RT).
	Flavour string `json:"flavour"`
	// Args stand in the signed command line, in this order. Those of consoles, CPU
	// isolation and huge pages are made from their own fields; see Cmdline.
	Args []string `json:"args,omitempty"`
	// DeviceTree is the board's, as the kernel's package has it: rockchip/rk3588-rock-5b.dtb.
	// It is signed with the kernel and takes the place of the firmware's; empty leaves that.
	DeviceTree string `json:"deviceTree,omitempty"`
}

// Partitions are sizes in MiB. There are two each of ESP, root and verity. They can't
// be changed in the field, so they are generous.
type Partitions struct {
	ESP    int64 `json:"esp"`
	Root   int64 `json:"root"`
	Verity int64 `json:"verity"`
	Config int64 `json:"config"`
	State  int64 `json:"state"`
	// Data is the size in the image as flashed; it grows to the end of the disk.
	Data int64 `json:"data"`
}

// Total is the least disk in MiB that holds everything, with 1 MiB at each end for
// the partition table.
func (p Partitions) Total() int64 {
	return 2*(p.ESP+p.Root+p.Verity) + p.Config + p.State + p.Data + 2
}

// CPU keeps processors and memory apart for what must not be disturbed.
type CPU struct {
	// Isolate is a list of CPUs as the kernel reads it, such as "2-N" (N is the last);
	// Housekeeping is the rest, "0-1", where interrupts go.
	Isolate      string `json:"isolate,omitempty"`
	Housekeeping string `json:"housekeeping,omitempty"`
	// HugePages are reserved at boot.
	HugePages []HugePages `json:"hugePages,omitempty"`
}

// HugePages is a number of pages of one size.
type HugePages struct {
	Size  string `json:"size"` // 2M or 1G
	Count int64  `json:"count"`
	// Node is the NUMA node where they are; without it the kernel spreads them over all.
	Node *int `json:"node,omitempty"`
}

// NIC is the policy for the ports of some drivers.
type NIC struct {
	// Drivers are kernel drivers; empty fits every one.
	Drivers []string `json:"drivers,omitempty"`
	// Role is what the port is for. Without network settings, ports of the role uplink or
	// any are asked for an address first, those of the site after them, and those of the
	// fronthaul not at all.
	Role string `json:"role"`
	// VirtualFunctions are made of each at boot (SR-IOV), as far as the card has them;
	// Switchdev puts the card's switch in switchdev mode before.
	VirtualFunctions int64 `json:"virtualFunctions,omitempty"`
	Switchdev        bool  `json:"switchdev,omitempty"`
}

// Roles of ports.
const (
	Uplink    = "uplink"
	Site      = "site"
	Fronthaul = "fronthaul"
	Any       = "any"
)

// NIC gives the first policy that fits a port's driver.
func (p Profile) NIC(driver string) (NIC, bool) {
	for _, n := range p.NICs {
		if len(n.Drivers) == 0 || slices.Contains(n.Drivers, driver) {
			return n, true
		}
	}
	return NIC{}, false
}

// GPU is the policy for accelerators.
type GPU struct {
	// Drivers are kernel modules that process 1 loads once the image's extensions are
	// there; empty means that accelerators are left alone.
	Drivers []string `json:"drivers,omitempty"`
	// Policies say how cards are divided where the device's settings name none of them;
	// without either each is given whole.
	Policies []api.AcceleratorPolicy `json:"policies,omitempty"`
}

// Watchdog resets a box that hangs.
type Watchdog struct {
	// Drivers are kernel modules, the first that yields a /dev/watchdog is taken; they
	// are loaded before anything else in the initramfs.
	Drivers []string `json:"drivers"`
	// Timeout is after how many seconds without food the box is reset.
	Timeout int64 `json:"timeout"`
	// UnwatchedGap is the most seconds from power-on in which nothing would reset a
	// hang; Gap says what they are.
	UnwatchedGap int64  `json:"unwatchedGap"`
	Gap          string `json:"gap"`
}

// Console is one terminal.
type Console struct {
	TTY  string `json:"tty"`            // ttyS0, ttyAMA0, tty0, hvc0
	Baud int64  `json:"baud,omitempty"` // serial lines only
}

// Relay says how far the box can serve others.
type Relay struct {
	Capable bool `json:"capable"`
	// Cache is how many MiB of artifacts it keeps for them, unless the core says otherwise.
	Cache int64 `json:"cache,omitempty"`
}

// Power is a straight line between idle and full use, in watts: what the energy meter
// takes where the box has no sensor.
type Power struct {
	// Sensors are tried in order: rapl, hwmon, ipmi, then the model.
	Sensors []string `json:"sensors,omitempty"`
	IdleW   float64  `json:"idleW"`
	MaxW    float64  `json:"maxW"`
	// GPUIdleW and GPUMaxW come on top for each accelerator.
	GPUIdleW float64 `json:"gpuIdleW,omitempty"`
	GPUMaxW  float64 `json:"gpuMaxW,omitempty"`
}

// PhysicalPresence says what counts as a person standing at the box.
type PhysicalPresence struct {
	// Proof is none, or button: the power button, pressed when the console asks.
	Proof []string `json:"proof,omitempty"`
	// Shell allows a root shell by that proof alone; otherwise only by challenge and
	// response.
	Shell bool `json:"shell,omitempty"`
	// Window is how many seconds one proof lasts.
	Window int64 `json:"window,omitempty"`
}

// Cmdline is what the profile puts on the kernel's command line: its arguments, then
// those that follow from the watchdog, isolation, huge pages and consoles. The last console named is
// the kernel's main one.
func (p Profile) Cmdline() []string {
	out := append([]string{}, p.Kernel.Args...)
	if w := p.Watchdog.Timeout; w > 0 {
		out = append(out, "tributary.watchdog="+strconv.FormatInt(w, 10)) // for the initramfs and process 1
	}
	if c := p.CPU; c.Isolate != "" {
		out = append(out, "isolcpus=managed_irq,domain,"+c.Isolate, "nohz_full="+c.Isolate, "rcu_nocbs="+c.Isolate)
		if c.Housekeeping != "" {
			out = append(out, "irqaffinity="+c.Housekeeping)
		}
	}
	seen := map[string]bool{}
	for _, h := range p.CPU.HugePages {
		if len(seen) == 0 {
			out = append(out, "default_hugepagesz="+h.Size)
		}
		if seen[h.Size] {
			continue // of this size all nodes are in one word
		}
		seen[h.Size] = true
		out = append(out, "hugepagesz="+h.Size, "hugepages="+p.CPU.pagesOf(h.Size))
	}
	for i := len(p.Consoles) - 1; i >= 0; i-- {
		out = append(out, p.Consoles[i].arg())
	}
	return out
}

// pagesOf is the number of pages of a size as the kernel reads it: "512", or by node
// "0:256,1:256".
func (c CPU) pagesOf(size string) string {
	var words []string
	for _, h := range c.HugePages {
		switch {
		case h.Size != size:
		case h.Node == nil:
			return strconv.FormatInt(h.Count, 10)
		default:
			words = append(words, fmt.Sprintf("%d:%d", *h.Node, h.Count))
		}
	}
	return strings.Join(words, ",")
}

func (c Console) arg() string {
	if c.Baud > 0 {
		return fmt.Sprintf("console=%s,%dn8", c.TTY, c.Baud)
	}
	return "console=" + c.TTY
}
