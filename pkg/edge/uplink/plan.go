package uplink

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/natural"
)

// Link is an interface as the planner sees it.
type Link struct {
	Name, MAC, Driver string
	// Master is the bond or bridge that it is a port of.
	Master string
	// Physical: it has a device behind it, so it is not one of the box's own bridges,
	// tunnels or containers' ends.
	Physical bool
	// Wireless cards are used by uplinks that name a network.
	Wireless bool
	// Rank is in which turn it is asked for an address without settings: 0 first, Last
	// only when there is no other, Never not at all.
	Rank int
}

// Ranks of interfaces.
const (
	Never = -1
	Last  = 9
)

// Assignment is one interface with what it is to do.
type Assignment struct {
	Link      string
	VLAN      int
	DHCP      bool
	Addresses []netip.Prefix
	Gateway   netip.Addr
	DNS       []netip.Addr
	Metric    int
	Cost      int64
	// WiFi is the wireless network to join first.
	WiFi *api.WiFi
}

// Name is the interface that carries the addresses.
func (a Assignment) Name() string {
	if a.VLAN == 0 {
		return a.Link
	}
	name := fmt.Sprintf("%s.%d", a.Link, a.VLAN)
	if len(name) > 15 { // IFNAMSIZ
		name = fmt.Sprintf("vlan%d", a.VLAN)
	}
	return name
}

const (
	firstMetric = 100
	// costMetric puts the routes of costly uplinks behind those of cheaper ones.
	costMetric = 10_000
)

// Plan says what each interface is to do. Without settings each wired one is asked by DHCP,
// in the order of their ranks and names, which also orders their default routes. With settings an
// interface follows the first uplink that fits it, for each VLAN once; those that fit none
// are left alone.
func Plan(links []Link, s *api.NetworkSettings) (out []Assignment) {
	links = append([]Link(nil), links...)
	slices.SortFunc(links, func(a, b Link) int { return natural.Compare(a.Name, b.Name) })
	uplinks := []api.Uplink{{DHCP: true}}
	if s != nil && len(s.Uplinks) > 0 {
		uplinks = s.Uplinks
	} else {
		links = byRank(links)
	}
	taken := map[string]bool{}
	for i, u := range uplinks {
		for _, l := range links {
			a := Assignment{Link: l.Name, VLAN: int(u.VLAN), DHCP: u.DHCP || len(u.Addresses) == 0, Metric: int(u.Metric), Cost: u.Cost, WiFi: u.WiFi}
			if !l.Physical || l.Wireless != (u.WiFi != nil) || !u.Match.Fits(l.Name, l.MAC, l.Driver) || taken[a.Name()] {
				continue
			}
			taken[a.Name()] = true
			if a.Metric == 0 {
				a.Metric = firstMetric*(i+1) + len(out) + costMetric*int(min(max(u.Cost, 0), maxCost))
			}
			for _, text := range u.Addresses {
				if p, err := netip.ParsePrefix(text); err == nil { // validated where it was read
					a.Addresses = append(a.Addresses, p)
				}
			}
			a.Gateway, _ = netip.ParseAddr(u.Gateway)
			for _, text := range u.DNS {
				if d, err := netip.ParseAddr(text); err == nil {
					a.DNS = append(a.DNS, d)
				}
			}
			out = append(out, a)
			if len(u.Addresses) > 0 || u.WiFi != nil {
				break // fixed addresses go to one interface, and one card is in a network
			}
		}
	}
	return out
}

// byRank are the interfaces that are asked without settings, in their turn.
func byRank(links []Link) (out []Link) {
	least := Last
	for _, l := range links {
		if l.Physical && !l.Wireless && l.Rank >= 0 {
			least = min(least, l.Rank)
		}
	}
	for _, l := range links {
		if l.Physical && l.Rank >= 0 && (l.Rank < Last || least == Last) {
			out = append(out, l)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Rank < out[j].Rank })
	return out
}

// resolvConf is what resolv.conf(5) reads: no more than the three name servers that are heeded, by turns of the uplinks,
// so that one with many does not keep another's out; the preferred uplink's first. The domains are all uplinks'.
func resolvConf(list []resolvers) string {
	sort.SliceStable(list, func(i, j int) bool { return list[i].metric < list[j].metric })
	var servers []netip.Addr
	var search []string
	for turn, more := 0, true; more; turn++ {
		more = false
		for _, r := range list {
			if turn < len(r.servers) {
				more = true
				if a := r.servers[turn]; !slices.Contains(servers, a) {
					servers = append(servers, a)
				}
			}
		}
	}
	for _, r := range list {
		for _, d := range r.search {
			if !slices.Contains(search, d) {
				search = append(search, d)
			}
		}
	}
	var out strings.Builder
	for _, a := range servers[:min(len(servers), 3)] {
		fmt.Fprintf(&out, "nameserver %s\n", a)
	}
	if len(search) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(search[:min(len(search), 6)], " "))
	}
	return out.String()
}

type resolvers struct {
	metric  int
	servers []netip.Addr
	search  []string
}
