package api

import (
	"fmt"
	"net"
	"path"
	"strings"

	"tributary.dev/tributary/pkg/pattern"
)

// KindNetworkPolicy says how network cards are divided into virtual functions.
const KindNetworkPolicy = "NetworkPolicy"

// NetworkPolicySpec gives the devices it selects policies for their network cards. It comes
// before what the device's hardware profile says. Of several policies that select a device
// the first by name comes first.
type NetworkPolicySpec struct {
	Selector Selector `json:"selector"`
	// Functions are tried in order: the first that matches a physical function rules it.
	Functions []FunctionPolicy `json:"functions,omitempty"`
}

// FunctionPolicy is how one physical function of a network card shall be. What it does not
// say stays as the device found it, and what it says is put back when the policy goes.
type FunctionPolicy struct {
	Match FunctionMatch `json:"match"`
	// VirtualFunctions is how many there shall be.
	VirtualFunctions *int `json:"virtualFunctions,omitempty"`
	// Change says what becomes of apps whose functions a change would take: refuse (the
	// default) leaves the functions as they are and names the users, drain stops these first.
	Change string `json:"change,omitempty"`
	// MTU is the physical function's, in bytes.
	MTU int `json:"mtu,omitempty"`
	// Default holds for all of its virtual functions; Virtual has what some have else.
	Default VirtualPolicy      `json:"default,omitzero"`
	Virtual []NumberedFunction `json:"virtual,omitempty"`
	// Switch is how the switch inside the card shall be. Its mode is not changed while apps
	// hold functions of the card; Change holds for it too.
	Switch *SwitchPolicy `json:"switch,omitempty"`
	// UpTo takes the number as an upper bound: a profile names a family of cards.
	UpTo bool `json:"-" cbor:"-"`
}

// FunctionMatch picks physical functions; all that is given must fit.
type FunctionMatch struct {
	// PCI is the address: "0000:3b:00.0".
	PCI string `json:"pci,omitempty"`
	// Name is the interface's name, or a pattern of it: "enp59s0f*".
	Name string `json:"name,omitempty"`
	// Driver is the kernel's: "ice".
	Driver string `json:"driver,omitempty"`
	// ID is vendor:device in hexadecimal: "8086:1592".
	ID string `json:"id,omitempty"`
}

// NumberedFunction is the policy of one virtual function, counted from 0.
type NumberedFunction struct {
	Index int           `json:"index"`
	Set   VirtualPolicy `json:"set"`
}

