package network

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

func TestListenersOfTheBox(t *testing.T) {
	four, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	client, err := net.Dial("tcp4", four.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	datagrams, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	want := []Listener{
		{"tcp", netip.MustParseAddrPort(four.Addr().String())},
		{"udp", netip.MustParseAddrPort(datagrams.LocalAddr().String())},
	}
	if six, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		defer six.Close()
		want = append(want, Listener{"tcp", netip.MustParseAddrPort(six.Addr().String())})
	}
	got, err := Listeners()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("%v is missing in %v", l, got)
		}
	}
	own := Listener{"tcp", netip.MustParseAddrPort(client.LocalAddr().String())}
	if slices.Contains(got, own) {
		t.Errorf("%v is a connection, not a listener", own)
	}
}

func TestPortTakesAListener(t *testing.T) {
	at := func(protocol, addr string) Listener { return Listener{protocol, netip.MustParseAddrPort(addr)} }
	for _, c := range []struct {
		port Port
		l    Listener
		want bool
	}{
		{Port{Host: 22, Protocol: "tcp"}, at("tcp", "0.0.0.0:22"), true},
		{Port{Host: 22}, at("tcp", "[::]:22"), true},
		{Port{Host: 22, Protocol: "tcp"}, at("tcp", "0.0.0.0:2222"), false},
		{Port{Host: 22, Protocol: "udp"}, at("tcp", "0.0.0.0:22"), false},
		{Port{Host: 53, Protocol: "udp"}, at("udp", "127.0.0.53:53"), true},
		{Port{Host: 53, Protocol: "udp", HostIP: "10.0.0.1"}, at("udp", "127.0.0.53:53"), false},
		{Port{Host: 53, Protocol: "udp", HostIP: "127.0.0.53"}, at("udp", "127.0.0.53:53"), true},
		{Port{Host: 22, Protocol: "tcp", HostIP: "10.0.0.1"}, at("tcp", "[::]:22"), true},
		{Port{Host: 22, Protocol: "tcp", HostIP: "0.0.0.0"}, at("tcp", "10.0.0.1:22"), true},
		{Port{Host: 22}, at("tcp", "[fe80::1]:22"), false},
		{Port{}, at("tcp", "0.0.0.0:22"), false},
	} {
		if got := c.port.Takes(c.l); got != c.want {
			t.Errorf("%+v, %v: %v", c.port, c.l, got)
		}
	}
}

func FuzzParseListener(f *testing.F) {
	f.Add("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0")
	f.Add("   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A")
	f.Add("  sl  local_address rem_address   st")
	f.Fuzz(func(t *testing.T, line string) {
		for _, protocol := range []string{"tcp", "udp"} {
			if addr, ok := parseListener(line, protocol); ok && !addr.IsValid() {
				t.Fatalf("%q: %v", line, addr)
			}
		}
	})
}
