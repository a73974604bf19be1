package sztp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Service is the DNS-SD type under which bootstrap servers are found (RFC 6763, RFC 8572
// section 10.7: the registered service name is sztp).
const Service = "_sztp._tcp"

const (
	maxPacket = 9000 // RFC 6762 section 17
	maxRecord = 128  // of one packet, that are looked at
	mdnsPort  = 5353
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
	if _, err := conn.WriteToUDPAddrPort(q, to); err != nil {
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

// ByDNS looks bootstrap servers up in the site's own domains (RFC 6763 section 10).
func ByDNS(ctx context.Context, r *net.Resolver, domains []string) (out []string) {
	for _, d := range domains[:min(len(domains), 4)] {
		_, list, err := r.LookupSRV(ctx, "sztp", "tcp", d)
		if err != nil {
			continue // no such service there
		}
		for _, s := range list[:min(len(list), maxList)] {
			if root, ok := rootOf(fmt.Sprintf("https://%s:%d", strings.TrimSuffix(s.Target, "."), s.Port)); ok {
				out = append(out, root)
			}
		}
	}
	return out
}

// Announcement is the answer to Query of one who serves at an address: name tells servers
// of a link apart.
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
