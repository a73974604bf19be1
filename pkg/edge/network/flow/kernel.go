package flow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// Kernel does what plans say, in the network namespace in which it was opened. Its methods are
// for one goroutine.
type Kernel struct {
	route *nl.NetlinkSocket // with the kernel's words for what it refuses
	seq   map[int]*nl.SocketHandle
	h     *netlink.Handle
}

// Open opens the kernel of the calling thread's network namespace.
func Open() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	k := &Kernel{h: h}
	if k.route, err = nl.Subscribe(unix.NETLINK_ROUTE); err == nil {
		err = errors.Join(k.route.SetExtAck(true), k.route.SetReceiveTimeout(&nl.SocketTimeoutTv))
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	k.seq = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: k.route}}
	return k, nil
}

// Close lets go of the kernel; what stands there stays.
func (k *Kernel) Close() error {
	k.route.Close()
	k.h.Close()
	return nil
}

// Changes tells of interfaces that come, go or change, until ctx ends; several at once may be
// one word.
func (k *Kernel) Changes(ctx context.Context) (<-chan struct{}, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, s.Close)
	out := make(chan struct{}, 1)
	go func() {
		for {
			if _, _, err := s.Receive(); err != nil && ctx.Err() != nil {
				return
			} else if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return // what is not told is found by looking now and then
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}

func (k *Kernel) request(proto, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(proto, flags)
	r.Sockets = k.seq
	return r
}

// Attributes of links (linux/if_link.h) that vishvananda/netlink does not read.
const (
	attrPhysSwitch = 36
	attrPhysPort   = 38
)

// Links lists the interfaces.
func (k *Kernel) Links() ([]Link, error) {
	r := k.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(0)))
	messages, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []Link
	for _, m := range messages {
		if l, ok := readLink(m); ok {
			out = append(out, l)
		}
	}
	for i := range out {
		if out[i].Kind == "" && out[i].Ethernet {
			out[i].Offload, _ = k.offload(out[i].Name) // a card that cannot tell takes none
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return out, nil
}

func readLink(m []byte) (l Link, ok bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return l, false
	}
	msg := nl.DeserializeIfInfomsg(m)
	l = Link{Index: int(msg.Index), Ethernet: msg.Type == unix.ARPHRD_ETHER}
	for t, v := range attributes(m[unix.SizeofIfInfomsg:]) {
		switch t {
		case unix.IFLA_IFNAME:
			l.Name = text(v)
		case unix.IFLA_ADDRESS:
			if len(v) == 6 {
				l.MAC = fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", v[0], v[1], v[2], v[3], v[4], v[5])
			}
		case attrPhysSwitch:
			l.Switch = fmt.Sprintf("%x", v)
		case attrPhysPort:
			l.SwitchPort = text(v)
		case unix.IFLA_LINKINFO:
			for t, v := range attributes(v) {
				if t == unix.IFLA_INFO_KIND {
					l.Kind = text(v)
				}
			}
		}
	}
	if l.Kind == "netdevsim" { // a card for tests, which says what makes it
		l.Kind = ""
	}
	return l, l.Index > 0 && l.Name != "" && msg.Flags&unix.IFF_LOOPBACK == 0
}

// Filters lists the filters of flower at the given interfaces, and counts by interface what is
// not ours, of whatever kind.
func (k *Kernel) Filters(links []Link) (out []Filter, foreign map[int]int, err error) {
	hooked, err := k.hooked()
	if err != nil {
		return nil, nil, err
	}
	foreign = map[int]int{}
	for _, l := range links {
		if !hooked[l.Index] {
			continue
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			r := k.request(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
			r.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(l.Index), Parent: parent})
			messages, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
			switch {
			case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
				continue // it went meanwhile
			case err != nil:
				return nil, nil, fmt.Errorf("list the rules at %s: %w", l.Name, err)
			}
			for _, m := range messages {
				f, ok := readFilter(m)
				if f.Handle != 0 && f.ID == "" {
					foreign[l.Index]++
				}
				if ok {
					f.Hook = Hook{l.Index, parent == netlink.HANDLE_MIN_EGRESS}
					out = append(out, f)
				}
			}
		}
	}
	return out, foreign, nil
}

// hooked are the interfaces that have a clsact.
func (k *Kernel) hooked() (map[int]bool, error) {
	r := k.request(unix.RTM_GETQDISC, unix.NLM_F_DUMP)
	r.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL})
	messages, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
	if err != nil {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	out := map[int]bool{}
	for _, m := range messages {
		if len(m) < nl.SizeofTcMsg {
			continue
		}
		msg := nl.DeserializeTcMsg(m)
		for t, v := range attributes(m[nl.SizeofTcMsg:]) {
			if t == nl.TCA_KIND && text(v) == "clsact" {
				out[int(msg.Ifindex)] = true
			}
		}
	}
	return out, nil
}

// Hook readies an interface for rules. made is false where it was ready.
func (k *Kernel) Hook(link int) (made bool, err error) {
	err = k.qdisc(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, link)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	return err == nil, err
}

