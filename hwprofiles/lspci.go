package hwprofiles

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// A device in the text of lspci -n ("00:1f.6 0200: 8086:15bc") or lspci -nn
// ("00:1f.6 Ethernet controller [0200]: Intel … [8086:15bc] (rev 10)").
var (
	pciSlot  = compiled(`^(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7] `)
	pciBare  = compiled(`^\S+ ([0-9a-f]{4}): ([0-9a-f]{4}:[0-9a-f]{4})\b`)
	pciClass = compiled(`\[([0-9a-f]{4})\]: `)
	pciID    = compiled(`\[([0-9a-f]{4}:[0-9a-f]{4})\]`)
)

// LooksLikeLsPCI tells the text of lspci by its first line that is not empty.
func LooksLikeLsPCI(b []byte) bool {
	line, _, _ := bytes.Cut(bytes.TrimLeft(b, "\r\n"), []byte("\n"))
	return pciSlot().Match(line)
}

// ParseLsPCI takes from what lspci(8) prints with -n or -nn the devices and the ports.
func ParseLsPCI(b []byte) (Probe, error) {
	if len(b) > maxDMI {
		return Probe{}, &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("the text has %d bytes; the most is %d", len(b), maxDMI), Remedy: "give the output of `lspci -nn` alone"}
	}
	var p Probe
	for line := range strings.Lines(string(b)) {
		if !pciSlot().MatchString(line) {
			continue // details of the device above
		}
		class, id := "", ""
		if m := pciBare().FindStringSubmatch(line); m != nil {
			class, id = m[1], m[2]
		} else if at := pciClass().FindStringSubmatchIndex(line); at != nil {
			class = line[at[2]:at[3]]
			if m := pciID().FindStringSubmatch(line[at[1]:]); m != nil {
				id = m[1]
			}
		}
		if id == "" {
			continue
		}
		if class == "0200" || class == "0280" {
			p.Ports++
		}
		if Telling(class) && len(p.PCI) < maxList {
			p.PCI = append(p.PCI, id+" "+class)
		}
	}
	if len(p.PCI) == 0 && p.Ports == 0 {
		return Probe{}, &api.Error{Code: api.Invalid, Message: "this holds no device of lspci with its numbers", Remedy: "give the output of `lspci -nn`"}
	}
	slices.Sort(p.PCI)
	p.bound()
	return p, nil
}

// Telling leaves out the classes of PCI devices that every machine has: bridges and
// the parts of the processor.
func Telling(class string) bool {
	return !strings.HasPrefix(class, "06") && !strings.HasPrefix(class, "08")
}

// Add takes over what another probe of the same box knows and this one does not.
func (p *Probe) Add(o Probe) {
	fill := func(at *string, s string) {
		if *at == "" {
			*at = s
		}
	}
	for _, f := range []struct{ at, s *string }{{&p.Source, &o.Source}, {&p.Expect, &o.Expect}, {&p.Arch, &o.Arch}, {&p.Hypervisor, &o.Hypervisor},
		{&p.DMI.Vendor, &o.DMI.Vendor}, {&p.DMI.Product, &o.DMI.Product}, {&p.DMI.Version, &o.DMI.Version}, {&p.DMI.Family, &o.DMI.Family},
		{&p.DMI.BoardVendor, &o.DMI.BoardVendor}, {&p.DMI.Board, &o.DMI.Board}, {&p.DMI.Firmware, &o.DMI.Firmware}, {&p.DMI.Chassis, &o.DMI.Chassis},
		{&p.DeviceTree.Model, &o.DeviceTree.Model}, {&p.CPU, &o.CPU}} {
		fill(f.at, *f.s)
	}
	p.CPUs, p.MemoryMiB, p.Ports = max(p.CPUs, o.CPUs), max(p.MemoryMiB, o.MemoryMiB), max(p.Ports, o.Ports)
	if len(p.DeviceTree.Compatible) == 0 {
		p.DeviceTree.Compatible = o.DeviceTree.Compatible
	}
	if len(p.PCI) == 0 {
		p.PCI = o.PCI
	}
}
