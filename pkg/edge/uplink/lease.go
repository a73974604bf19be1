package uplink

import (
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// Lease is what a DHCP server gave, in the words of RFC 2132.
type Lease struct {
	Address netip.Prefix
	Server  netip.Addr
	Routes  []Route
	DNS     []netip.Addr
	Search  []string
	NTP     []netip.Addr
	MTU     int
	// SZTP is option 143 (RFC 8572, 8.1), as it came; option 136 of DHCPv6 is six's.
	SZTP []byte
	// Renew, Rebind and End are counted from when it was given (RFC 2131, 4.4.5).
	Renew, Rebind, End time.Duration
}

// Route goes through Via; the destination 0.0.0.0/0 is the default.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

const (
	// A lease of less than a minute would be renewed all day; one for ever is asked again
	// after a day, since networks change.
	shortestLease = time.Minute
	longestLease  = 24 * time.Hour
	maxRoutes     = 64
	maxServers    = 8

	optionSZTP = 143
)

// readLease takes what is of use from an acknowledgement; ok is false when the address is
// none.
func readLease(p *dhcpv4.DHCPv4) (l Lease, ok bool) {
	ip, good := netip.AddrFromSlice(p.YourIPAddr.To4())
	if !good || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
		return l, false
	}
	bits := 0
	if mask := p.SubnetMask(); mask != nil {
		bits, _ = mask.Size()
	}
	if bits < 1 || bits > 32 {
		bits = 24
	}
	l.Address = netip.PrefixFrom(ip, bits)
	l.Server, _ = netip.AddrFromSlice(p.ServerIdentifier().To4())
	for _, a := range p.DNS() {
		l.DNS = addrs(l.DNS, a)
	}
	for _, a := range p.NTPServers() {
		l.NTP = addrs(l.NTP, a)
	}
	if s := p.DomainSearch(); s != nil {
		l.Search = searchable(s)
	}
	if name := p.DomainName(); name != "" && len(l.Search) == 0 {
		l.Search = searchable(&rfc1035label.Labels{Labels: []string{name}})
	}
	// RFC 3442: with classless routes, the router option is to be left alone.
	if rs := p.ClasslessStaticRoute(); len(rs) > 0 {
		for _, r := range rs[:min(len(rs), maxRoutes)] {
			to, ok1 := netip.AddrFromSlice(r.Dest.IP.To4())
			via, ok2 := netip.AddrFromSlice(r.Router.To4())
			if ones, _ := r.Dest.Mask.Size(); ok1 && ok2 && !via.IsUnspecified() {
				l.Routes = append(l.Routes, Route{netip.PrefixFrom(to, ones).Masked(), via})
			}
		}
	} else if rs := p.Router(); len(rs) > 0 {
		if via, ok := netip.AddrFromSlice(rs[0].To4()); ok && !via.IsUnspecified() {
			l.Routes = []Route{{netip.PrefixFrom(netip.IPv4Unspecified(), 0), via}}
		}
	}
	if raw := p.Options.Get(dhcpv4.OptionInterfaceMTU); len(raw) == 2 {
		if n := int(raw[0])<<8 | int(raw[1]); n >= 576 && n <= 9216 {
			l.MTU = n
		}
	}
	if raw := p.Options.Get(dhcpv4.GenericOptionCode(optionSZTP)); len(raw) <= 4096 {
		l.SZTP = raw
	}
	l.times(p.IPAddressLeaseTime(longestLease), p.IPAddressRenewalTime(0), p.IPAddressRebindingTime(0))
	return l, true
}

// times brings the three times into an order and into bounds: half and seven eighths of the
// lease where the server's own make no sense.
func (l *Lease) times(end, renew, rebind time.Duration) {
	l.End = min(max(end, shortestLease), longestLease)
	if renew <= 0 || renew >= l.End {
		renew = l.End / 2
	}
	if rebind <= renew || rebind >= l.End {
		rebind = max(l.End*7/8, renew)
	}
	l.Renew, l.Rebind = renew, rebind
}

func addrs(list []netip.Addr, ip []byte) []netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.IsUnspecified() || len(list) >= maxServers {
		return list
	}
	return append(list, a.Unmap())
}

// searchable keeps what is a domain name: the text ends up in resolv.conf.
func searchable(labels *rfc1035label.Labels) (out []string) {
	for _, name := range labels.Labels {
		if len(out) < 6 && domainName(name) {
			out = append(out, name)
		}
	}
	return out
}

func domainName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_') {
			return false
		}
	}
	return true
}
