package uplink

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func TestPlan(t *testing.T) {
	links := []Link{{Name: "eth10", Physical: true}, {Name: "eth2", MAC: "02:00:00:00:00:02", Driver: "igb", Physical: true}, {Name: "veth1"}}
	got := Plan(links, nil)
	if len(got) != 2 || got[0].Link != "eth2" || !got[0].DHCP || got[0].Metric >= got[1].Metric {
		t.Errorf("without settings: %+v", got)
	}
	got = Plan(links, &api.NetworkSettings{Uplinks: []api.Uplink{
		{Match: api.UplinkMatch{Driver: "igb"}, VLAN: 7, Addresses: []string{"10.0.0.2/24"}, Gateway: "10.0.0.1", DNS: []string{"10.0.0.1"}},
		{Match: api.UplinkMatch{Name: "eth*"}, Metric: 900},
	}})
	if len(got) != 3 || got[0].Name() != "eth2.7" || got[0].DHCP || got[0].Gateway.String() != "10.0.0.1" || got[1].Name() != "eth2" || got[1].Metric != 900 || !got[2].DHCP {
		t.Errorf("%+v", got)
	}
}

// Without settings, ranks say who is asked and in which turn; with settings they say nothing.
func TestPlanByRank(t *testing.T) {
	links := []Link{{Name: "eth0", Physical: true, Rank: 1}, {Name: "eth1", Physical: true}, {Name: "eth2", Physical: true, Rank: Last}, {Name: "eth3", Physical: true, Rank: Never}}
	names := func(list []Assignment) (out string) {
		for _, a := range list {
			out += a.Link + " "
		}
		return out
	}
	if got := Plan(links, nil); names(got) != "eth1 eth0 " || got[0].Metric >= got[1].Metric {
		t.Errorf("%+v", got)
	}
	if got := Plan(links[2:], nil); names(got) != "eth2 " {
		t.Errorf("only the last is there: %+v", got)
	}
	if got := Plan(links, &api.NetworkSettings{Uplinks: []api.Uplink{{DHCP: true}}}); len(got) != 4 {
		t.Errorf("with settings: %+v", got)
	}
}

// A wireless card is used by an uplink that names a network and by no other, and by one alone.
func TestPlanWireless(t *testing.T) {
	links := []Link{{Name: "eth0", Physical: true}, {Name: "wlan0", Physical: true, Wireless: true}, {Name: "wlan1", Physical: true, Wireless: true}}
	if got := Plan(links, nil); len(got) != 1 || got[0].Link != "eth0" {
		t.Errorf("without settings: %+v", got)
	}
	got := Plan(links, &api.NetworkSettings{Uplinks: []api.Uplink{{DHCP: true}, {WiFi: &api.WiFi{SSID: "site"}, Cost: 1}}})
	if len(got) != 2 || got[0].Link != "eth0" || got[0].WiFi != nil || got[1].Link != "wlan0" || got[1].WiFi.SSID != "site" || !got[1].DHCP || got[0].Metric >= got[1].Metric {
		t.Errorf("%+v", got)
	}
}

// No interface is given two tasks, and none that is the box's own.
func TestPlanOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var links []Link
		for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching(`(eth|enp|veth)[0-9]{1,2}`), 0, 6, rapid.ID[string]).Draw(t, "links") {
			links = append(links, Link{Name: name, Physical: name[0] == 'e'})
		}
		s := &api.NetworkSettings{}
		for range rapid.IntRange(0, 4).Draw(t, "uplinks") {
			s.Uplinks = append(s.Uplinks, api.Uplink{Match: api.UplinkMatch{Name: rapid.SampledFrom([]string{"", "eth*", "enp1", "["}).Draw(t, "name")}, VLAN: rapid.Int64Range(0, 3).Draw(t, "vlan")})
		}
		seen := map[string]bool{}
		for _, a := range Plan(links, s) {
			if seen[a.Name()] || a.Link[0] == 'v' || a.Metric <= 0 {
				t.Fatalf("%+v", a)
			}
			seen[a.Name()] = true
		}
	})
}

func TestResolvConf(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	got := resolvConf([]resolvers{{200, []netip.Addr{a, b}, nil}, {100, []netip.Addr{b}, []string{"example"}}})
	if got != "nameserver fd00::1\nnameserver 10.0.0.1\nsearch example\n" {
		t.Errorf("%q", got)
	}
	// Three of the preferred uplink's do not keep out the other's, whose domain counts too.
	c, d := netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.4")
	got = resolvConf([]resolvers{{200, []netip.Addr{d}, []string{"site.example", "example"}}, {100, []netip.Addr{a, b, c}, []string{"example"}}})
	if got != "nameserver 10.0.0.1\nnameserver 10.0.0.4\nnameserver fd00::1\nsearch example site.example\n" {
		t.Errorf("%q", got)
	}
}
