package api

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// KindFlowPolicy says what becomes of packets at a box's interfaces.
const KindFlowPolicy = "FlowPolicy"

// FlowPolicySpec says what becomes of packets at interfaces: the first rule that a packet
// matches decides, of policies in order of their priority and name. What no rule matches goes
// its way as if there were none.
type FlowPolicySpec struct {
	// Interface picks the interfaces that the rules stand at; several may fit.
	Interface InterfaceSelector `json:"interface,omitzero"`
	// Direction is ingress (what comes in there) or egress (what leaves there). Default ingress.
	Direction string `json:"direction,omitempty"`
	// Priority orders policies, the lowest first: 1 to 1000, default 100.
	Priority int `json:"priority,omitempty"`
	// Offload is preferred (in the card where that can be, else in the kernel), required (the
	// same, but what the card takes is kept from the kernel's processors altogether) or off.
	// Default preferred.
	Offload string     `json:"offload,omitempty"`
	Rules   []FlowRule `json:"rules"`
}

// InterfaceSelector picks interfaces; all that is given must fit.
type InterfaceSelector struct {
	// Name is a name or a pattern such as enp*.
	Name string `json:"name,omitempty"`
	MAC  string `json:"mac,omitempty"`
	// SwitchPort is the port of a card's switch that the interface stands for, as the inventory
	// names it: p0 for the uplink, pf0vf1 for a virtual function, pf0sf88 for a scalable function.
	SwitchPort string `json:"switchPort,omitempty"`
}

// FlowRule is what becomes of packets that it matches. They are limited, then mirrored, then
// changed, then sent on.
type FlowRule struct {
	Name  string    `json:"name"`
	Match FlowMatch `json:"match,omitzero"`
	// Police drops what is more than a rate.
	Police *FlowPolice `json:"police,omitempty"`
	// Mirror gets a copy of each packet, as it came in.
	Mirror *FlowTarget `json:"mirror,omitempty"`
	// PopVLAN takes the tag away that Match.VLAN names.
	PopVLAN  bool      `json:"popVLAN,omitempty"`
	PushVLAN *FlowVLAN `json:"pushVLAN,omitempty"`
	// Encapsulate sends the packet into a tunnel.
	Encapsulate *FlowTunnel `json:"encapsulate,omitempty"`
	// To is where the packet goes instead of where it was going.
	To   *FlowTarget `json:"to,omitempty"`
	Drop bool        `json:"drop,omitempty"`
}

// FlowMatch tells packets; what is left out matches all.
type FlowMatch struct {
	// Family is ipv4 or ipv6; it follows from addresses where these are given.
	Family string `json:"family,omitempty"`
	// Source and Destination are addresses or prefixes.
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`
	// Protocol is tcp, udp, sctp, icmp, icmpv6, gre, esp, or a number.
	Protocol string `json:"protocol,omitempty"`
	// SourcePort and DestinationPort are a port or a range: "80", "1000-2000".
	SourcePort      string `json:"sourcePort,omitempty"`
	DestinationPort string `json:"destinationPort,omitempty"`
	DSCP            *int   `json:"dscp,omitempty"`
	// VLAN is the identifier of the outer tag, 1 to 4094.
	VLAN           int    `json:"vlan,omitempty"`
	VLANPriority   *int   `json:"vlanPriority,omitempty"`
	SourceMAC      string `json:"sourceMAC,omitempty"`
	DestinationMAC string `json:"destinationMAC,omitempty"`
	// Tunnel matches what came to this box in a tunnel; all else is then said of the packet
	// within, and the policy's interface does not matter.
	Tunnel *FlowTunnel `json:"tunnel,omitempty"`
}

// FlowPolice is a rate, in bits or in packets.
type FlowPolice struct {
	KbitPerSecond int64 `json:"kbitPerSecond,omitempty"`
	// BurstBytes may pass at once. Default: what 10 ms of the rate carry, at least 64 KiB:
	// packets may come joined to larger ones.
	BurstBytes       int64 `json:"burstBytes,omitempty"`
	PacketsPerSecond int64 `json:"packetsPerSecond,omitempty"`
}

// FlowVLAN is an 802.1Q tag.
type FlowVLAN struct {
	ID       int `json:"id"`
	Priority int `json:"priority,omitempty"`
}

// FlowTunnel is a tunnel's end.
type FlowTunnel struct {
	// Kind is vxlan, gre (Ethernet within, as gretap) or gtpu.
	Kind string `json:"kind"`
	// ID is the VNI, the GRE key or the TEID of the other end. In a match, 0 stands for any.
	ID int64 `json:"id,omitempty"`
	// In is the TEID by which the subscriber's packets come to this box (gtpu alone).
	In int64 `json:"in,omitempty"`
	// Source is this end and Destination the other; of a match, Source is the other end.
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`
	// Port is the UDP port of vxlan; default 4789.
	Port int `json:"port,omitempty"`
}

