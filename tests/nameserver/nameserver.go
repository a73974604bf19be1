// Package nameserver answers: what does a name server say that knows these names and no others? It is for tests.
package nameserver

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Start answers on the loopback: hosts by their addresses, and services. It knows no other name.
func Start(t *testing.T, known map[string]dnsmessage.ResourceBody) netip.AddrPort {
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
