package flow

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// What vishvananda/netlink 1.3 has no names for: linux/pkt_cls.h, linux/tc_act/*.h of Linux 6.12.
const (
	flagSkipHW  = 1 << 0
	flagSkipSW  = 1 << 1
	flagInHW    = 1 << 2
	flagNotInHW = 1 << 3

	attrPoliceRate64   = 8
	attrPolicePktRate  = 10
	attrPolicePktBurst = 11
	attrVLANProtocol   = 4
	attrVLANPriority   = 6
	attrEthDst         = 7
	attrEthSrc         = 8
	vlanPop            = 1
	vlanPush           = 2
	vlanPushEth        = 5
	attrNATParms       = 1
	natEgress          = 1
	attrStatsBasic     = 1
	attrStatsBasicHW   = 7
	attrStatsPackets64 = 8
	sumIPv4, sumTCP    = 1, 8
	sumUDP             = 16
	actPipe            = 3
	actStolen          = 4
	actShot            = 2
	actOK              = 0
	mirredRedirect     = 1
	mirredMirror       = 2
	tunnelSet          = 1
	tunnelRelease      = 2
	sizeBasic          = 12 // bytes u64, packets u32
	cookieMark         = "trbf"
	// tick is the nanoseconds by which the kernel is told how long a burst takes (PSCHED_SHIFT).
	tick = 64
)

// ID is the rule's identity: a digest of all that it says. Rules whose answers look alike are
// one, whoever wrote them.
func (r *Rule) ID() string {
	said := *r
	said.Capable, said.Interface, said.Behind = false, "", ""
	if said.Answers {
		said.Policy, said.Name = "", ""
	}
	b, err := json.Marshal(said)
	if err != nil {
		return "" // unreachable: plain values
	}
	sum := sha256.Sum256(b)
	return string(sum[:12])
}

// protocol is what the kernel files a rule under.
func (k *Key) protocol() uint16 {
	switch {
	case k.VLAN != 0:
		return eth8021Q
	case k.EthType != 0:
		return k.EthType
	}
	return ethAll
}