// FlowTarget is an interface of the box, or an app on it.
type FlowTarget struct {
	Interface  string `json:"interface,omitempty"`
	SwitchPort string `json:"switchPort,omitempty"`
	// App and Service name a service that runs on the box. Port is the container's; default:
	// the one that the packet has.
	App     string `json:"app,omitempty"`
	Service string `json:"service,omitempty"`
	Port    int    `json:"port,omitempty"`
}

// The values of FlowPolicySpec.
const (
	FlowIngress      = "ingress"
	FlowEgress       = "egress"
	OffloadPreferred = "preferred"
	OffloadRequired  = "required"
	OffloadOff       = "off"
	TunnelVXLAN      = "vxlan"
	TunnelGRE        = "gre"
	TunnelGTPU       = "gtpu"
)

// FlowState is how one rule stands at one interface.
type FlowState struct {
	Policy    string `json:"policy" cbor:"1,keyasint"`
	Rule      string `json:"rule" cbor:"2,keyasint"`
	Interface string `json:"interface,omitempty" cbor:"3,keyasint,omitempty"`
	// State is hardware, software, waiting (for what it names) or refused.
	State string `json:"state" cbor:"4,keyasint"`
	// Why says what keeps it from where it was wanted.
	Why string `json:"why,omitempty" cbor:"5,keyasint,omitempty"`
	// Packets and Bytes that it matched, Hardware those that the card counted.
	Packets  uint64 `json:"packets" cbor:"6,keyasint,omitempty"`
	Bytes    uint64 `json:"bytes" cbor:"7,keyasint,omitempty"`
	Hardware uint64 `json:"hardwarePackets,omitempty" cbor:"8,keyasint,omitempty"`
}

// The states of a rule.
const (
	FlowInHardware = "hardware"
	FlowInSoftware = "software"
	FlowWaiting    = "waiting"
	FlowRefused    = "refused"
)

// Bounds of a policy.
const (
	maxFlowRules  = 256
	maxInterface  = 15 // IFNAMSIZ without its end
	maxKbit       = 800_000_000
	maxFlowPolicy = 32 << 10
)

// IPProtocols are the numbers of the protocols that have a name in policies.
var IPProtocols = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "icmpv6": 58, "sctp": 132}

// ParseProtocol reads the protocol of a match: a name or a number.
func ParseProtocol(s string) (uint8, bool) {
	if n, ok := IPProtocols[s]; ok {
		return n, true
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return uint8(n), err == nil && strconv.FormatUint(n, 10) == s
}

// ParsePorts reads a port or a range of ports: 1 to 65535, the lower first.
func ParsePorts(s string) (from, to uint16, ok bool) {
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	a, err := strconv.ParseUint(low, 10, 16)
	b, err2 := strconv.ParseUint(high, 10, 16)
	return uint16(a), uint16(b), err == nil && err2 == nil && 0 < a && a <= b
}

// ParsePrefix reads an address, as the prefix of all its bits, or a prefix without bits behind it.
func ParsePrefix(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), a.Zone() == "" && !a.Is4In6()
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil && p == p.Masked() && !p.Addr().Is4In6()
}

