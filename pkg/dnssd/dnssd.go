// Package dnssd answers: who on this site serves boxes that look for their owner? It asks by
// multicast DNS (RFC 6762, RFC 6763), and answers for relays and for the core.
package dnssd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Service is the DNS-SD type under which bootstrap servers are found (RFC 6763, RFC 8572
// section 10.7: the registered service name is sztp).
const Service = "_sztp._tcp"

const (
	maxPacket = 9000 // RFC 6762 section 17
	maxRecord = 128  // of one packet, that are looked at
	mdnsPort  = 5353
	maxList   = 16
)

var mdns4 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 251}), mdnsPort)

// Query is the question for bootstrap servers on a link, which wants its answer by
// unicast (RFC 6762 section 5.4), so that the asker needs no place in the group.
func Query() ([]byte, error) {
	name, err := dnsmessage.NewName(Service + ".local.")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET | 1<<15}}}
	return m.Pack()
}

// answers collects what packets say about services; a packet may hold a part alone.
type answers struct {
	instances map[string]bool
	targets   map[string][]target // by instance
	addresses map[string][]netip.Addr
}

type target struct {
	host string
	port uint16
}

func newAnswers() *answers {
	return &answers{instances: map[string]bool{}, targets: map[string][]target{}, addresses: map[string][]netip.Addr{}}
}

// read takes in one packet; what is malformed or of no interest is left out.
func (a *answers) read(packet []byte, service string) {
	var p dnsmessage.Parser
	if len(packet) > maxPacket {
		return
	}
	h, err := p.Start(packet)
	if err != nil || !h.Response || p.SkipAllQuestions() != nil {
		return
	}
	for range maxRecord {
		rh, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || !a.record(&p, rh, service, p.SkipAnswer) {
			return
		}
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return
	}
	for range maxRecord {
		rh, err := p.AdditionalHeader()
		if err != nil || !a.record(&p, rh, service, p.SkipAdditional) {
			return
		}
	}
}

func (a *answers) record(p *dnsmessage.Parser, h dnsmessage.ResourceHeader, service string, skip func() error) bool {
	name := strings.ToLower(h.Name.String())
	if len(a.instances)+len(a.targets)+len(a.addresses) > 4*maxRecord {
		return false
	}
	switch h.Type {
	case dnsmessage.TypePTR:
		r, err := p.PTRResource()
		if err == nil && name == service {
			a.instances[strings.ToLower(r.PTR.String())] = true
		}
		return err == nil
	case dnsmessage.TypeSRV:
		r, err := p.SRVResource()
		if err == nil && len(a.targets[name]) < maxList {
			a.targets[name] = append(a.targets[name], target{strings.ToLower(r.Target.String()), r.Port})
		}
		return err == nil
	case dnsmessage.TypeA:
		r, err := p.AResource()
		if err == nil {
			a.address(name, netip.AddrFrom4(r.A))
		}
		return err == nil
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		if err == nil {
			a.address(name, netip.AddrFrom16(r.AAAA))
		}
		return err == nil
	}
	return skip() == nil
}

func (a *answers) address(name string, ip netip.Addr) {
	// A link-local IPv6 address says nothing without its interface.
	if ip.IsMulticast() || ip.IsUnspecified() || ip.Is6() && ip.IsLinkLocalUnicast() || len(a.addresses[name]) >= maxList || slices.Contains(a.addresses[name], ip) {
		return
	}
	a.addresses[name] = append(a.addresses[name], ip)
}

// roots are the servers that the packets name with an address.
func (a *answers) roots() (out []string) {
	for instance := range a.instances {
		for _, t := range a.targets[instance] {
			for _, ip := range a.addresses[t.host] {
				if root := "https://" + netip.AddrPortFrom(ip, t.port).String(); t.port != 0 && !slices.Contains(out, root) {
					out = append(out, root)
				}
			}
		}
	}
	slices.Sort(out)
	return out[:min(len(out), maxList)]
}

// OnSite asks the links of a box for bootstrap servers by mDNS and waits for answers as
// long as patience lasts. to is the group, other than the usual one in tests alone.
func OnSite(ctx context.Context, to netip.AddrPort, patience time.Duration) ([]string, error) {
	if !to.IsValid() {
		to = mdns4
	}
	q, err := Query()
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if err := ask(conn, q, to); err != nil {
		return nil, fmt.Errorf("ask the site: %w", err)
	}
	got, b := newAnswers(), make([]byte, maxPacket+1)
	for ctx.Err() == nil {
		n, _, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			break // patience is over
		}
		got.read(b[:n], Service+".local.")
	}
	return got.roots(), ctx.Err()
}

