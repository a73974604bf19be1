package uplink

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"pgregory.net/rapid"
)

var testMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// server answers like a DHCP server that has one address to give.
func server(q *dhcpv4.DHCPv4, lease time.Duration, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	p, err := dhcpv4.NewReplyFromRequest(q,
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IP{10, 0, 0, 7}), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithRouter(net.IP{10, 0, 0, 1}), dhcpv4.WithDNS(net.IP{10, 0, 0, 1}),
		dhcpv4.WithLeaseTime(uint32(lease/time.Second)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 0, 1})))
	if err != nil {
		panic(err)
	}
	return p
}

func reply(q *dhcpv4.DHCPv4, lease time.Duration) *dhcpv4.DHCPv4 {
	if q.MessageType() == dhcpv4.MessageTypeDiscover {
		return server(q, lease, dhcpv4.MessageTypeOffer)
	}
	return server(q, lease, dhcpv4.MessageTypeAck)
}

func testClient() *client {
	n := uint32(0)
	return newClient(testMAC, "box", func() uint32 { n += 77; return n })
}

func TestLease(t *testing.T) {
	c, now := testClient(), time.Unix(1e9, 0)
	e := c.restart(now)
	if e.send.MessageType() != dhcpv4.MessageTypeDiscover || !e.listen {
		t.Fatalf("%+v", e)
	}
	e = c.receive(now, reply(e.send, time.Hour))
	if e.send.MessageType() != dhcpv4.MessageTypeRequest {
		t.Fatalf("%+v", e)
	}
	e = c.receive(now, reply(e.send, time.Hour))
	want := netip.MustParsePrefix("10.0.0.7/24")
	if e.got == nil || e.got.Address != want || len(e.got.Routes) != 1 || e.got.DNS[0].String() != "10.0.0.1" || e.listen {
		t.Fatalf("%+v", e)
	}
	if !c.wake.Equal(now.Add(30 * time.Minute)) {
		t.Errorf("renews at %v", c.wake)
	}
	now = c.wake
	if e = c.tick(now); c.state != renewing || e.to.String() != "10.0.0.1" || e.send.ClientIPAddr.String() != "10.0.0.7" {
		t.Fatalf("%s, %+v", c.state, e)
	}
	if e = c.receive(now, server(e.send, time.Hour, dhcpv4.MessageTypeNak)); !e.lost || e.send != nil || c.state != selecting {
		t.Errorf("refused: %s, %+v", c.state, e)
	}
}

// Whatever is lost on the way, the client always has a time to wake at, never keeps an
// address beyond its lease, and gets one again once it is heard.
func TestLossyWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, now := testClient(), time.Unix(1e9, 0)
		lease := time.Duration(rapid.IntRange(60, 7200).Draw(t, "lease")) * time.Second
		have, granted := false, time.Time{}
		do := func(e effects) effects {
			if e.lost {
				have = false
			}
			if e.got != nil {
				have, granted = true, now
			}
			return e
		}
		e := do(c.restart(now))
		for i := range 200 {
			lost := i < 150 && rapid.Bool().Draw(t, "lost")
			if e.send != nil && !lost {
				e = do(c.receive(now, reply(e.send, lease)))
				continue
			}
			if !c.wake.After(now) {
				t.Fatalf("in %s it wakes at once", c.state)
			}
			now = c.wake
			e = do(c.tick(now))
			if have && now.Sub(granted) > lease {
				t.Fatalf("an address is kept for %v of %v", now.Sub(granted), lease)
			}
		}
		if !have {
			t.Fatal("heard, and no address")
		}
	})
}

// Answers to someone else, or to an older exchange, change nothing.
func TestStrangers(t *testing.T) {
	c, now := testClient(), time.Unix(1e9, 0)
	q := c.restart(now).send
	for _, change := range []func(*dhcpv4.DHCPv4){
		func(p *dhcpv4.DHCPv4) { p.TransactionID[0]++ },
		func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = net.HardwareAddr{2, 0, 0, 0, 0, 2} },
		func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootRequest },
		func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IP{0, 0, 0, 0} },
		func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IP{224, 0, 0, 1} },
		func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck)) },
	} {
		p := reply(q, time.Hour)
		change(p)
		if e := c.receive(now, p); e.got != nil || e.send != nil || c.state != selecting {
			t.Errorf("%s: %+v", p.Summary(), e)
		}
	}
}

func TestDatagram(t *testing.T) {
	q := testClient().restart(time.Unix(1e9, 0)).send
	b := datagram(reply(q, time.Hour).ToBytes(), netip.Addr{}, netip.Addr{})
	b[22], b[23] = 0, clientPort // as if a server had sent it
	if p, err := parseDatagram(b); err != nil || p.TransactionID != q.TransactionID {
		t.Errorf("%v, %v", p, err)
	}
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if sum = sum&0xffff + sum>>16; sum != 0xffff {
		t.Errorf("header checksum: %x", sum)
	}
}

func FuzzDatagram(f *testing.F) {
	q := testClient().restart(time.Unix(1e9, 0)).send
	b := datagram(reply(q, time.Hour).ToBytes(), netip.Addr{}, netip.Addr{})
	b[22], b[23] = 0, clientPort
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseDatagram(b)
		if err != nil {
			return
		}
		if l, ok := readLease(p); ok && (l.End < shortestLease || l.Renew > l.Rebind || l.Rebind > l.End || len(l.Routes) > maxRoutes) {
			t.Fatalf("%+v", l)
		}
		c := testClient()
		c.restart(time.Unix(1e9, 0))
		p.TransactionID, p.ClientHWAddr = c.xid, testMAC
		c.receive(time.Unix(1e9, 0), p)
	})
}