func validateFlowPolicy(s *FlowPolicySpec, f *findings) {
	tunnelsOnly := len(s.Rules) > 0
	for _, r := range s.Rules {
		tunnelsOnly = tunnelsOnly && r.Match.Tunnel != nil
	}
	validateSelector(s.Interface, tunnelsOnly, f)
	oneOf := func(field, value string, values ...string) {
		for _, v := range append(values, "") {
			if v == value {
				return
			}
		}
		f.addf(field, "write "+strings.Join(values, ", "), "%s is none of them", quote(value))
	}
	oneOf("spec.direction", s.Direction, FlowIngress, FlowEgress)
	oneOf("spec.offload", s.Offload, OffloadPreferred, OffloadRequired, OffloadOff)
	if s.Priority < 0 || s.Priority > 1000 {
		f.addf("spec.priority", "from 1, which comes first, to 1000; leave it out for 100", "%d is out of range", s.Priority)
	}
	if len(s.Rules) == 0 || len(s.Rules) > maxFlowRules {
		f.addf("spec.rules", fmt.Sprintf("give 1 to %d; use several policies for more", maxFlowRules), "there are %d rules", len(s.Rules))
		return
	}
	seen, size := map[string]bool{}, 0
	for i := range s.Rules {
		r, at := &s.Rules[i], index("spec.rules", i)
		validateName(r.Name, join(at, "name"), f)
		if seen[r.Name] {
			f.addf(join(at, "name"), "give each rule a name of its own: counters are told by it", "%s is listed twice", quote(r.Name))
		}
		seen[r.Name] = true
		rule := flowRule{r, at, s.Direction == FlowEgress, f}
		rule.match(&r.Match, join(at, "match"))
		rule.actions()
		size += 64 + len(r.Name) + len(r.Match.Source) + len(r.Match.Destination)
	}
	if size > maxFlowPolicy {
		f.addf("spec.rules", "use several policies", "the rules take about %d bytes; the most is %d", size, maxFlowPolicy)
	}
}

func validateSelector(s InterfaceSelector, optional bool, f *findings) {
	if s == (InterfaceSelector{}) && !optional {
		f.add("spec.interface", "the rules stand nowhere", "give a name or pattern (enp*), a mac or a switchPort, as `edgectl describe device` shows them")
	}
	if s.Name != "" {
		if _, err := path.Match(s.Name, "x"); err != nil || !isInterface(s.Name) {
			f.addf("spec.interface.name", "write an interface's name, or a pattern such as enp*", "%s can be no interface's name", quote(s.Name))
		}
	}
	validateMAC(s.MAC, "spec.interface.mac", f)
	if s.SwitchPort != "" && !isInterface(s.SwitchPort) {
		f.addf("spec.interface.switchPort", "write it as the inventory has it: p0, pf0vf1, pf0sf88", "%s is no port of a switch", quote(s.SwitchPort))
	}
}

// isInterface is the kernel's rule for names of interfaces (dev_valid_name), in ASCII.
func isInterface(s string) bool {
	if len(s) == 0 || len(s) > maxInterface || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '/' || c == ':' {
			return false
		}
	}
	return true
}

func validateMAC(s, field string, f *findings) {
	if s == "" {
		return
	}
	if m, err := net.ParseMAC(s); err != nil || len(m) != 6 {
		f.addf(field, "write six pairs of hexadecimal digits: 02:00:5e:00:00:01", "%s is no MAC address", quote(s))
	}
}

// flowRule checks one rule.
type flowRule struct {
	*FlowRule
	at     string
	egress bool
	f      *findings
}

func (r flowRule) bad(field, remedy, format string, args ...any) {
	r.f.addf(r.at+"."+field, remedy, format, args...)
}