// ask sends a question: to the group on every link, since a box without an owner may have
// no route that names one.
func ask(conn *net.UDPConn, q []byte, to netip.AddrPort) error {
	if !to.Addr().IsMulticast() {
		_, err := conn.WriteToUDPAddrPort(q, to)
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	list, err := net.Interfaces()
	if err != nil {
		return err
	}
	asked, last := 0, errors.New("no network is up")
	for _, i := range list {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := raw.Control(func(fd uintptr) {
			last = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(i.Index)})
		}); err != nil {
			return err
		}
		if last == nil {
			_, last = conn.WriteToUDPAddrPort(q, to)
		}
		if last == nil {
			asked++
		}
	}
	if asked > 0 {
		return nil
	}
	return last
}

// Announcement is the answer to Query of one who serves at an address: name tells servers
// of a link apart. It repeats the question, as those want who ask from a port of their own
// (RFC 6762 section 6.7).
func Announcement(id uint16, name string, at netip.AddrPort) ([]byte, error) {
	service, err := dnsmessage.NewName(Service + ".local.")
	if err != nil {
		return nil, err
	}
	instance, err := dnsmessage.NewName(name + "." + Service + ".local.")
	if err != nil {
		return nil, err
	}
	host, err := dnsmessage.NewName(name + ".local.")
	if err != nil {
		return nil, err
	}
	head := func(n dnsmessage.Name) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 120}
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, Response: true, Authoritative: true},
		Questions:   []dnsmessage.Question{{Name: service, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}},
		Answers:     []dnsmessage.Resource{{Header: head(service), Body: &dnsmessage.PTRResource{PTR: instance}}},
		Additionals: []dnsmessage.Resource{{Header: head(instance), Body: &dnsmessage.SRVResource{Target: host, Port: at.Port()}}}}
	if ip := at.Addr(); ip.Is4() {
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: head(host), Body: &dnsmessage.AResource{A: ip.As4()}})
	} else {
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: head(host), Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}})
	}
	return m.Pack()
}

// Asks tells whether a packet is a question for bootstrap servers, and its id.
func Asks(packet []byte) (id uint16, ok bool) {
	var p dnsmessage.Parser
	if len(packet) > maxPacket {
		return 0, false
	}
	h, err := p.Start(packet)
	if err != nil || h.Response {
		return 0, false
	}
	for range 16 {
		q, err := p.Question()
		if err != nil {
			return 0, false
		}
		if (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL) && strings.EqualFold(q.Name.String(), Service+".local.") {
			return h.ID, true
		}
	}
	return 0, false
}

// Serve answers questions of a link for bootstrap servers, until ctx ends: at names the
// address that a box should ask, by the box's own address and the name of the interface at
// which its question came; false is no answer. Its errors are those of the socket.
func Serve(ctx context.Context, conn *net.UDPConn, name string, at func(from netip.Addr) (netip.AddrPort, bool)) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	b := make([]byte, maxPacket+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		id, ok := Asks(b[:n])
		if !ok {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		where, ok := at(from.Addr())
		if !ok {
			continue
		}
		if packet, err := Announcement(id, name, where); err == nil {
			_, _ = conn.WriteToUDPAddrPort(packet, from) // it asks again
		}
	}
}

// Listen takes questions at the group of mDNS on the interfaces of this machine that are up
// now; Follow takes in others that come later.
func Listen() (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(context.Background(), "udp4", ":5353")
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UDPConn) // what udp4 gives
	Follow(conn)
	return conn, nil
}

// Follow joins the group on interfaces where it is not joined yet.
func Follow(conn *net.UDPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	list, err := net.Interfaces()
	if err != nil {
		return
	}
	for _, i := range list {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		_ = raw.Control(func(fd uintptr) { // joined already, most often
			_ = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: mdns4.Addr().As4(), Ifindex: int32(i.Index)})
		})
	}
}

// OnLink is this machine's address in the network of another.
func OnLink(other netip.Addr) (netip.Addr, bool) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range list {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		mine, ok := netip.AddrFromSlice(ipnet.IP)
		ones, _ := ipnet.Mask.Size()
		mine = mine.Unmap()
		if ok && mine != other && netip.PrefixFrom(mine, ones).Contains(other) {
			return mine, true
		}
	}
	return netip.Addr{}, false
}

// followLinks is how often Announce looks for networks that came since.
const followLinks = time.Minute

// Announce answers the site, on all its links, that a listener serves boxes under a name,
// until ctx ends. What goes wrong is told and tried again.
func Announce(ctx context.Context, name string, listener net.Addr, wrong func(error)) {
	at, err := netip.ParseAddrPort(listener.String())
	if err != nil {
		wrong(err) // no listener of TCP
		return
	}
	for ctx.Err() == nil {
		err := announce(ctx, name, at.Port())
		if ctx.Err() != nil {
			return
		}
		wrong(err)
		t := time.NewTimer(followLinks)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
	}
}

func announce(ctx context.Context, name string, port uint16) error {
	conn, err := Listen()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		tick := time.NewTicker(followLinks)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				Follow(conn)
			}
		}
	}()
	return Serve(ctx, conn, name, func(from netip.Addr) (netip.AddrPort, bool) {
		at, ok := OnLink(from)
		return netip.AddrPortFrom(at, port), ok
	})
}