// VirtualPolicy is how a virtual function shall be.
type VirtualPolicy struct {
	// MAC is an address, for one function alone; "stable" derives one from the card's own
	// and the number, the same after each start; "found" leaves the driver's.
	MAC string `json:"mac,omitempty"`
	// VLAN tags all of its traffic, unseen by its user; 0 is no VLAN. QoS is the priority in
	// the tag, Protocol is 802.1Q or 802.1ad.
	VLAN     *int   `json:"vlan,omitempty"`
	QoS      int    `json:"qos,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	// Trust lets the user change its address and see what is not for it.
	Trust *bool `json:"trust,omitempty"`
	// SpoofCheck drops what it sends under other addresses than its own.
	SpoofCheck *bool `json:"spoofCheck,omitempty"`
	// MinRate and MaxRate are in Mbit/s; 0 is no bound.
	MinRate *int `json:"minRate,omitempty"`
	MaxRate *int `json:"maxRate,omitempty"`
	// Link is auto (as the card's own), on or off.
	Link string `json:"link,omitempty"`
	// RDMA says that it must offer RDMA; a function that does not is told of.
	RDMA bool `json:"rdma,omitempty"`
	// Driver is kernel or vfio-pci.
	Driver string `json:"driver,omitempty"`
	// MTU is what its interface gets, in bytes.
	MTU int `json:"mtu,omitempty"`
}

// Words of policies.
const (
	ChangeRefuse = "refuse"
	ChangeDrain  = "drain"
	MACStable    = "stable"
	MACFound     = "found"
	DriverKernel = "kernel"
	DriverVFIO   = "vfio-pci"
)

// For is what holds for the virtual function of a number.
func (p *FunctionPolicy) For(index int) VirtualPolicy {
	out := p.Default
	for _, v := range p.Virtual {
		if v.Index == index {
			out = out.with(v.Set)
		}
	}
	return out
}

// with lays what b says over a.
func (a VirtualPolicy) with(b VirtualPolicy) VirtualPolicy {
	if b.MAC != "" {
		a.MAC = b.MAC
	}
	if b.VLAN != nil { // priority and protocol are parts of the tag
		a.VLAN, a.QoS, a.Protocol = b.VLAN, b.QoS, b.Protocol
	}
	over(&a.Trust, b.Trust)
	over(&a.SpoofCheck, b.SpoofCheck)
	over(&a.MinRate, b.MinRate)
	over(&a.MaxRate, b.MaxRate)
	if b.Link != "" {
		a.Link = b.Link
	}
	a.RDMA = a.RDMA || b.RDMA
	if b.Driver != "" {
		a.Driver = b.Driver
	}
	if b.MTU != 0 {
		a.MTU = b.MTU
	}
	return a
}

func over[T any](a **T, b *T) {
	if b != nil {
		*a = b
	}
}

// Fits tells whether a physical function is meant.
func (m *FunctionMatch) Fits(pci, name, driver, id string) bool {
	if *m == (FunctionMatch{}) {
		return false
	}
	named, err := path.Match(m.Name, name)
	return (m.PCI == "" || strings.EqualFold(m.PCI, pci)) && (m.Name == "" || named && err == nil) &&
		(m.Driver == "" || m.Driver == driver) && (m.ID == "" || strings.EqualFold(m.ID, id))
}

var (
	pciAddress = pattern.New(`^[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$`)
	pciID      = pattern.New(`^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}$`)
	linkName   = pattern.New(`^[A-Za-z0-9_.*?\[\]-]{1,31}$`)
	driverName = pattern.New(`^[A-Za-z0-9_-]{1,63}$`)
)

// Bounds of policies: SR-IOV counts functions in 16 bits, the largest cards have some
// thousand.
const (
	maxFunctionPolicies = 64
	maxVirtualFunctions = 4096
	maxNumbered         = 1024
	leastMTU, mostMTU   = 68, 65535 // RFC 791; a length of 16 bits
	maxRate             = 1_000_000 // Mbit/s
)

func validateNetworkPolicy(s *NetworkPolicySpec, f *findings) {
	s.Selector.validate("spec.selector", f)
	if s.Selector.Empty() {
		f.add("spec.selector", "an empty selector picks no device", "give matchLabels or matchExpressions; for every device: matchExpressions: [{key: hw.tributary/arch, operator: Exists}]")
	}
	if n := len(s.Functions); n == 0 || n > maxFunctionPolicies {
		f.addf("spec.functions", fmt.Sprintf("give 1 to %d", maxFunctionPolicies), "there are %d policies of functions", n)
		return
	}
	seen := map[FunctionMatch]bool{}
	for i := range s.Functions {
		p, at := &s.Functions[i], index("spec.functions", i)
		p.validate(at, f)
		if seen[p.Match] {
			f.add(join(at, "match"), "an earlier entry matches the same and comes before it", "join the two")
		}
		seen[p.Match] = true
	}
}

func (p *FunctionPolicy) validate(at string, f *findings) {
	p.Match.validate(join(at, "match"), f)
	most := maxVirtualFunctions
	if n := p.VirtualFunctions; n != nil {
		if *n < 0 || *n > maxVirtualFunctions {
			f.addf(join(at, "virtualFunctions"), fmt.Sprintf("give 0 to %d, and not more than the card has (`edgectl describe device`)", maxVirtualFunctions), "%d functions cannot be", *n)
		} else {
			most = *n
		}
	}
	if p.Change != "" && p.Change != ChangeRefuse && p.Change != ChangeDrain {
		f.addf(join(at, "change"), "write refuse or drain", "%s is not a way to change it", quote(p.Change))
	}
	validateMTU(p.MTU, join(at, "mtu"), f)
	if p.Switch != nil {
		p.Switch.validate(join(at, "switch"), f)
	}
	p.Default.validate(join(at, "default"), f)
	if m := p.Default.MAC; m != "" && m != MACStable && m != MACFound {
		f.add(join(join(at, "default"), "mac"), "one address cannot be that of all functions", "write stable, or give each its own in virtual")
	}
	if len(p.Virtual) > maxNumbered {
		f.addf(join(at, "virtual"), "say in default what they have in common", "there are %d entries; the most is %d", len(p.Virtual), maxNumbered)
		return
	}
	numbers, macs := map[int]bool{}, map[string]bool{}
	for i := range p.Virtual {
		v, at := &p.Virtual[i], index(join(at, "virtual"), i)
		if v.Index < 0 || v.Index >= most {
			f.addf(join(at, "index"), "functions are counted from 0", "of %d functions none has the number %d", most, v.Index)
		}
		if numbers[v.Index] {
			f.addf(join(at, "index"), "remove one of them", "the function %d is listed twice", v.Index)
		}
		numbers[v.Index] = true
		v.Set.validate(join(at, "set"), f)
		if hw, err := net.ParseMAC(v.Set.MAC); err == nil {
			if macs[hw.String()] {
				f.addf(join(join(at, "set"), "mac"), "give each function its own", "the address %s is another function's", hw)
			}
			macs[hw.String()] = true
		}
	}
}

func (m *FunctionMatch) validate(at string, f *findings) {
	if *m == (FunctionMatch{}) {
		f.add(at, "it says of no card that it is meant", "give pci, name, driver or id")
	}
	for _, w := range []struct {
		field, value, like string
		form               *pattern.Pattern
	}{
		{"pci", m.PCI, "0000:3b:00.0, as `edgectl describe device` shows it", pciAddress}, {"id", m.ID, "8086:1592 (vendor:device)", pciID},
		{"name", m.Name, "enp59s0f0 or enp59s0f*", linkName}, {"driver", m.Driver, "ice", driverName},
	} {
		if w.value != "" && !w.form.MatchString(w.value) {
			f.addf(join(at, w.field), "write it like "+w.like, "%s is none", quote(w.value))
		}
	}
	if _, err := path.Match(m.Name, ""); err != nil {
		f.addf(join(at, "name"), "write it like enp59s0f*", "%s is not a pattern", quote(m.Name))
	}
}

func validateMTU(mtu int, at string, f *findings) {
	if mtu != 0 && (mtu < leastMTU || mtu > mostMTU) {
		f.addf(at, fmt.Sprintf("give %d to %d bytes, or leave it out", leastMTU, mostMTU), "%d is no MTU", mtu)
	}
}

func (v *VirtualPolicy) validate(at string, f *findings) {
	if v.MAC != "" && v.MAC != MACStable && v.MAC != MACFound {
		hw, err := net.ParseMAC(v.MAC)
		if err != nil || len(hw) != 6 || hw[0]&1 != 0 || hw.String() == "00:00:00:00:00:00" {
			f.addf(join(at, "mac"), "write six bytes of one station, such as 02:00:00:00:00:01, or stable, or found", "%s is no address of a function", quote(v.MAC))
		}
	}
	if n := v.VLAN; n != nil && (*n < 0 || *n > 4094) {
		f.addf(join(at, "vlan"), "a VLAN is 1 to 4094; 0 is none", "%d is not a VLAN", *n)
	}
	if v.QoS < 0 || v.QoS > 7 {
		f.addf(join(at, "qos"), "a priority is 0 to 7", "%d is not a priority", v.QoS)
	}
	if (v.QoS != 0 || v.Protocol != "") && (v.VLAN == nil || *v.VLAN == 0) {
		f.add(at, "priority and protocol are parts of a VLAN's tag", "give vlan too, or leave qos and protocol out")
	}
	if v.Protocol != "" && v.Protocol != "802.1Q" && v.Protocol != "802.1ad" {
		f.addf(join(at, "protocol"), "write 802.1Q or 802.1ad", "%s is not a protocol of VLANs", quote(v.Protocol))
	}
	rates(v.MinRate, v.MaxRate, at, f)
	if v.Link != "" && v.Link != "auto" && v.Link != "on" && v.Link != "off" {
		f.addf(join(at, "link"), "write auto, on or off", "%s is not a state of a link", quote(v.Link))
	}
	if v.Driver != "" && v.Driver != DriverKernel && v.Driver != DriverVFIO {
		f.addf(join(at, "driver"), "write kernel or vfio-pci", "%s is not a driver that functions are given to", quote(v.Driver))
	}
	if v.RDMA && v.Driver == DriverVFIO {
		f.add(join(at, "rdma"), "a function that vfio-pci serves has no RDMA of the kernel's", "leave out one of them")
	}
	validateMTU(v.MTU, join(at, "mtu"), f)
}