// family is ipv4, ipv6 or empty for either, as addresses and words of a match say it.
func (m *FlowMatch) family() string {
	for _, s := range []string{m.Source, m.Destination} {
		if p, ok := ParsePrefix(s); ok && p.Addr().Is4() {
			return "ipv4"
		} else if ok {
			return "ipv6"
		}
	}
	return m.Family
}

func (r flowRule) match(m *FlowMatch, at string) {
	prefixes := [2]netip.Prefix{}
	for i, field := range []string{"source", "destination"} {
		text := []string{m.Source, m.Destination}[i]
		if text == "" {
			continue
		}
		var ok bool
		if prefixes[i], ok = ParsePrefix(text); !ok {
			r.f.addf(join(at, field), "write an address or a prefix whose other bits are zero: 10.45.0.0/16, 2001:db8::/48", "%s is neither", quote(text))
		}
	}
	if a, b := prefixes[0], prefixes[1]; a.IsValid() && b.IsValid() && a.Addr().Is4() != b.Addr().Is4() {
		r.f.add(join(at, "destination"), "source and destination are of different families", "make two rules, one for each family")
	}
	switch m.Family {
	case "":
	case "ipv4", "ipv6":
		if m.family() != m.Family {
			r.f.addf(join(at, "family"), "leave it out: the addresses say it", "the addresses are not of %s", m.Family)
		}
	default:
		r.f.addf(join(at, "family"), "write ipv4 or ipv6, or leave it out for both", "%s is no family", quote(m.Family))
	}
	number, known := ParseProtocol(m.Protocol)
	if m.Protocol != "" && !known {
		r.f.addf(join(at, "protocol"), "write tcp, udp, sctp, icmp, icmpv6, gre, esp, or a number from 0 to 255", "%s is no protocol", quote(m.Protocol))
	}
	for _, p := range [][2]string{{"sourcePort", m.SourcePort}, {"destinationPort", m.DestinationPort}} {
		if p[1] == "" {
			continue
		}
		if _, _, ok := ParsePorts(p[1]); !ok {
			r.f.addf(join(at, p[0]), `write a port, "443", or a range, "1000-2000"`, "%s is neither", quote(p[1]))
		}
		if number != 6 && number != 17 && number != 132 {
			r.f.add(join(at, p[0]), "only tcp, udp and sctp have ports", "add protocol: tcp, udp or sctp")
		}
	}
	if m.DSCP != nil && (*m.DSCP < 0 || *m.DSCP > 63) {
		r.f.addf(join(at, "dscp"), "from 0 to 63", "%d is no code point", *m.DSCP)
	}
	if m.VLAN < 0 || m.VLAN > 4094 { // check: vlan
		r.f.addf(join(at, "vlan"), "from 1 to 4094", "%d is no VLAN", m.VLAN)
	}
	if p := m.VLANPriority; p != nil && (*p < 0 || *p > 7 || m.VLAN == 0) {
		r.f.add(join(at, "vlanPriority"), "a priority is 0 to 7 and goes with a vlan", "give both, or neither")
	}
	validateMAC(m.SourceMAC, join(at, "sourceMAC"), r.f)
	validateMAC(m.DestinationMAC, join(at, "destinationMAC"), r.f)
	if m.Tunnel != nil {
		r.tunnel(m.Tunnel, join(at, "tunnel"), true)
		if r.egress {
			r.f.add(join(at, "tunnel"), "a tunnel's packets come in, they do not leave", "take direction: egress away")
		}
		if m.Tunnel.Kind == TunnelGTPU && (m.SourceMAC != "" || m.DestinationMAC != "" || m.VLAN != 0) {
			r.f.add(join(at, "tunnel"), "there is no Ethernet within gtpu", "take MAC addresses and vlan out of the match")
		}
	}
}