// Unhook takes back what Hook made.
func (k *Kernel) Unhook(link int) error {
	err := k.qdisc(unix.RTM_DELQDISC, 0, link)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (k *Kernel) qdisc(proto, flags, link int) error {
	r := k.request(proto, flags|unix.NLM_F_ACK)
	r.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(link), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT})
	r.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("clsact")))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Add puts a rule at a preference. Where the card was to have it and does not, why says what
// the card said; the rule then stands in software.
func (k *Kernel) Add(r *Rule, pref uint16) (why string, err error) {
	switch {
	case r.Soft || r.Offload == api.OffloadOff:
		return "", k.filter(r, pref, flagSkipHW)
	case r.Offload == api.OffloadRequired:
		refused := k.filter(r, pref, flagSkipSW)
		if refused == nil {
			return "", nil
		}
		return words(refused), k.filter(r, pref, 0)
	}
	return "", k.filter(r, pref, 0)
}

// InHardware tells whether a rule that was added is in the card.
func (k *Kernel) InHardware(r *Rule, pref uint16) (bool, error) {
	q := k.request(unix.RTM_GETTFILTER, 0)
	q.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(r.Hook.Link), Handle: 1, Parent: parent(r.Hook), Info: netlink.MakeHandle(pref, nl.Swap16(r.Key.protocol()))})
	q.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("flower")))
	messages, err := q.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
	if err != nil {
		return false, err
	}
	for _, m := range messages {
		if f, ok := readFilter(m); ok && f.ID == r.ID() {
			return f.InHardware, nil
		}
	}
	return false, unix.ENOENT
}

// Why asks the card alone to take a rule which is in software, to hear what it says. Should the
// card take it now, it is taken back: the next try will find it willing.
func (k *Kernel) Why(r *Rule) string {
	err := k.filter(r, prefAsk, flagSkipSW)
	if err != nil {
		return words(err)
	}
	_ = k.Remove(&Filter{Hook: r.Hook, Pref: prefAsk, Handle: 1, EthType: r.Key.protocol()}) // what is left is removed by the next plan
	return ""
}

// prefAsk is where Why asks; what it left behind is after all others.
const prefAsk = prefLast + 1

// words are the kernel's for what it refuses, with the card's own where it has some.
func words(err error) string {
	if errors.Is(err, unix.EOPNOTSUPP) && !strings.Contains(err.Error(), ":") {
		return "the card takes no such rule"
	}
	return strings.TrimPrefix(err.Error(), "netdevsim: ")
}

func (k *Kernel) filter(r *Rule, pref uint16, flags uint32) error {
	q := k.request(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	q.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(r.Hook.Link), Handle: 1, Parent: parent(r.Hook), Info: netlink.MakeHandle(pref, nl.Swap16(r.Key.protocol()))})
	q.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("flower")))
	o, err := r.options(flags)
	if err != nil {
		return err
	}
	q.AddData(o)
	_, err = q.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func parent(h Hook) uint32 {
	if h.Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// Remove takes a filter away; one that is gone is no error.
func (k *Kernel) Remove(f *Filter) error {
	q := k.request(unix.RTM_DELTFILTER, unix.NLM_F_ACK)
	q.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(f.Hook.Link), Handle: f.Handle, Parent: parent(f.Hook), Info: netlink.MakeHandle(f.Pref, nl.Swap16(f.EthType))})
	q.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("flower")))
	_, err := q.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Tunnels makes the interfaces that are wanted and not there.
func (k *Kernel) Tunnels(want []Tunnel, have []Link) error {
	var failed error
	for _, t := range want {
		if slices.ContainsFunc(have, func(l Link) bool { return l.Name == t.Name }) {
			continue
		}
		if err := k.tunnel(t); err != nil && !errors.Is(err, unix.EEXIST) {
			failed = errors.Join(failed, fmt.Errorf("the kernel makes no interface for %s: %w", t.Kind, err))
		}
	}
	return failed
}

func (k *Kernel) tunnel(t Tunnel) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = t.Name
	var l netlink.Link
	switch t.Kind {
	case api.TunnelVXLAN:
		l = &netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: t.Port, Learning: false, UDP6ZeroCSumRx: true}
	case api.TunnelGRE:
		l = &netlink.Gretap{LinkAttrs: attrs, FlowBased: true, Local: net.IPv4zero} // without, the library makes one of IPv6
	default:
		return k.gtp(t.Name)
	}
	if err := k.h.LinkAdd(l); err != nil {
		return err
	}
	return k.up(t.Name)
}

func (k *Kernel) up(name string) error {
	l, err := k.h.LinkByName(name)
	if err != nil {
		return err
	}
	return k.h.LinkSetUp(l)
}

// Attributes of gtp (linux/if_link.h). The kernel makes the sockets, so that they outlive this
// program.
const (
	attrGTPSockets  = 5
	attrGTPHashSize = 3
)

