package machines

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/dns/dnsmessage"

	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/tests/vm"
)

// site is a network that leads nowhere. One program is on it: a server of DHCP and DHCPv6, which
// name bootstrap servers, and of the DNS of the domain site.example. The servers themselves are
// where the box's other card leads.
type site struct {
	wires *vm.Switch
	conn  net.Conn
	heard sync.WaitGroup

	mu sync.Mutex
	// dhcp and dhcp6 are what options 143 and 136 name, srv is what DNS has of _sztp._tcp.
	dhcp, dhcp6 []string
	srv         []netip.AddrPort
	// asked counts the questions for each by its name.
	asked map[string]int
}

var (
	siteMAC = [6]byte{0x52, 0x54, 0, 0x51, 0x7e, 1}
	siteIP  = netip.MustParseAddr("192.168.7.1")
	boxIP   = netip.MustParseAddr("192.168.7.20")
	site6   = netip.MustParseAddr("fe80::1")
)

const siteDomain = "site.example."

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{wires: vm.NewSwitch(), asked: map[string]int{}}
	var err error
	if s.conn, err = s.wires.Join("site"); err != nil {
		t.Fatal(err)
	}
	s.heard.Go(s.serve)
	t.Cleanup(func() {
		s.wires.Close()
		_ = s.conn.Close()
		s.heard.Wait()
	})
	return s
}

// names sets what the servers name.
func (s *site) names(set func(s *site)) { s.mu.Lock(); defer s.mu.Unlock(); set(s) }

// count tells how often somebody asked.
func (s *site) count(what string) int { s.mu.Lock(); defer s.mu.Unlock(); return s.asked[what] }

func (s *site) serve() {
	for {
		var head [4]byte
		if _, err := io.ReadFull(s.conn, head[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(s.conn, frame); err != nil {
			return
		}
		s.mu.Lock()
		answer := s.answer(frame)
		s.mu.Unlock()
		if answer == nil {
			continue
		}
		answer = append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)
		if _, err := s.conn.Write(answer); err != nil {
			return
		}
	}
}

// answer is what a frame is answered by; nil: by nothing. The caller holds mu.
func (s *site) answer(f []byte) []byte {
	if len(f) < 14+20 {
		return nil
	}
	from, p := [6]byte(f[6:12]), f[14:]
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0806: // who has siteIP?
		if len(p) < 28 || p[7] != 1 || [4]byte(p[24:28]) != siteIP.As4() {
			return nil
		}
		return ether(from, 0x0806, slices.Concat(p[:7], []byte{2}, siteMAC[:], p[24:28], p[8:18]))
	case 0x0800:
		if head := int(p[0]&15) * 4; p[9] == 17 && len(p) >= head+8 {
			return s.datagram(from, p[head:])
		}
	case 0x86dd:
		if len(p) >= 40+8 && p[6] == 17 && binary.BigEndian.Uint16(p[42:]) == dhcpv6.DefaultServerPort {
			return s.six(from, netip.AddrFrom16([16]byte(p[8:24])), p[48:])
		}
	}
	return nil
}

func (s *site) datagram(from [6]byte, u []byte) []byte {
	source, port, text := binary.BigEndian.Uint16(u), binary.BigEndian.Uint16(u[2:]), u[8:]
	switch port {
	case dhcpv4.ServerPort:
		if b := s.lease(text); b != nil {
			return ether([6]byte{255, 255, 255, 255, 255, 255}, 0x0800, ipv4(netip.AddrFrom4([4]byte{255, 255, 255, 255}), port, dhcpv4.ClientPort, b))
		}
	case 53:
		if b := s.dns(text); b != nil {
			return ether(from, 0x0800, ipv4(boxIP, port, source, b))
		}
	}
	return nil
}