func be16(v uint16) []byte   { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte   { return binary.BigEndian.AppendUint32(nil, v) }
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func host64(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

// options are the rule as flower takes it.
func (r *Rule) options(flags uint32) (*nl.RtAttr, error) {
	o := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	r.Key.encode(o)
	o.AddRtAttr(nl.TCA_FLOWER_FLAGS, host32(flags))
	table := o.AddRtAttr(nl.TCA_FLOWER_ACT, nil)
	for i, a := range r.Actions {
		act := table.AddRtAttr(i+1, nil)
		if err := a.encode(act); err != nil {
			return nil, err
		}
		if i == 0 {
			act.AddRtAttr(nl.TCA_ACT_COOKIE, []byte(cookieMark+r.ID()))
		}
	}
	return o, nil
}

func (k *Key) encode(o *nl.RtAttr) {
	proto := k.protocol()
	if proto != ethAll {
		o.AddRtAttr(nl.TCA_FLOWER_KEY_ETH_TYPE, be16(proto))
	}
	if k.VLAN != 0 {
		o.AddRtAttr(nl.TCA_FLOWER_KEY_VLAN_ID, binary.NativeEndian.AppendUint16(nil, k.VLAN))
		if k.VLANPriority != nil {
			o.AddRtAttr(nl.TCA_FLOWER_KEY_VLAN_PRIO, []byte{*k.VLANPriority})
		}
		if k.EthType != 0 {
			o.AddRtAttr(nl.TCA_FLOWER_KEY_VLAN_ETH_TYPE, be16(k.EthType))
		}
	}
	for _, m := range []struct {
		mac       *[6]byte
		key, mask int
	}{{k.DstMAC, nl.TCA_FLOWER_KEY_ETH_DST, nl.TCA_FLOWER_KEY_ETH_DST_MASK}, {k.SrcMAC, nl.TCA_FLOWER_KEY_ETH_SRC, nl.TCA_FLOWER_KEY_ETH_SRC_MASK}} {
		if m.mac != nil {
			o.AddRtAttr(m.key, m.mac[:])
			o.AddRtAttr(m.mask, []byte{255, 255, 255, 255, 255, 255})
		}
	}
	if k.Proto != nil && k.EthType != 0 {
		o.AddRtAttr(nl.TCA_FLOWER_KEY_IP_PROTO, []byte{*k.Proto})
		encodePorts(o, *k.Proto, k.SrcPorts, k.DstPorts)
	}
	encodePrefix(o, k.Src, nl.TCA_FLOWER_KEY_IPV4_SRC, nl.TCA_FLOWER_KEY_IPV6_SRC)
	encodePrefix(o, k.Dst, nl.TCA_FLOWER_KEY_IPV4_DST, nl.TCA_FLOWER_KEY_IPV6_DST)
	if k.DSCP != nil && k.EthType != 0 {
		o.AddRtAttr(nl.TCA_FLOWER_KEY_IP_TOS, []byte{*k.DSCP << 2})
		o.AddRtAttr(nl.TCA_FLOWER_KEY_IP_TOS_MASK, []byte{0xfc})
	}
	if k.TunnelID != nil {
		o.AddRtAttr(nl.TCA_FLOWER_KEY_ENC_KEY_ID, be32(*k.TunnelID))
	}
	for _, a := range []struct {
		addr   netip.Addr
		v4, v6 int
	}{{k.TunnelSrc, nl.TCA_FLOWER_KEY_ENC_IPV4_SRC, nl.TCA_FLOWER_KEY_ENC_IPV6_SRC}, {k.TunnelDst, nl.TCA_FLOWER_KEY_ENC_IPV4_DST, nl.TCA_FLOWER_KEY_ENC_IPV6_DST}} {
		if a.addr.IsValid() {
			encodePrefix(o, netip.PrefixFrom(a.addr, a.addr.BitLen()), a.v4, a.v6)
		}
	}
}

// encodePrefix adds an address and its mask, whose number is the next one.
func encodePrefix(o *nl.RtAttr, p netip.Prefix, v4, v6 int) {
	if !p.IsValid() {
		return
	}
	key := v6
	if p.Addr().Is4() {
		key = v4
	}
	o.AddRtAttr(key, p.Addr().AsSlice())
	o.AddRtAttr(key+1, net.CIDRMask(p.Bits(), p.Addr().BitLen()))
}

func encodePorts(o *nl.RtAttr, proto uint8, src, dst [2]uint16) {
	type one struct{ key, mask int }
	exact := map[uint8][2]one{
		unix.IPPROTO_TCP:  {{nl.TCA_FLOWER_KEY_TCP_SRC, nl.TCA_FLOWER_KEY_TCP_SRC_MASK}, {nl.TCA_FLOWER_KEY_TCP_DST, nl.TCA_FLOWER_KEY_TCP_DST_MASK}},
		unix.IPPROTO_UDP:  {{nl.TCA_FLOWER_KEY_UDP_SRC, nl.TCA_FLOWER_KEY_UDP_SRC_MASK}, {nl.TCA_FLOWER_KEY_UDP_DST, nl.TCA_FLOWER_KEY_UDP_DST_MASK}},
		unix.IPPROTO_SCTP: {{nl.TCA_FLOWER_KEY_SCTP_SRC, nl.TCA_FLOWER_KEY_SCTP_SRC_MASK}, {nl.TCA_FLOWER_KEY_SCTP_DST, nl.TCA_FLOWER_KEY_SCTP_DST_MASK}},
	}[proto]
	ranges := [2]one{{nl.TCA_FLOWER_KEY_PORT_SRC_MIN, nl.TCA_FLOWER_KEY_PORT_SRC_MAX}, {nl.TCA_FLOWER_KEY_PORT_DST_MIN, nl.TCA_FLOWER_KEY_PORT_DST_MAX}}
	for i, p := range [][2]uint16{src, dst} {
		switch {
		case p[0] == 0 || exact[i].key == 0:
		case p[0] == p[1]:
			o.AddRtAttr(exact[i].key, be16(p[0]))
			o.AddRtAttr(exact[i].mask, be16(0xffff))
		default:
			o.AddRtAttr(ranges[i].key, be16(p[0]))
			o.AddRtAttr(ranges[i].mask, be16(p[1]))
		}
	}
}

// gen is what every action's parameters begin with (struct tc_gen).
func gen(action int32) []byte {
	b := make([]byte, 20)
	binary.NativeEndian.PutUint32(b[8:], uint32(action))
	return b
}

// kind begins an action, and gives the place of its options.
func kind(act *nl.RtAttr, name string) *nl.RtAttr {
	act.AddRtAttr(nl.TCA_ACT_KIND, nl.ZeroTerminated(name))
	return act.AddRtAttr(nl.TCA_ACT_OPTIONS|unix.NLA_F_NESTED, nil)
}

func (a *Action) encode(act *nl.RtAttr) error {
	switch a.Do {
	case Unwrap:
		kind(act, "tunnel_key").AddRtAttr(nl.TCA_TUNNEL_KEY_PARMS, append(gen(actPipe), host32(tunnelRelease)...))
	case Police:
		return a.police(kind(act, "police"))
	case Mirror:
		kind(act, "mirred").AddRtAttr(nl.TCA_MIRRED_PARMS, mirred(actPipe, mirredMirror, a.Link))
	case Redirect:
		kind(act, "mirred").AddRtAttr(nl.TCA_MIRRED_PARMS, mirred(actStolen, mirredRedirect, a.Link))
	case Pop:
		kind(act, "vlan").AddRtAttr(nl.TCA_VLAN_PARMS, append(gen(actPipe), host32(vlanPop)...))
	case Push:
		o := kind(act, "vlan")
		o.AddRtAttr(nl.TCA_VLAN_PARMS, append(gen(actPipe), host32(vlanPush)...))
		o.AddRtAttr(nl.TCA_VLAN_PUSH_VLAN_ID, binary.NativeEndian.AppendUint16(nil, a.VLAN))
		o.AddRtAttr(attrVLANProtocol, be16(eth8021Q))
		o.AddRtAttr(attrVLANPriority, []byte{a.Priority})
	case Header:
		o := kind(act, "vlan")
		o.AddRtAttr(nl.TCA_VLAN_PARMS, append(gen(actPipe), host32(vlanPushEth)...))
		o.AddRtAttr(attrEthDst, a.MAC[:])
		o.AddRtAttr(attrEthSrc, a.SrcMAC[:])
	case Address:
		a.address(act)
	case Answer:
		a.answer(act)
	case AnswerPort:
		p := nl.TcPedit{}
		p.SetSrcPort(a.Port, a.Proto)
		p.Sel.Action = actPipe
		p.Encode(act)
	case Sum:
		flags := uint32(sumIPv4 | sumTCP)
		if a.Proto == unix.IPPROTO_UDP {
			flags = sumIPv4 | sumUDP
		}
		kind(act, "csum").AddRtAttr(nl.TCA_CSUM_PARMS, append(gen(actPipe), host32(flags)...))
	case Wrap:
		a.wrap(kind(act, "tunnel_key"))
	case Drop:
		kind(act, "gact").AddRtAttr(nl.TCA_GACT_PARMS, gen(actShot))
	case Pass:
		kind(act, "gact").AddRtAttr(nl.TCA_GACT_PARMS, gen(actOK))
	default:
		return fmt.Errorf("flow: there is no action %d", a.Do)
	}
	return nil
}

func mirred(action int32, how uint32, link int) []byte {
	return append(append(gen(action), host32(how)...), host32(uint32(link))...)
}

// police drops what exceeds the rate and hands on what does not.
func (a *Action) police(o *nl.RtAttr) error {
	p := nl.TcPolice{Action: actShot}
	if a.Rate > 0 {
		p.Rate.Rate = uint32(min(a.Rate, 1<<32-1))
		// Packets come joined to larger ones (GRO), which an MTU would drop.
		p.Mtu = 1 << 20
		var table [256]uint32
		if netlink.CalcRtable(&p.Rate, table[:], -1, p.Mtu, nl.LINKLAYER_ETHERNET) < 0 {
			return api.Errorf(api.Invalid, "the kernel's clock cannot count a rate of %d bytes a second", a.Rate)
		}
		p.Burst = uint32(min(a.Burst*1e9/a.Rate/tick, 1<<32-1))
		o.AddRtAttr(nl.TCA_POLICE_TBF, p.Serialize())
		o.AddRtAttr(nl.TCA_POLICE_RATE, netlink.SerializeRtab(table))
		if a.Rate > 1<<32-1 {
			o.AddRtAttr(attrPoliceRate64, host64(a.Rate))
		}
	} else {
		o.AddRtAttr(nl.TCA_POLICE_TBF, p.Serialize())
		o.AddRtAttr(attrPolicePktRate, host64(a.Packets))
		o.AddRtAttr(attrPolicePktBurst, host64(a.Burst*1e9/a.Packets/tick))
	}
	o.AddRtAttr(nl.TCA_POLICE_RESULT, host32(actPipe))
	return nil
}

// address writes another destination: bytes of Ethernet's, IP's and the transport's header.
func (a *Action) address(act *nl.RtAttr) {
	p := nl.TcPedit{}
	if !a.KeepMACs {
		p.SetEthDst(a.MAC[:])
		p.SetEthSrc(a.SrcMAC[:])
	}
	p.SetIPv4Dst(a.To.AsSlice())
	p.SetDstPort(a.Port, a.Proto)
	p.Sel.Action = actPipe
	p.Encode(act)
}

// answer writes another source. The address by act_nat, which mends the sum of segments yet to
// be cut (pedit and csum leave these alone); the port is not in that sum.
func (a *Action) answer(act *nl.RtAttr) {
	p := append(gen(actPipe), a.To.AsSlice()...)
	p = append(append(p, a.From.AsSlice()...), 255, 255, 255, 255)
	kind(act, "nat").AddRtAttr(attrNATParms, append(p, host32(natEgress)...))
}

// wrap tells a tunnel's interface what to put around the packet.
func (a *Action) wrap(o *nl.RtAttr) {
	o.AddRtAttr(nl.TCA_TUNNEL_KEY_PARMS, append(gen(actPipe), host32(tunnelSet)...))
	o.AddRtAttr(nl.TCA_TUNNEL_KEY_ENC_KEY_ID, be32(a.ID))
	src, dst := nl.TCA_TUNNEL_KEY_ENC_IPV6_SRC, nl.TCA_TUNNEL_KEY_ENC_IPV6_DST
	if a.To.Is4() {
		src, dst = nl.TCA_TUNNEL_KEY_ENC_IPV4_SRC, nl.TCA_TUNNEL_KEY_ENC_IPV4_DST
	}
	o.AddRtAttr(src, a.From.AsSlice())
	o.AddRtAttr(dst, a.To.AsSlice())
	if a.Port != 0 {
		o.AddRtAttr(nl.TCA_TUNNEL_KEY_ENC_DST_PORT, be16(a.Port))
	}
	if a.Port == 0 || a.To.Is4() { // GRE's ends agree on checksums or refuse; RFC 7348 wants none over IPv4
		o.AddRtAttr(nl.TCA_TUNNEL_KEY_NO_CSUM, []byte{1})
	}
}

// readFilter reads one message of the kernel's about a filter; ok is false where it is none of
// flower's.
func readFilter(m []byte) (f Filter, ok bool) {
	if len(m) < nl.SizeofTcMsg {
		return f, false
	}
	msg := nl.DeserializeTcMsg(m)
	f = Filter{Hook: Hook{Link: int(msg.Ifindex), Egress: msg.Parent == netlink.HANDLE_MIN_EGRESS}, Handle: msg.Handle,
		Pref: uint16(msg.Info >> 16), EthType: nl.Swap16(uint16(msg.Info))}
	if f.Handle == 0 {
		return f, false // the head of a list, not a filter
	}
	flower := false
	for t, v := range attributes(m[nl.SizeofTcMsg:]) {
		switch t {
		case nl.TCA_KIND:
			flower = text(v) == "flower"
		case nl.TCA_CHAIN:
			f.Chain = u32(v)
		case nl.TCA_OPTIONS:
			f.readOptions(v)
		}
	}
	return f, flower
}

func (f *Filter) readOptions(b []byte) {
	for t, v := range attributes(b) {
		switch t {
		case nl.TCA_FLOWER_FLAGS:
			flags := u32(v)
			f.InHardware, f.SkipSoftware = flags&flagInHW != 0, flags&flagSkipSW != 0
		case nl.TCA_FLOWER_ACT:
			first := true
			for _, act := range attributes(v) {
				if first {
					f.readAction(act)
				}
				first = false
			}
		}
	}
}

// readAction takes the identity and the counters from the first action, which all packets of
// the filter meet.
func (f *Filter) readAction(b []byte) {
	for t, v := range attributes(b) {
		switch t {
		case nl.TCA_ACT_COOKIE:
			if len(v) == len(cookieMark)+12 && string(v[:len(cookieMark)]) == cookieMark {
				f.ID = string(v[len(cookieMark):])
			}
		case nl.TCA_ACT_STATS:
			for t, v := range attributes(v) {
				switch {
				case t == attrStatsBasic && len(v) >= sizeBasic:
					f.Bytes, f.Packets = binary.NativeEndian.Uint64(v), uint64(u32(v[8:]))
				case t == attrStatsBasicHW && len(v) >= sizeBasic:
					f.Hardware = uint64(u32(v[8:]))
				case t == attrStatsPackets64 && len(v) >= 8:
					f.Packets = binary.NativeEndian.Uint64(v)
				}
			}
		}
	}
}

// attributes lists the netlink attributes in b by their types; it ends at one that is not whole.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
