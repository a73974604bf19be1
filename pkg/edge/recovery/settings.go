package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/natural"
)

// settings are those in force. A closed state leaves none, as on a box that begins.
func (s Sources) settings() *api.NetworkSettings {
	var kept struct {
		Settings *api.NetworkSettings `json:"settings"`
	}
	if readJSON(s.path(s.State, "network.json"), &kept) != nil {
		return nil
	}
	return kept.Settings
}

// portOf is the bond that a card is a port of, or will be; empty for none. A port's address is its bond's.
func portOf(s *api.NetworkSettings, l Link) string {
	if s == nil || l.Kind == wireless {
		return ""
	}
	for _, b := range s.Bonds {
		if l.Master == b.Name || slices.ContainsFunc(b.Ports, func(m api.UplinkMatch) bool { return m.Fits(l.Name, l.MAC, l.Driver) }) {
			return b.Name
		}
	}
	return ""
}

// ways are what can have addresses, in the order in which uplinks look for one: bonds, and the cards
// that are no ports of these.
func ways(s *api.NetworkSettings, links []Link) (out []Link) {
	if s != nil {
		for _, b := range s.Bonds {
			out = append(out, Link{Name: b.Name})
		}
	}
	for _, l := range links {
		if portOf(s, l) == "" && !slices.ContainsFunc(out, func(o Link) bool { return o.Name == l.Name }) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return natural.Compare(a.Name, b.Name) })
	return out
}

// carriers are the ways that carry each uplink, by the rules of pkg/edge/uplink: a way follows the first that fits it, for each VLAN
// once, and fixed addresses go to one.
func carriers(uplinks []api.Uplink, ways []Link) [][]string {
	type carrier struct {
		name string
		vlan int64
	}
	taken, out := map[carrier]bool{}, make([][]string, len(uplinks))
	for i, u := range uplinks {
		for _, l := range ways {
			c := carrier{l.Name, u.VLAN}
			if (u.WiFi != nil) != (l.Kind == wireless) || taken[c] || !u.Match.Fits(l.Name, l.MAC, l.Driver) {
				continue
			}
			taken[c] = true
			out[i] = append(out[i], l.Name)
			if len(u.Addresses) > 0 || u.WiFi != nil {
				break
			}
		}
	}
	return out
}

// setWords tells what the settings hold; empty for nothing.
func setWords(s *api.NetworkSettings) string {
	if s == nil {
		return ""
	}
	var words []string
	for _, b := range s.Bonds {
		var ports []string
		for _, p := range b.Ports {
			ports = append(ports, matchWords(p))
		}
		words = append(words, fmt.Sprintf("bond %s of %s (%s)", b.Name, strings.Join(ports, ", "), cmp.Or(b.Mode, api.BondBackup)))
	}
	for _, u := range s.Uplinks {
		text := matchWords(u.Match)
		if u.VLAN != 0 {
			text += fmt.Sprintf(" in VLAN %d", u.VLAN)
		}
		if u.WiFi != nil {
			text += fmt.Sprintf(" in the network %q", u.WiFi.SSID)
		}
		words = append(words, text)
	}
	return strings.Join(words, "; ")
}

func matchWords(m api.UplinkMatch) string {
	if m == (api.UplinkMatch{}) {
		return "any card"
	}
	return strings.Join(slices.DeleteFunc([]string{m.Name, m.MAC, m.Driver}, func(w string) bool { return w == "" }), " ")
}

// The answers of the form that are neither an address nor a name.
const (
	keepOthers = "keep"
	dropOthers = "drop"
	noProxy    = "none"
)

// setNetwork puts settings on trial that give one interface what the form says.
func (a *Appliance) setNetwork(ctx context.Context, fields map[string]string, say func(string)) error {
	f := a.Gather(ctx)
	s, err := changed(f.Settings, f.Links, fields)
	if err != nil {
		return err
	}
	if err := a.wish(Wanted{Settings: &s}); err != nil {
		return err
	}
	say("The box takes the settings up: " + setWords(&s) + ". If it has reached its parent before, they are on trial, which this page shows: they are kept once the parent has been reached with them for a while.")
	return nil
}

// changed are the settings in force with what the form says of one interface. What the form does not ask for stays, unless the
// person drops it: bonds, other uplinks, and of this interface's own its rank and its cost.
func changed(now *api.NetworkSettings, links []Link, fields map[string]string) (api.NetworkSettings, error) {
	u, err := uplinkOf(fields)
	if err != nil {
		return api.NetworkSettings{}, err
	}
	all := ways(now, links)
	drop := fields["others"] == dropOthers
	at := slices.IndexFunc(links, func(l Link) bool { return l.Name == u.Match.Name })
	if at >= 0 && links[at].Kind == wireless { // check: wireless
		return api.NetworkSettings{}, fmt.Errorf("%s has no socket for a cable: join a wireless network with it", links[at].Name)
	}
	if at >= 0 && !drop {
		if bond := portOf(now, links[at]); bond != "" { // check: a port
			return api.NetworkSettings{}, fmt.Errorf("%s is a port of %s: name %s, or drop what else is set", links[at].Name, bond, bond)
		}
	}
	if at < 0 && !slices.ContainsFunc(all, func(l Link) bool { return l.Name == u.Match.Name }) { // check: a card
		var names []string
		for _, l := range all {
			names = append(names, l.Name)
		}
		return api.NetworkSettings{}, fmt.Errorf("this box has no network card %s; it has %s", clean(u.Match.Name), cmp.Or(strings.Join(names, ", "), "none"))
	}
	s := api.NetworkSettings{}
	if now != nil {
		s.Uplinks, s.Bonds, s.Proxy = slices.Clone(now.Uplinks), slices.Clone(now.Bonds), now.Proxy
	}
	if drop {
		s.Uplinks = nil
		s.Bonds = slices.DeleteFunc(s.Bonds, func(b api.Bond) bool { return b.Name != u.Match.Name })
	}
	s.Uplinks = putUplink(s.Uplinks, all, u)
	switch p := fields["proxy"]; p {
	case "": // as it is: what is shown of it holds no password
	case noProxy:
		s.Proxy = ""
	default:
		s.Proxy = p
	}
	return s, s.Validate("")
}