func (r flowRule) tunnel(t *FlowTunnel, at string, match bool) {
	most := map[string]int64{TunnelVXLAN: 1<<24 - 1, TunnelGRE: 1<<32 - 1, TunnelGTPU: 1<<32 - 1}
	top, ok := most[t.Kind]
	if !ok {
		r.f.addf(join(at, "kind"), "write vxlan, gre or gtpu", "%s is no kind of tunnel", quote(t.Kind))
		return
	}
	low := int64(1)
	if match || t.Kind == TunnelGRE {
		low = 0
	}
	if t.ID < low || t.ID > top {
		r.f.addf(join(at, "id"), fmt.Sprintf("from %d to %d", low, top), "%d is out of range", t.ID)
	}
	if (t.Port != 0) != (t.Port > 0 && t.Port < 65536) || t.Port != 0 && t.Kind != TunnelVXLAN {
		r.f.addf(join(at, "port"), "a UDP port, 1 to 65535, of vxlan alone; leave it out for 4789", "%d is none", t.Port)
	}
	var ends [2]netip.Addr
	for i, field := range []string{"source", "destination"} {
		text := []string{t.Source, t.Destination}[i]
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if ends[i] = a; err != nil || a.Zone() != "" || a.IsUnspecified() {
			r.f.addf(join(at, field), "write the address of a tunnel's end", "%s is no address", quote(text))
		}
	}
	if a, b := ends[0], ends[1]; a.IsValid() && b.IsValid() && a.Is4() != b.Is4() {
		r.f.add(join(at, "destination"), "the ends are of different families", "give two addresses of one family")
	}
	switch {
	case match && t.Kind == TunnelGTPU && (t.ID != 0 || t.Source != "" || t.Destination != ""):
		r.f.add(at, "what came by gtpu is told by the subscriber's address", "leave out id and ends, and give match.source")
	case !match && t.Destination == "":
		r.f.add(join(at, "destination"), "the tunnel leads nowhere", "give the address of the other end")
	case !match && t.Kind != TunnelVXLAN && ends[1].IsValid() && !ends[1].Is4():
		r.f.add(join(at, "destination"), "gre and gtpu have ends of IPv4 alone here", "give the other end's IPv4 address, or use vxlan")
	}
	if gtp := !match && t.Kind == TunnelGTPU; gtp && (t.In < 1 || t.In > top) || !gtp && t.In != 0 {
		r.f.add(join(at, "in"), "this is the TEID that comes in, of gtpu alone", fmt.Sprintf("give 1 to %d where a gtpu tunnel is entered, and nothing elsewhere", top))
	}
}

// one reports whether text is a single address.
func one(text string) bool {
	p, ok := ParsePrefix(text)
	return ok && p.IsSingleIP()
}

func (r flowRule) actions() {
	ends := 0
	for _, is := range []bool{r.Drop, r.To != nil, r.Encapsulate != nil} {
		if is {
			ends++
		}
	}
	if ends > 1 { // check: one way
		r.f.add(r.at, "a packet goes one way", "keep one of drop, to and encapsulate")
	}
	if r.Drop && (r.PopVLAN || r.PushVLAN != nil) {
		r.bad("drop", "take popVLAN and pushVLAN away", "what is dropped needs no tag")
	}
	if r.PopVLAN && r.Match.VLAN == 0 { // check: pop
		r.bad("popVLAN", "say in match.vlan which tag it has", "a packet without a tag has none to take away")
	}
	if v := r.PushVLAN; v != nil && (v.ID < 1 || v.ID > 4094 || v.Priority < 0 || v.Priority > 7) {
		r.bad("pushVLAN", "an id is 1 to 4094, a priority 0 to 7", "%d with priority %d is no tag", v.ID, v.Priority)
	}
	if p := r.Police; p != nil {
		r.police(p)
	}
	if t := r.Encapsulate; t != nil {
		r.tunnel(t, join(r.at, "encapsulate"), false)
		if t.Kind == TunnelGTPU && (!one(r.Match.Destination) || r.Match.family() != "ipv4") {
			r.bad("match.destination", "give the subscriber's IPv4 address", "a gtpu tunnel carries the packets to one subscriber")
		}
	}
	if t := r.Mirror; t != nil {
		r.target(t, "mirror")
		if t.Port != 0 {
			r.bad("mirror.port", "take it away", "a copy is not changed, so it keeps its port")
		}
	}
	if t := r.To; t != nil {
		r.target(t, "to")
		if t.App != "" {
			r.breakout()
		}
	}
}

