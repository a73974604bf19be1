package sztp

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"tributary.dev/tributary/pkg/link/names"
	"tributary.dev/tributary/tests/nameserver"
)

// TestByEveryNetwork: a name server that says that there is no such name has the last word on its own
// network alone. What another network's server knows is found, and reached.
func TestByEveryNetwork(t *testing.T) {
	core, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	port := core.Addr().(*net.TCPAddr).Port
	carrier := nameserver.Start(t, nil)
	site := nameserver.Start(t, map[string]dnsmessage.ResourceBody{
		"_sztp._tcp.site.example.": &dnsmessage.SRVResource{Port: uint16(port), Target: dnsmessage.MustNewName("core.site.example.")},
		"core.site.example.":       &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
	})
	networks := names.Networks{{Servers: []netip.AddrPort{carrier}, Search: []string{"carrier.example"}}, {Servers: []netip.AddrPort{site}, Search: []string{"site.example"}}}
	_, want, _ := net.SplitHostPort(core.Addr().String())
	want = "core.site.example:" + want
	if got := ByDNS(t.Context(), networks, nil); !slices.Equal(got, []string{"https://" + want}) {
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
	if got := ByDNS(t.Context(), networks[:1], []string{"site.example"}); got != nil {
		t.Errorf("the carrier's name server names %q", got)
	}
}
