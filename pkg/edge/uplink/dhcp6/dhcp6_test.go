package dhcp6

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var mac = []byte{2, 0, 0, 0, 0, 1}

// fixed is a source of randomness that always gives the middle.
func fixed() uint32 { return 500 }

// server answers as RFC 8415 has it, by its text alone.
func server(q []byte, kind byte, address string, extra ...byte) []byte {
	out := append([]byte{kind}, q[1:4]...)
	for b := q[4:]; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if code := binary.BigEndian.Uint16(b); code == 1 {
			out = append(out, b[:4+n]...) // the client's identifier comes back
		}
		b = b[4+n:]
	}
	out = append(out, 0, 2, 0, 4, 0, 3, 0, 1)
	if address != "" {
		ip := netip.MustParseAddr(address).As16()
		ia := append([]byte{0, 0, 0, 1}, 0, 0, 7, 8, 0, 0, 8, 0) // IAID of the MAC's end; T1 is 1800 s
		ia = append(append(ia, 0, 5, 0, 24), ip[:]...)
		ia = append(ia, 0, 0, 14, 16, 0, 0, 28, 32) // 3600 s, 7200 s
		out = append(append(out, 0, 3, 0, byte(len(ia))), ia...)
	}
	return append(out, extra...)
}

var sztp = []byte{0, 136, 0, 8, 0, 6, 'h', 't', 't', 'p', 's', ':'}

func asked(m *Message) map[uint16]bool {
	out := map[uint16]bool{}
	_ = options(m.Encode()[4:], func(code uint16, v []byte) error {
		if code == optORO {
			for ; len(v) >= 2; v = v[2:] {
				out[binary.BigEndian.Uint16(v)] = true
			}
		}
		return nil
	})
	return out
}

func TestStateless(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := New(mac, fixed)
	c.Restart(now, false)
	if m := c.Tick(now); m != nil {
		t.Error("it does not wait at first")
	}
	now = c.Wake
	m := c.Tick(now)
	if m == nil || m.Type != InfoRequest || !asked(m)[136] {
		t.Fatalf("%+v", m)
	}
	for want := time.Second; want < 4*time.Hour; want *= 2 { // nobody answers: ever more seldom, at most hourly
		if d := c.Wake.Sub(now); d < min(want, longest)*9/10 || d > min(want, longest)*11/10 {
			t.Errorf("again after %v, want about %v", d, min(want, longest))
		}
		now = c.Wake
		if m = c.Tick(now); m == nil {
			t.Fatal("it has fallen silent")
		}
	}
	wrong := server(m.Encode(), Reply, "", sztp...)
	wrong[2]++
	if c.Receive(now, wrong) != nil || c.Receive(now, server(m.Encode(), Advertise, "")) != nil || c.Receive(now, nil) != nil {
		t.Error("an answer to another question is taken")
	}
	got := c.Receive(now, server(m.Encode(), Reply, "", sztp...))
	if got == nil || !bytes.Equal(got.SZTP, sztp[4:]) {
		t.Fatalf("%+v", got)
	}
	if d := c.Wake.Sub(now); d != forEver {
		t.Errorf("asks again after %v", d)
	}
	if c.Receive(now, server(m.Encode(), Reply, "", sztp...)) != nil {
		t.Error("an answer nobody asked for is taken")
	}
	now = c.Wake
	m = c.Tick(now)
	got = c.Receive(now, server(m.Encode(), Reply, "", 0, 32, 0, 4, 0, 0, 0, 5))
	if got == nil || c.Wake.Sub(now) != shortestAge {
		t.Errorf("a refresh time of 5 s: again after %v", c.Wake.Sub(now))
	}
}

func TestManaged(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := New(mac, fixed)
	c.Restart(now, true)
	now = c.Wake
	m := c.Tick(now)
	if m == nil || m.Type != Solicit || !asked(m)[136] {
		t.Fatalf("%+v", m)
	}
	// Whoever has no address to give is no offer (status NoAddrsAvail).
	if c.Receive(now, server(m.Encode(), Advertise, "", 0, 13, 0, 2, 0, 2)); c.offer != nil {
		t.Fatal("an offer of nothing is taken")
	}
	if c.Receive(now, server(m.Encode(), Advertise, "fe80::1")); c.offer != nil {
		t.Fatal("an address of the link alone is taken")
	}
	c.Receive(now, server(m.Encode(), Advertise, "fd00::7"))
	m = c.Tick(now)
	if m == nil || m.Type != Request || !bytes.Equal(m.Server, []byte{0, 3, 0, 1}) || m.Address.IP.String() != "fd00::7" {
		t.Fatalf("%+v", m)
	}
	got := c.Receive(now, server(m.Encode(), Reply, "fd00::7", sztp...))
	if got == nil || got.Address.IP.String() != "fd00::7" || got.Address.Valid != 2*time.Hour || got.Address.Preferred != time.Hour || !bytes.Equal(got.SZTP, sztp[4:]) {
		t.Fatalf("%+v", got)
	}
	if d := c.Wake.Sub(now); d != 30*time.Minute {
		t.Errorf("asks again after %v", d)
	}
	// A server that is gone after its offer: all are asked again.
	now = c.Wake
	m = c.Tick(now)
	c.Receive(now, server(m.Encode(), Advertise, "fd00::7"))
	for range requests {
		if m = c.Tick(c.Wake); m == nil || m.Type != Request {
			t.Fatalf("%+v", m)
		}
	}
	if m = c.Tick(c.Wake); m == nil || m.Type != Solicit {
		t.Errorf("%+v", m)
	}
	c.Again(now)
	if m = c.Tick(now); m == nil || m.Type != Solicit {
		t.Errorf("after what could not be sent: %+v", m)
	}
}

func FuzzParse(f *testing.F) {
	c := New(mac, fixed)
	c.Restart(time.Unix(0, 0), true)
	q := c.Tick(c.Wake).Encode()
	f.Add(server(q, Reply, "fd00::7", sztp...))
	f.Add(server(q, Advertise, "", 0, 13, 0, 2, 0, 2))
	f.Add(q)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b, 1)
		if err == nil && m.Address.IP.IsValid() && (m.Address.Valid <= 0 || m.Address.Valid > forEver || m.Address.Preferred > m.Address.Valid) {
			t.Fatalf("%+v", m.Address)
		}
		if len(m.DNS) > maxServers {
			t.Fatal(len(m.DNS))
		}
	})
}
