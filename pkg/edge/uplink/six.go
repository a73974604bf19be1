package uplink

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/uplink/dhcp6"
	"tributary.dev/tributary/pkg/netlist"
	"tributary.dev/tributary/pkg/rest"
)

// said6 is what a DHCPv6 server said on an uplink.
type said6 struct {
	dns  []netip.Addr
	sztp []byte
}

var allServers = net.IP{0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2} // RFC 8415 section 7.1

// look6 is how often a card is looked at, for its cable and for what routers say, while an
// answer is waited for; rest6 is how often at other times.
const (
	look6 = 2 * time.Second
	rest6 = 10 * time.Second
)

// six asks for what DHCPv6 servers of an uplink tell, and for an address where routers say
// so, until ctx ends. Addresses by the routers' own advertisements are the kernel's work.
func (r *runner) six(ctx context.Context, name string, link netlink.Link) {
	c := dhcp6.New(link.Attrs().HardwareAddr, random)
	var conn *net.UDPConn
	given := netip.Prefix{}
	hush := func() {
		if conn != nil {
			conn.Close()
			conn = nil
		}
	}
	drop := func() {
		if given.IsValid() {
			_ = netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(given)}) // it may be gone
			given = netip.Prefix{}
		}
	}
	defer hush()
	defer drop()
	cabled := false
	for ctx.Err() == nil {
		flags, up := routersSay(link.Attrs().Index)
		switch managed := flags&raManaged != 0; {
		case !up:
			cabled = false
			hush()
		case !cabled, managed != c.Managed():
			cabled = true
			c.Restart(time.Now(), managed)
		}
		if !cabled {
			rest.For(ctx, look6)
			continue
		}
		if m := c.Tick(time.Now()); m != nil {
			if conn == nil {
				conn = listen6(link.Attrs().Index, name)
			}
			if conn == nil { // the card has no address of the link yet
				c.Again(time.Now().Add(look6 / 4))
			} else {
				_, _ = conn.WriteTo(m.Encode(), &net.UDPAddr{IP: allServers, Port: 547, Zone: name}) // sent again
			}
		}
		until := time.Now().Add(look6)
		if conn == nil {
			until = time.Now().Add(rest6)
		}
		if c.Wake.Before(until) {
			until = c.Wake
		}
		m := receive6(ctx, conn, c, until)
		if m == nil {
			continue
		}
		hush()
		if a := m.Address; a.IP.IsValid() {
			p := netip.PrefixFrom(a.IP, 128)
			if given != p {
				drop()
			}
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(p), ValidLft: int(a.Valid / time.Second), PreferedLft: int(a.Preferred / time.Second)}); err != nil {
				r.cfg.Say("%s: address %s: %v", name, p, err)
			} else if given != p {
				r.cfg.Say("%s: %s by DHCPv6, for %v", name, p, a.Valid)
			}
			given = p
		}
		r.tell6(name, said6{m.DNS, m.SZTP})
	}
}

// receive6 waits for a packet that says something, at most until a time.
func receive6(ctx context.Context, conn *net.UDPConn, c *dhcp6.Client, until time.Time) *dhcp6.Message {
	if conn == nil {
		rest.For(ctx, max(time.Until(until), 10*time.Millisecond))
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if conn.SetReadDeadline(until) != nil || ctx.Err() != nil {
		return nil
	}
	b := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				rest.For(ctx, look6) // the card is on its way out
			}
			return nil
		}
		if m := c.Receive(time.Now(), append([]byte(nil), b[:n]...)); m != nil {
			return m
		}
		if !time.Now().Before(c.Wake) { // an offer that is to be answered at once
			return nil
		}
	}
}

// listen6 opens the port of clients at the card's address of the link; nil while there is
// none that is the card's for certain.
func listen6(index int, name string) *net.UDPConn {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil
	}
	list, err := netlist.Addrs(link, unix.AF_INET6)
	if err != nil {
		return nil
	}
	for _, a := range list {
		if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: a.IP, Port: 546, Zone: name})
			if err == nil {
				return conn
			}
		}
	}
	return nil
}

// Flags of the router's advertisement as the kernel keeps them (linux/if_link.h, net/if_inet6.h).
const (
	raManaged      = 0x40
	iflaInet6Flags = 1
)

// routersSay reads the flags of a link's last router advertisement, and whether its cable
// is in.
func routersSay(index int) (flags uint32, up bool) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_INET6))
	list, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return 0, false
	}
	for _, raw := range list {
		if len(raw) < unix.SizeofIfInfomsg {
			continue
		}
		msg := nl.DeserializeIfInfomsg(raw)
		if int(msg.Index) != index {
			continue
		}
		up = msg.Flags&unix.IFF_RUNNING != 0
		attrs, err := nl.ParseRouteAttr(raw[msg.Len():])
		if err != nil {
			return 0, up
		}
		for _, a := range attrs {
			if a.Attr.Type&^unix.NLA_F_NESTED != unix.IFLA_PROTINFO {
				continue
			}
			inner, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return 0, up
			}
			for _, i := range inner {
				if i.Attr.Type == iflaInet6Flags && len(i.Value) >= 4 {
					flags = binary.NativeEndian.Uint32(i.Value)
				}
			}
		}
	}
	return flags, up
}

// tell6 writes what a DHCPv6 server said beside what is known of the uplink.
func (r *runner) tell6(name string, s said6) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.by6[name] = s
	if _, ok := r.seen[name]; !ok {
		r.seen[name] = Status{Name: name, DHCP: true} // a network without IPv4
	}
	if err := r.write(); err != nil {
		r.cfg.Say("%s: %v", name, err)
	}
}
