package sztp

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameserver answers on the loopback: hosts by their addresses, and services. It knows no other name.
func nameserver(t *testing.T, known map[string]dnsmessage.ResourceBody) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-ended })
	go func() {
		defer close(ended)
		b := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if answer := answerOf(b[:n], known); answer != nil {
				_, _ = conn.WriteTo(answer, from) // who asked may be gone
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func answerOf(b []byte, known map[string]dnsmessage.ResourceBody) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}, Questions: []dnsmessage.Question{q}}
	if body, ok := known[strings.ToLower(q.Name.String())]; ok {
		m.RCode = dnsmessage.RCodeSuccess
		kind := dnsmessage.TypeA
		if _, srv := body.(*dnsmessage.SRVResource); srv {
			kind = dnsmessage.TypeSRV
		}
		if q.Type == kind {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 5}, Body: body}}
		}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// TestByEveryNetwork: a name server that says that there is no such name has the last word on its own
// network alone. What another network's server knows is found, and reached.
func TestByEveryNetwork(t *testing.T) {
	core, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	port := core.Addr().(*net.TCPAddr).Port
	carrier := nameserver(t, nil)
	site := nameserver(t, map[string]dnsmessage.ResourceBody{
		"_sztp._tcp.site.example.": &dnsmessage.SRVResource{Port: uint16(port), Target: dnsmessage.MustNewName("core.site.example.")},
		"core.site.example.":       &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
	})
	networks := Networks{{Servers: []netip.AddrPort{carrier}, Search: []string{"carrier.example"}}, {Servers: []netip.AddrPort{site}, Search: []string{"site.example"}}}
	_, want, _ := net.SplitHostPort(core.Addr().String())
	want = "core.site.example:" + want
	if got := networks.ByDNS(t.Context(), nil); !slices.Equal(got, []string{"https://" + want}) {
		t.Fatalf("found %q", got)
	}
	conn, err := networks.Dial(t.Context(), "tcp", want)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if _, err := networks[:1].Dial(t.Context(), "tcp", want); err == nil {
		t.Error("the carrier's name server knows a name of the site")
	}
	if got := networks[:1].ByDNS(t.Context(), []string{"site.example"}); got != nil {
		t.Errorf("the carrier's name server names %q", got)
	}
}