func (k *Kernel) gtp(name string) error {
	r := k.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("gtp"))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(attrGTPHashSize, host32(1024))
	data.AddRtAttr(attrGTPSockets, []byte{1})
	r.AddData(info)
	if _, err := r.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	return k.up(name)
}

// DropTunnels removes interfaces of ours that nobody wants.
func (k *Kernel) DropTunnels(want []Tunnel, have []Link) error {
	var failed error
	for _, l := range have {
		if !strings.HasPrefix(l.Name, tunnelPrefix) || slices.ContainsFunc(want, func(t Tunnel) bool { return t.Name == l.Name }) {
			continue
		}
		err := k.h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: l.Index, Name: l.Name}})
		if err != nil && !errors.Is(err, unix.ENODEV) {
			failed = errors.Join(failed, fmt.Errorf("remove %s: %w", l.Name, err))
		}
	}
	return failed
}

// Sessions brings the subscribers' tunnels to what is wanted. One that changes is broken for the
// moment between two calls: the kernel knows no change of one. With keep, others stay.
func (k *Kernel) Sessions(want []Session, links []Link, keep bool) error {
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == nameGTP })
	if i < 0 {
		return nil
	}
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: links[i].Index}}
	list, err := k.h.GTPPDPList()
	if err != nil {
		return fmt.Errorf("list subscribers' tunnels: %w", err)
	}
	have := map[Session]bool{}
	for _, p := range list {
		subscriber, _ := netip.AddrFromSlice(p.MSAddress)
		peer, _ := netip.AddrFromSlice(p.PeerAddress)
		have[Session{p.ITEI, p.OTEI, subscriber, peer}] = true
	}
	var failed error
	for s := range have {
		stays := slices.Contains(want, s) || keep && !slices.ContainsFunc(want, func(w Session) bool { return w.In == s.In || w.Subscriber == s.Subscriber })
		if !stays {
			failed = errors.Join(failed, k.h.GTPPDPDel(link, s.pdp()))
		}
	}
	for _, s := range want {
		if !have[s] {
			failed = errors.Join(failed, k.h.GTPPDPAdd(link, s.pdp()))
		}
	}
	return failed
}

func (s Session) pdp() *netlink.PDP {
	return &netlink.PDP{Version: 1, ITEI: s.In, OTEI: s.Out, MSAddress: s.Subscriber.AsSlice(), PeerAddress: s.Peer.AsSlice()}
}

// The messages of ethtool (linux/ethtool_netlink.h) about features.
const (
	ethtoolFeaturesGet = 11
	ethtoolFeaturesSet = 12
	attrHeader         = 1
	attrHeaderName     = 2
	attrWanted         = 3
	attrActive         = 4
	attrNoMask         = 1
	attrBits           = 3
	attrBit            = 1
	attrBitName        = 2
	attrBitValue       = 3
	featureTC          = "hw-tc-offload"
)

func (k *Kernel) ethtool(command uint8, name string, flags int) (*nl.NetlinkRequest, error) {
	family, err := k.h.GenlFamilyGet("ethtool")
	if err != nil {
		return nil, err
	}
	r := nl.NewNetlinkRequest(int(family.ID), flags)
	r.AddData(&nl.Genlmsg{Command: command, Version: 1})
	header := nl.NewRtAttr(attrHeader|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(attrHeaderName, nl.ZeroTerminated(name))
	r.AddData(header)
	return r, nil
}

// offload tells whether a card is asked to take rules.
func (k *Kernel) offload(name string) (bool, error) {
	r, err := k.ethtool(ethtoolFeaturesGet, name, 0)
	if err != nil {
		return false, err
	}
	messages, err := r.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(messages) == 0 || len(messages[0]) < nl.SizeofGenlmsg {
		return false, err
	}
	for t, v := range attributes(messages[0][nl.SizeofGenlmsg:]) {
		if t != attrActive {
			continue
		}
		for t, v := range attributes(v) {
			if t != attrBits {
				continue
			}
			for _, bit := range attributes(v) {
				for t, v := range attributes(bit) {
					if t == attrBitName && text(v) == featureTC {
						return true, nil
					}
				}
			}
		}
	}
	return false, nil
}

// AskOffload has a card take rules from now on, or none. A card that cannot says so by changing nothing.
func (k *Kernel) AskOffload(name string, take bool) error {
	r, err := k.ethtool(ethtoolFeaturesSet, name, unix.NLM_F_ACK)
	if err != nil {
		return err
	}
	wanted := nl.NewRtAttr(attrWanted|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(attrBits|unix.NLA_F_NESTED, nil)
	bit := bits.AddRtAttr(attrBit|unix.NLA_F_NESTED, nil)
	bit.AddRtAttr(attrBitName, nl.ZeroTerminated(featureTC))
	if take {
		bit.AddRtAttr(attrBitValue, nil)
	}
	r.AddData(wanted)
	_, err = r.Execute(unix.NETLINK_GENERIC, 0)
	return err
}
