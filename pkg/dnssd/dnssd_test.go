package dnssd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// One who asks the site hears who answers, and is not led astray by what else comes.
func TestOnSite(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		b := make([]byte, maxPacket)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			id, ok := Asks(b[:n])
			if !ok {
				continue
			}
			for i, at := range []string{"192.0.2.1:8444", "[2001:db8::1]:8444", "[fe80::1]:8444", "224.0.0.1:8444"} {
				p, err := Announcement(id, string(rune('a'+i)), netip.MustParseAddrPort(at))
				if err != nil {
					continue
				}
				_, _ = conn.WriteToUDPAddrPort(p[:len(p)-1], from) // cut
				_, _ = conn.WriteToUDPAddrPort(p, from)
			}
		}
	}()
	want := []string{"https://192.0.2.1:8444", "https://[2001:db8::1]:8444"}
	for deadline := time.Now().Add(wait.Limit); ; {
		got, err := OnSite(t.Context(), conn.LocalAddr().(*net.UDPAddr).AddrPort(), 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	q, _ := Query()
	a, _ := Announcement(1, "core", netip.MustParseAddrPort("192.0.2.1:8444"))
	f.Add(q)
	f.Add(a)
	f.Fuzz(func(t *testing.T, b []byte) {
		got := newAnswers()
		got.read(b, Service+".local.")
		for _, root := range got.roots() {
			if u, err := url.Parse(root); err != nil || u.Hostname() == "" || u.Port() == "" {
				t.Errorf("%q is no root", root)
			}
		}
		Asks(b)
	})
}

// The answer of a server, and not of the machine itself.
func TestServe(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, conn, "relay", func(from netip.Addr) (netip.AddrPort, bool) {
			return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), 8444), from.IsLoopback()
		})
	}()
	for deadline := time.Now().Add(wait.Limit); ; {
		got, err := OnSite(t.Context(), conn.LocalAddr().(*net.UDPAddr).AddrPort(), 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(got, []string{"https://192.0.2.7:8444"}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q", got)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if at, ok := OnLink(netip.MustParseAddr("127.0.0.9")); !ok || at != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("%v, %v", at, ok)
	}
	if at, ok := OnLink(netip.MustParseAddr("203.0.113.9")); ok {
		t.Errorf("an address on a strange network: %v", at)
	}
}