// putUplink puts an uplink in the place of the one that its interface follows, which stays behind it where it is others' too.
func putUplink(uplinks []api.Uplink, ways []Link, u api.Uplink) []api.Uplink {
	before := carriers(uplinks, ways)
	at := -1
	for i := range uplinks {
		if slices.Contains(before[i], u.Match.Name) && (at < 0 || uplinks[i].VLAN == u.VLAN) {
			at = i
		}
	}
	switch {
	case at < 0:
		at = 0 // who stands before the box wants this way
	case len(before[at]) == 1:
		u.Metric, u.Cost = uplinks[at].Metric, uplinks[at].Cost
		uplinks, before = slices.Delete(uplinks, at, at+1), slices.Delete(before, at, at+1)
	default:
		u.Metric, u.Cost = uplinks[at].Metric, uplinks[at].Cost
	}
	uplinks, before = slices.Insert(uplinks, at, u), slices.Insert(before, at, []string{u.Match.Name})
	for i, now := range carriers(uplinks, ways) {
		if len(uplinks[i].Addresses) > 0 && len(before[i]) == 1 && !slices.Equal(now, before[i]) {
			uplinks[i].Match.Name = before[i][0] // an address does not wander because another's place is free
		}
	}
	return uplinks
}

// uplinkOf reads what the form says of the interface.
func uplinkOf(fields map[string]string) (api.Uplink, error) {
	u := api.Uplink{Match: api.UplinkMatch{Name: fields["link"]}, DHCP: fields["mode"] != "fixed"}
	if u.Match.Name == "" || strings.ContainsAny(u.Match.Name, "/*?[\\ \t") {
		return u, errors.New("name the network card")
	}
	if !u.DHCP {
		u.Addresses, u.Gateway = strings.Fields(fields["address"]), fields["gateway"]
		if len(u.Addresses) == 0 {
			return u, errors.New("a fixed address is wanted, with its prefix length, such as 10.0.0.2/24")
		}
		for _, text := range u.Addresses {
			if p, err := netip.ParsePrefix(text); err == nil && u.Gateway != "" {
				if g, err := netip.ParseAddr(u.Gateway); err == nil && !p.Contains(g) && p.Addr().Is4() == g.Is4() {
					return u, fmt.Errorf("the gateway %s is not in %s", g, p.Masked())
				}
			}
		}
	}
	u.DNS = strings.Fields(fields["dns"])
	if v := fields["vlan"]; v != "" {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return u, fmt.Errorf("%q is no VLAN", clean(v))
		}
		u.VLAN = n
	}
	return u, nil
}

// joinWiFi puts settings on trial that have a wireless network beside what there is.
func (a *Appliance) joinWiFi(fields map[string]string, say func(string)) error {
	s, err := withWiFi(a.settings(), fields)
	if err != nil {
		return err
	}
	if err := a.wish(Wanted{Settings: &s}); err != nil {
		return err
	}
	say("The box joins it now. Watch this page: the settings are kept once the parent has been reached with them for a while.")
	return nil
}

// withWiFi adds a wireless network to the settings in force, behind cables; it takes the
// place of another on the same card.
func withWiFi(now *api.NetworkSettings, fields map[string]string) (api.NetworkSettings, error) {
	card := fields["link"]
	if !cardName(card) {
		return api.NetworkSettings{}, errors.New("name the wireless card")
	}
	s := api.NetworkSettings{}
	if now != nil {
		s = *now
		s.Uplinks = slices.Clone(now.Uplinks)
	}
	if len(s.Uplinks) == 0 {
		s.Uplinks = []api.Uplink{{DHCP: true}}
	}
	s.Uplinks = slices.DeleteFunc(s.Uplinks, func(u api.Uplink) bool { return u.WiFi != nil && cmp.Or(u.Match.Name, card) == card })
	s.Uplinks = append(s.Uplinks, api.Uplink{Match: api.UplinkMatch{Name: card}, DHCP: true,
		WiFi: &api.WiFi{SSID: fields["ssid"], Passphrase: fields["passphrase"], Hidden: fields["hidden"] == "yes", Country: strings.ToUpper(fields["country"])}})
	return s, s.Validate("")
}
