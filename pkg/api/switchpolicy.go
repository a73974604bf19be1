package api

import (
	"fmt"
	"net"
	"strings"

	"tributary.dev/tributary/pkg/pattern"
)

// SwitchPolicy is how the switch inside a network card shall be, and what stands behind its
// ports (devlink). What it does not say stays as the device found it.
type SwitchPolicy struct {
	// Mode is legacy or switchdev: in the latter each function has a port in the kernel, at
	// which flow policies stand.
	Mode string `json:"mode,omitempty"`
	// Inline is how much of a packet's headers functions hand to the switch with it: none,
	// link, network or transport.
	Inline string `json:"inline,omitempty"`
	// Encap is basic where the switch shall be able to put packets into tunnels, or none.
	Encap string `json:"encap,omitempty"`
	// Groups are those of rates: their members share what a group may send.
	Groups []RateGroup `json:"groups,omitempty"`
	// Ports are those that are to be set; scalable functions are made by being listed.
	Ports []PortPolicy `json:"ports,omitempty"`
}

// RateGroup bounds what several functions send together; 0 is no bound, in Mbit/s.
type RateGroup struct {
	Name    string `json:"name"`
	MinRate int    `json:"minRate,omitempty"`
	MaxRate int    `json:"maxRate,omitempty"`
}

// PortPolicy is the function behind one port of the switch.
type PortPolicy struct {
	// Port is named as the kernel names it: pf0vf1 (a virtual function), pf0sf88 (a scalable
	// one), pf0; of a DPU's host c1pf0vf1.
	Port string `json:"port"`
	// MAC is the function's address.
	MAC string `json:"mac,omitempty"`
	// State of a scalable function is active (the default) or inactive.
	State string `json:"state,omitempty"`
	// What the function can do; what follows RoCE is for virtual functions.
	RoCE        *bool `json:"roce,omitempty"`
	Migratable  *bool `json:"migratable,omitempty"`
	IPsecCrypto *bool `json:"ipsecCrypto,omitempty"`
	IPsecPacket *bool `json:"ipsecPacket,omitempty"`
	// MinRate and MaxRate are in Mbit/s; 0 is no bound. Group is one of the policy's.
	MinRate *int   `json:"minRate,omitempty"`
	MaxRate *int   `json:"maxRate,omitempty"`
	Group   string `json:"group,omitempty"`
}

// Words of a switch's policy.
const (
	SwitchLegacy = "legacy"
	Switchdev    = "switchdev"
	FunctionOn   = "active"
	FunctionOff  = "inactive"
)