// lease answers a client of DHCP.
func (s *site) lease(b []byte) []byte {
	m, err := dhcpv4.FromBytes(b)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest {
		return nil
	}
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
	}
	s.asked["dhcp"]++
	me := net.IP(siteIP.AsSlice())
	with := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(boxIP.AsSlice()), dhcpv4.WithServerIP(me), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithLeaseTime(3600), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(me))}
	if len(s.dhcp) > 0 {
		with = append(with, dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(143), sztp.FormatList(s.dhcp)))
	}
	if len(s.srv) > 0 {
		with = append(with, dhcpv4.WithOption(dhcpv4.OptDNS(me)), dhcpv4.WithOption(dhcpv4.OptDomainName(strings.TrimSuffix(siteDomain, "."))))
	}
	reply, err := dhcpv4.NewReplyFromRequest(m, with...)
	if err != nil {
		return nil
	}
	return reply.ToBytes()
}

// six answers a client of DHCPv6 that wants no address.
func (s *site) six(from [6]byte, ip netip.Addr, b []byte) []byte {
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil || m.MessageType != dhcpv6.MessageTypeInformationRequest || len(s.dhcp6) == 0 {
		return nil
	}
	s.asked["dhcp6"]++
	reply, err := dhcpv6.NewReplyFromMessage(m, dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: siteMAC[:]}),
		dhcpv6.WithOption(&dhcpv6.OptionGeneric{OptionCode: 136, OptionData: sztp.FormatList(s.dhcp6)}))
	if err != nil {
		return nil
	}
	u := udp(dhcpv6.DefaultServerPort, dhcpv6.DefaultClientPort, reply.ToBytes())
	to, me := ip.As16(), site6.As16()
	// The checksum is no choice in IPv6 (RFC 8200 section 8.1).
	pseudo := slices.Concat(me[:], to[:], []byte{0, 0, byte(len(u) >> 8), byte(len(u)), 0, 0, 0, 17}, u)
	binary.BigEndian.PutUint16(u[6:], sum(pseudo))
	return ether(from, 0x86dd, slices.Concat([]byte{0x60, 0, 0, 0, byte(len(u) >> 8), byte(len(u)), 17, 255}, me[:], to[:], u))
}

// dns has the bootstrap servers of the site's domain, and one host for each.
func (s *site) dns(b []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: dnsmessage.RCodeNameError}, Questions: []dnsmessage.Question{q}}
	add := func(body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5}, Body: body})
	}
	host := func(i int) string { return "core-" + string(rune('a'+i)) + "." + siteDomain }
	name := strings.ToLower(q.Name.String())
	if name == "_sztp._tcp."+siteDomain {
		m.RCode = dnsmessage.RCodeSuccess
	}
	for i, at := range s.srv {
		switch {
		case name == "_sztp._tcp."+siteDomain && q.Type == dnsmessage.TypeSRV:
			s.asked["srv"]++
			add(&dnsmessage.SRVResource{Priority: uint16(i), Port: at.Port(), Target: dnsmessage.MustNewName(host(i))})
		case name == host(i):
			m.RCode = dnsmessage.RCodeSuccess
			if q.Type == dnsmessage.TypeA {
				add(&dnsmessage.AResource{A: at.Addr().As4()})
			}
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

func ether(to [6]byte, kind uint16, p []byte) []byte {
	return slices.Concat(to[:], siteMAC[:], binary.BigEndian.AppendUint16(nil, kind), p)
}

// ipv4 is a datagram of the site's server in its packet.
func ipv4(to netip.Addr, source, port uint16, b []byte) []byte {
	u := udp(source, port, b)
	h := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(u)))
	me, you := siteIP.As4(), to.As4()
	h = slices.Concat(h, me[:], you[:])
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, u...)
}

// udp has no checksum, which IPv4 allows (RFC 768).
func udp(source, port uint16, b []byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, source)
	h = binary.BigEndian.AppendUint16(h, port)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(b)))
	return slices.Concat(h, []byte{0, 0}, b)
}

// sum is the Internet's checksum (RFC 1071).
func sum(b []byte) uint16 {
	var n uint32
	for i := 0; i < len(b); i += 2 {
		n += uint32(b[i]) << 8
		if i+1 < len(b) {
			n += uint32(b[i+1])
		}
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	if n == 0xffff {
		return 0xffff // a sum of zero says that there is none (RFC 768)
	}
	return ^uint16(n)
}
