package flow

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Types of what Ethernet frames hold.
const (
	ethIPv4  = 0x0800
	ethIPv6  = 0x86dd
	eth8021Q = 0x8100
	ethAll   = 0x0003 // ETH_P_ALL
)

const defaultVXLAN = 4789

// Tunnel is an interface that puts packets into tunnels and takes them out, whose ends the
// rules tell.
type Tunnel struct {
	Name, Kind string
	Port       int // of vxlan
}

// Tunnels are those that policies need.
func Tunnels(policies map[string]api.FlowPolicySpec) []Tunnel {
	by := map[string]Tunnel{}
	for _, p := range policies {
		for _, r := range p.Rules {
			for _, t := range []*api.FlowTunnel{r.Match.Tunnel, r.Encapsulate} {
				if t != nil {
					by[tunnelOf(t).Name] = tunnelOf(t)
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(by), func(a, b Tunnel) int { return cmp.Compare(a.Name, b.Name) })
}

func tunnelOf(t *api.FlowTunnel) Tunnel {
	switch t.Kind {
	case api.TunnelGRE:
		return Tunnel{Name: nameGRE, Kind: t.Kind}
	case api.TunnelGTPU:
		return Tunnel{Name: nameGTP, Kind: t.Kind}
	}
	port := cmp.Or(t.Port, defaultVXLAN)
	return Tunnel{Name: fmt.Sprintf("%svx%d", tunnelPrefix, port), Kind: t.Kind, Port: port}
}

// Compile says which rules the policies are. It is a plain function: the same policies in the
// same world are the same rules.
func Compile(policies map[string]api.FlowPolicySpec, w World) Set {
	names := slices.SortedFunc(maps.Keys(policies), func(a, b string) int {
		return cmp.Or(cmp.Compare(cmp.Or(policies[a].Priority, 100), cmp.Or(policies[b].Priority, 100)), cmp.Compare(a, b))
	})
	var out Set
	var answers []Rule
	for _, name := range names {
		p := policies[name]
		for i := range p.Rules {
			c := compiler{World: w, policy: name, spec: &p, rule: &p.Rules[i]}
			c.compile()
			out.Rules = append(out.Rules, c.rules...)
			answers = append(answers, c.answers...)
			out.Sessions = append(out.Sessions, c.sessions...)
			out.States = append(out.States, c.states...)
		}
	}
	// Two policies may steer to one service in the same words.
	slices.SortStableFunc(answers, func(a, b Rule) int { return cmp.Compare(a.ID(), b.ID()) })
	answers = slices.CompactFunc(answers, func(a, b Rule) bool { return a.ID() == b.ID() })
	out.Rules = append(answers, out.Rules...)
	slices.SortFunc(out.Sessions, func(a, b Session) int { return cmp.Compare(a.In, b.In) })
	out.Sessions = slices.CompactFunc(out.Sessions, func(a, b Session) bool { return a.In == b.In })
	return out
}

// compiler turns one rule of a policy into filters.
type compiler struct {
	World
	policy string
	spec   *api.FlowPolicySpec
	rule   *api.FlowRule

	rules, answers []Rule
	sessions       []Session
	states         []api.FlowState
}

func (c *compiler) waits(link, format string, args ...any) {
	c.states = append(c.states, api.FlowState{Policy: c.policy, Rule: c.rule.Name, Interface: link, State: api.FlowWaiting, Why: fmt.Sprintf(format, args...)})
}

func (c *compiler) byName(name string) (Link, bool) {
	i := slices.IndexFunc(c.Links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false
	}
	return c.Links[i], true
}

// hooks are the interfaces at which the rule stands.
func (c *compiler) hooks() (out []Link) {
	if t := c.rule.Match.Tunnel; t != nil {
		l, ok := c.byName(tunnelOf(t).Name)
		if !ok {
			c.waits("", "the kernel has no interface for %s", t.Kind)
			return nil
		}
		return []Link{l}
	}
	s := c.spec.Interface
	for _, l := range c.Links {
		fits, _ := path.Match(cmp.Or(s.Name, "*"), l.Name)
		if fits && !strings.HasPrefix(l.Name, tunnelPrefix) && (s.MAC == "" || sameMAC(s.MAC, l.MAC)) && (s.SwitchPort == "" || s.SwitchPort == l.SwitchPort) {
			out = append(out, l)
		}
	}
	if len(out) == 0 {
		c.waits("", "no interface is %s", strings.TrimSpace(s.Name+" "+s.MAC+" "+s.SwitchPort))
	}
	return out
}

func sameMAC(a, b string) bool {
	x, err := net.ParseMAC(a)
	y, err2 := net.ParseMAC(b)
	return err == nil && err2 == nil && slices.Equal(x, y)
}

func (c *compiler) compile() {
	for _, at := range c.hooks() {
		actions, back, why := c.actions(at)
		if why != "" {
			c.waits(at.Name, "%s", why)
			continue
		}
		for _, key := range c.keys() {
			r := Rule{Policy: c.policy, Name: c.rule.Name, Interface: at.Name, Hook: Hook{at.Index, c.spec.Direction == api.FlowEgress},
				Offload: cmp.Or(c.spec.Offload, api.OffloadPreferred), Capable: at.Offload, Key: key, Actions: actions}
			c.rules = append(c.rules, r)
		}
		if back != nil {
			c.answers = append(c.answers, *back)
		}
	}
}

// keys are the matches of the rule: one for each family where it does not say which.
func (c *compiler) keys() (out []Key) {
	m := &c.rule.Match
	var k Key
	k.Src, _ = api.ParsePrefix(m.Source)
	k.Dst, _ = api.ParsePrefix(m.Destination)
	if n, ok := api.ParseProtocol(m.Protocol); ok {
		k.Proto = &n
	}
	k.SrcPorts[0], k.SrcPorts[1], _ = api.ParsePorts(m.SourcePort)
	k.DstPorts[0], k.DstPorts[1], _ = api.ParsePorts(m.DestinationPort)
	k.DSCP, k.VLAN, k.VLANPriority = small(m.DSCP), uint16(m.VLAN), small(m.VLANPriority)
	k.SrcMAC, k.DstMAC = parseMAC(m.SourceMAC), parseMAC(m.DestinationMAC)
	if t := m.Tunnel; t != nil && t.Kind != api.TunnelGTPU {
		k.Tunnel = true
		if t.ID != 0 {
			id := uint32(t.ID)
			k.TunnelID = &id
		}
		k.TunnelSrc, _ = netip.ParseAddr(t.Source)
		k.TunnelDst, _ = netip.ParseAddr(t.Destination)
	}
	for _, eth := range families(m, k) {
		k.EthType = eth
		out = append(out, k)
	}
	return out
}

func families(m *api.FlowMatch, k Key) []uint16 {
	v4 := m.Family == "ipv4" || k.Src.IsValid() && k.Src.Addr().Is4() || k.Dst.IsValid() && k.Dst.Addr().Is4() || m.Protocol == "icmp"
	v6 := m.Family == "ipv6" || k.Src.IsValid() && !k.Src.Addr().Is4() || k.Dst.IsValid() && !k.Dst.Addr().Is4() || m.Protocol == "icmpv6"
	switch {
	case v4:
		return []uint16{ethIPv4}
	case v6:
		return []uint16{ethIPv6}
	case k.Proto != nil || k.DSCP != nil:
		return []uint16{ethIPv4, ethIPv6}
	}
	return []uint16{0}
}

func small(p *int) *uint8 {
	if p == nil {
		return nil
	}
	v := uint8(*p)
	return &v
}

func parseMAC(s string) *[6]byte {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 {
		return nil
	}
	return (*[6]byte)(m)
}

// actions are what happens to the rule's packets at a link, and the way back of answers, where
// there is one. why says what is missing.
func (c *compiler) actions(at Link) (list []Action, back *Rule, why string) {
	r := c.rule
	if t := r.Match.Tunnel; t != nil && t.Kind != api.TunnelGTPU {
		list = append(list, Action{Do: Unwrap})
	}
	if p := r.Police; p != nil {
		list = append(list, police(p))
	}
	if r.Mirror != nil {
		to, _, why := c.target(r.Mirror, at)
		if why != "" {
			return nil, nil, why
		}
		if !at.Ethernet {
			return nil, nil, "packets at " + at.Name + " have no Ethernet header, which a copy needs"
		}
		list = append(list, Action{Do: Mirror, Link: to.Index})
	}
	if r.PopVLAN {
		list = append(list, Action{Do: Pop})
	}
	if v := r.PushVLAN; v != nil {
		list = append(list, Action{Do: Push, VLAN: uint16(v.ID), Priority: uint8(v.Priority)})
	}
	switch {
	case r.Drop:
		return append(list, Action{Do: Drop}), nil, ""
	case r.Encapsulate != nil:
		more, why := c.wrap(r.Encapsulate, at)
		return append(list, more...), nil, why
	case r.To != nil && r.To.App != "":
		more, back, why := c.breakout(at)
		return append(list, more...), back, why
	case r.To != nil:
		to, _, why := c.target(r.To, at)
		if why == "" && at.Ethernet != to.Ethernet && to.Ethernet {
			why = "packets at " + at.Name + " have no Ethernet header, which " + to.Name + " needs"
		}
		return append(list, Action{Do: Redirect, Link: to.Index}), nil, why
	}
	return append(list, Action{Do: Pass}), nil, ""
}

// police counts bytes; the burst is 10 ms of the rate where nobody said.
func police(p *api.FlowPolice) Action {
	if p.PacketsPerSecond > 0 {
		return Action{Do: Police, Packets: uint64(p.PacketsPerSecond), Burst: max(uint64(p.PacketsPerSecond)/100, 16)}
	}
	rate := uint64(p.KbitPerSecond) * 125
	return Action{Do: Police, Rate: rate, Burst: cmp.Or(uint64(p.BurstBytes), max(rate/100, 64<<10))}
}

// target finds the interface of a target; for an app that of its container.
func (c *compiler) target(t *api.FlowTarget, at Link) (Link, Endpoint, string) {
	if t.App != "" {
		if c.Endpoint != nil {
			if e, ok := c.Endpoint(t.App, t.Service); ok {
				return Link{Index: e.Link, Ethernet: true}, e, ""
			}
		}
		return Link{}, Endpoint{}, fmt.Sprintf("service %s of app %s does not run here with a network of its own", t.Service, t.App)
	}
	best := -1
	for i, l := range c.Links {
		if t.Interface != "" && l.Name == t.Interface || t.SwitchPort != "" && l.SwitchPort == t.SwitchPort {
			if best < 0 || l.Switch == at.Switch && c.Links[best].Switch != at.Switch {
				best = i
			}
		}
	}
	if best < 0 {
		return Link{}, Endpoint{}, "there is no interface " + t.Interface + t.SwitchPort
	}
	return c.Links[best], Endpoint{}, ""
}

// wrap sends packets into a tunnel.
func (c *compiler) wrap(t *api.FlowTunnel, at Link) (list []Action, why string) {
	l, ok := c.byName(tunnelOf(t).Name)
	if !ok {
		return nil, "the kernel has no interface for " + t.Kind
	}
	from, _ := netip.ParseAddr(t.Source)
	to, _ := netip.ParseAddr(t.Destination)
	if t.Kind == api.TunnelGTPU {
		subscriber, _ := api.ParsePrefix(c.rule.Match.Destination)
		c.sessions = append(c.sessions, Session{In: uint32(t.In), Out: uint32(t.ID), Subscriber: subscriber.Addr(), Peer: to})
		return []Action{{Do: Redirect, Link: l.Index}}, ""
	}
	if !at.Ethernet {
		return nil, "packets at " + at.Name + " have no Ethernet header, which " + t.Kind + " needs"
	}
	if !from.IsValid() {
		from = netip.IPv4Unspecified()
		if to.Is6() {
			from = netip.IPv6Unspecified()
		}
	}
	port := uint16(0)
	if t.Kind == api.TunnelVXLAN {
		port = uint16(cmp.Or(t.Port, defaultVXLAN))
	}
	return []Action{{Do: Wrap, ID: uint32(t.ID), From: from, To: to, Port: port}, {Do: Redirect, Link: l.Index}}, ""
}

// breakout gives packets to a container under its own address, and its answers the address
// that was called.
func (c *compiler) breakout(at Link) (list []Action, back *Rule, why string) {
	_, e, why := c.target(c.rule.To, at)
	if why != "" {
		return nil, nil, why
	}
	m := &c.rule.Match
	called, _ := api.ParsePrefix(m.Destination)
	callers, _ := api.ParsePrefix(m.Source)
	proto, _ := api.ParseProtocol(m.Protocol)
	port, _, _ := api.ParsePorts(m.DestinationPort)
	inside := cmp.Or(uint16(c.rule.To.Port), port)

	if !at.Ethernet {
		list = append(list, Action{Do: Header, MAC: e.MAC, SrcMAC: e.Gateway})
	}
	list = append(list, Action{Do: Address, MAC: e.MAC, SrcMAC: e.Gateway, To: e.Address, Port: inside, Proto: proto, KeepMACs: !at.Ethernet},
		Action{Do: Sum, Proto: proto}, Action{Do: Redirect, Link: e.Link})
	back = &Rule{Policy: c.policy, Name: c.rule.Name, Interface: at.Name, Answers: true, Hook: Hook{Link: e.Link}, Offload: api.OffloadOff,
		Key:     Key{EthType: ethIPv4, Proto: &proto, Src: netip.PrefixFrom(e.Address, 32), Dst: callers, SrcPorts: [2]uint16{inside, inside}},
		Actions: []Action{{Do: Answer, To: e.Address, From: called.Addr()}}}
	if port != inside {
		back.Actions = append(back.Actions, Action{Do: AnswerPort, Port: port, Proto: proto})
	}
	back.Actions = append(back.Actions, Action{Do: Sum, Proto: proto})
	if at.Ethernet {
		back.Actions = append(back.Actions, Action{Do: Pass}) // the box's routes lead to the callers
	} else {
		back.Actions = append(back.Actions, Action{Do: Redirect, Link: at.Index})
	}
	return list, back, ""
}