var (
	portName  = pattern.New(`^(c[0-9]{1,3})?pf[0-9]{1,4}((vf|sf)[0-9]{1,9})?$`)
	scalable  = pattern.New(`^(c[0-9]{1,3})?pf[0-9]{1,4}sf[0-9]{1,9}$`)
	groupName = pattern.New(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// Bounds of a switch's policy.
const (
	maxGroups = 64
	maxPorts  = 1024
)

func (s *SwitchPolicy) validate(at string, f *findings) {
	if s.Mode == "" && s.Inline == "" && s.Encap == "" && len(s.Groups) == 0 && len(s.Ports) == 0 {
		f.add(at, "it says nothing", "give mode, inline, encap, groups or ports, or leave it out")
	}
	for _, w := range []struct {
		field, value, words string
		known               bool
	}{
		{"mode", s.Mode, "legacy or switchdev", s.Mode == SwitchLegacy || s.Mode == Switchdev},
		{"inline", s.Inline, "none, link, network or transport", s.Inline == "none" || s.Inline == "link" || s.Inline == "network" || s.Inline == "transport"},
		{"encap", s.Encap, "none or basic", s.Encap == "none" || s.Encap == "basic"},
	} {
		if w.value != "" && !w.known { // check: mode
			f.addf(join(at, w.field), "write "+w.words, "%s is no mode of a switch", quote(w.value))
		}
	}
	if s.Mode == SwitchLegacy && len(s.Groups)+len(s.Ports) > 0 { // check: legacy
		f.add(join(at, "mode"), "ports and groups are those of switchdev mode", "write switchdev, or take ports and groups away")
	}
	if len(s.Groups) > maxGroups || len(s.Ports) > maxPorts {
		f.addf(at, fmt.Sprintf("keep to %d groups and %d ports", maxGroups, maxPorts), "there are %d groups and %d ports", len(s.Groups), len(s.Ports))
		return
	}
	groups := map[string]bool{}
	for i, g := range s.Groups {
		at := index(join(at, "groups"), i)
		if !groupName.MatchString(g.Name) || groups[g.Name] { // check: group name
			f.addf(join(at, "name"), "give each group a name of its own: up to 32 small letters, digits and hyphens", "%s cannot be the name of a group here", quote(g.Name))
		}
		groups[g.Name] = true
		rates(&g.MinRate, &g.MaxRate, at, f)
	}
	ports, macs := map[string]bool{}, map[string]bool{}
	for i := range s.Ports {
		p, at := &s.Ports[i], index(join(at, "ports"), i)
		if ports[p.Port] { // check: port twice
			f.addf(join(at, "port"), "remove one of them", "the port %s is listed twice", p.Port)
		}
		ports[p.Port] = true
		p.validate(at, f)
		if p.MAC != "" && macs[strings.ToLower(p.MAC)] { // check: address twice
			f.addf(join(at, "mac"), "give each function its own", "the address %s is another function's", p.MAC)
		}
		macs[strings.ToLower(p.MAC)] = true
		if p.Group != "" && !groups[p.Group] { // check: group unknown
			f.addf(join(at, "group"), "list it in groups", "there is no group %s", quote(p.Group))
		}
	}
}

func (p *PortPolicy) validate(at string, f *findings) {
	if !portName.MatchString(p.Port) { // check: port
		f.addf(join(at, "port"), "write it like pf0vf1, pf0sf88, or c1pf0vf1 of a DPU's host", "%s is no port of a function", quote(p.Port))
	}
	if hw, err := net.ParseMAC(p.MAC); p.MAC != "" && (err != nil || len(hw) != 6 || hw[0]&1 != 0 || hw.String() == "00:00:00:00:00:00") { // check: address
		f.addf(join(at, "mac"), "write six bytes of one station, such as 02:00:00:00:00:01", "%s is no address of a function", quote(p.MAC))
	}
	if p.State != "" && p.State != FunctionOn && p.State != FunctionOff {
		f.addf(join(at, "state"), "write active or inactive", "%s is no state of a function", quote(p.State))
	}
	if p.State != "" && !scalable.MatchString(p.Port) { // check: state
		f.add(join(at, "state"), "only a scalable function has a state", "take it away")
	}
	if (p.Migratable != nil || p.IPsecCrypto != nil || p.IPsecPacket != nil) && !strings.Contains(p.Port, "vf") { // check: ability
		f.add(at, "migratable, ipsecCrypto and ipsecPacket are abilities of virtual functions", "take them away")
	}
	rates(p.MinRate, p.MaxRate, at, f)
}

// rates are checked alike wherever they stand; nil is not given.
func rates(least, most *int, at string, f *findings) {
	for _, r := range []struct {
		field string
		rate  *int
	}{{"minRate", least}, {"maxRate", most}} {
		if r.rate != nil && (*r.rate < 0 || *r.rate > maxRate) { // check: rate
			f.addf(join(at, r.field), fmt.Sprintf("give 0 (no bound) to %d Mbit/s", maxRate), "%d is no rate", *r.rate)
		}
	}
	if least != nil && most != nil && *most > 0 && *least > *most { // check: rates
		f.addf(join(at, "minRate"), "give at most maxRate", "at least %d and at most %d Mbit/s exclude each other", *least, *most)
	}
}
