package names

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/nameserver"
)

// ofSite is a core on the loopback, and name servers of a carrier, who knows nothing, and of a site, who knows the core.
func ofSite(t *testing.T) (carrier, site netip.AddrPort, core string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String()) // a listener's address has one
	known := map[string]dnsmessage.ResourceBody{"core.site.example.": &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}
	return nameserver.Start(t, nil), nameserver.Start(t, known), net.JoinHostPort("core.site.example", port)
}

// machine dials as a machine does whose resolver is content with one server's word.
func machine(server netip.AddrPort) Dial {
	d := &net.Dialer{Resolver: Network{Servers: []netip.AddrPort{server}}.resolver()}
	return d.DialContext
}

// TestThrough: a parent's name that only the second uplink's name servers know is reached, though the machine's resolver stops at the
// first that says that there is none.
func TestThrough(t *testing.T) {
	carrier, site, core := ofSite(t)
	networks := Networks{{Servers: []netip.AddrPort{carrier}}, {Servers: []netip.AddrPort{site}}}
	asked := 0
	dial := Through(func() Networks { asked++; return networks }, machine(carrier))
	conn, err := dial(t.Context(), "tcp", core)
	if err != nil {
		t.Fatalf("the second uplink's name servers are not asked: %v", err)
	}
	_ = conn.Close()
	if asked != 1 {
		t.Errorf("asked for the networks %d times", asked)
	}
	// What the machine's resolver knows is its own affair, and so is what fails for another reason.
	if conn, err = Through(func() Networks { t.Error("asked for nothing"); return nil }, machine(site))(t.Context(), "tcp", core); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	refused := errors.New("refused")
	_, err = Through(func() Networks { t.Error("asked for nothing"); return nil }, func(context.Context, string, string) (net.Conn, error) { return nil, refused })(t.Context(), "tcp", core)
	if !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
	// A name that nobody knows is an error of its own name, as ever.
	var unknown *net.DNSError
	if _, err := dial(t.Context(), "tcp", "nobody.example:1"); !errors.As(err, &unknown) || unknown.Name != "nobody.example" {
		t.Errorf("%v", err)
	}
	if _, err := Through(func() Networks { return networks[:1] }, machine(carrier))(t.Context(), "tcp", core); err == nil {
		t.Error("the carrier knows a name of the site")
	}
}

// TestThroughCounts: without the second look the name is not found.
func TestThroughCounts(t *testing.T) {
	const look = "if err == nil || !errors.As(err, &unknown)"
	mutation.Prove(t, mutation.Check{Name: "look", Test: "^TestThrough$", File: "names.go", From: look, To: "if GONE || err == nil || !errors.As(err, &unknown)", Says: "are not asked"})
}

func TestDecode(t *testing.T) {
	got := Decode([]byte(`[{"name":"eth0","dns":["10.0.0.1","x"]},{"name":"wwan0","best":true,"dns":["fe80::1","2001:db8::1"],"search":["a.example"]}]`))
	if len(got) != 2 || got[0].Interface != "wwan0" || got[1].Interface != "eth0" {
		t.Fatalf("%+v", got)
	}
	if want := []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%wwan0]:53"), netip.MustParseAddrPort("[2001:db8::1]:53")}; !slices.Equal(got[0].Servers, want) || got[0].Search[0] != "a.example" {
		t.Errorf("%+v", got[0])
	}
	if want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}; !slices.Equal(got[1].Servers, want) {
		t.Errorf("%+v", got[1])
	}
	for _, torn := range []string{"", "{", `{"name":1}`, "[1]"} {
		if got := Decode([]byte(torn)); got != nil {
			t.Errorf("%q: %+v", torn, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`[{"name":"eth0","dns":["10.0.0.1"]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range Decode(b) {
			for _, s := range n.Servers {
				if !s.IsValid() {
					t.Errorf("%v", s)
				}
			}
		}
	})
}