func (r flowRule) police(p *FlowPolice) {
	if (p.KbitPerSecond == 0) == (p.PacketsPerSecond == 0) {
		r.bad("police", "give kbitPerSecond or packetsPerSecond", "one rate is needed")
	}
	if p.KbitPerSecond < 0 || p.KbitPerSecond > maxKbit || p.KbitPerSecond != 0 && p.KbitPerSecond < 8 {
		r.bad("police.kbitPerSecond", fmt.Sprintf("from 8 to %d", maxKbit), "%d is out of range", p.KbitPerSecond)
	}
	if p.PacketsPerSecond < 0 || p.PacketsPerSecond > 1e9 {
		r.bad("police.packetsPerSecond", "from 1 to 1000000000", "%d is out of range", p.PacketsPerSecond)
	}
	if b := p.BurstBytes; b != 0 && (b < 1514 || b > 1<<30 || p.KbitPerSecond == 0) {
		r.bad("police.burstBytes", "from 1514, one packet, to 1 GiB, with kbitPerSecond; leave it out for the default", "%d is out of range", b)
	}
}

func (r flowRule) target(t *FlowTarget, field string) {
	given := 0
	for _, s := range []string{t.Interface, t.SwitchPort, t.App} {
		if s != "" {
			given++
		}
	}
	if given != 1 { // check: one target
		r.bad(field, "give one of interface, switchPort and app", "%d targets are given", given)
	}
	for _, s := range []string{t.Interface, t.SwitchPort} {
		if s != "" && !isInterface(s) {
			r.bad(field, "write an interface's name, or the port of a card's switch", "%s is neither", quote(s))
		}
	}
	if t.App == "" {
		if t.Service != "" || t.Port != 0 {
			r.bad(field, "add app, or take service and port away", "service and port are an app's")
		}
		return
	}
	validateName(t.App, r.at+"."+field+".app", r.f)
	if !profileName.MatchString(t.Service) {
		r.bad(field+".service", "name the service as the Compose file does", "%s is no service's name", quote(t.Service))
	}
	if t.Port < 0 || t.Port > 65535 {
		r.bad(field+".port", "from 1 to 65535; leave it out for the packet's own", "%d is no port", t.Port)
	}
}

// breakout checks what steers traffic to an app: packets are addressed to the app on the way in
// and get their address back on the way out, without memory, so that the match has to say which.
func (r flowRule) breakout() {
	m := &r.Match
	if r.egress {
		r.bad("to.app", "take direction: egress away", "what leaves the box does not come to an app")
	}
	if !one(m.Destination) || m.family() != "ipv4" { // check: one destination
		r.bad("match.destination", "give the one IPv4 address that users call", "packets to an app get its address, and the answers this one back")
	}
	from, to, ok := ParsePorts(m.DestinationPort)
	if number, _ := ParseProtocol(m.Protocol); number != 6 && number != 17 || !ok || from != to {
		r.bad("match.destinationPort", "give protocol tcp or udp, and one destinationPort", "an app is reached at one port")
	}
	if m.Source == "" { // check: callers
		r.bad("match.source", "say whose traffic it is: the users' prefix, or 0.0.0.0/0", "answers to these alone get the address back")
	}
	if r.PushVLAN != nil {
		r.bad("pushVLAN", "take it away", "an app's interface takes no tags")
	}
	if m.VLAN != 0 && !r.PopVLAN {
		r.bad("popVLAN", "add popVLAN: true", "an app's interface takes no tags")
	}
}
