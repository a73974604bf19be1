package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

const onTrial = "The new settings are on trial: if the parent is not reached for five minutes, the last that worked come back by themselves."

func networkPage(f Facts) Page {
	p := Page{Name: "network", Title: "Network"}
	if f.Trial != nil {
		switch f.Trial.Phase {
		case "trial":
			p.Lines = append(p.Lines, Line{Label: "On trial", Text: "new settings; they are taken back at " + clock(f.Trial.Until) + " unless the parent is reached", Mark: Attention})
		case "reverted":
			p.Lines = append(p.Lines, Line{Label: "Taken back", Text: f.Trial.Reason, Mark: Attention})
		}
	}
	up := map[string]bool{}
	for _, u := range f.Uplinks {
		up[u.Name] = true
		p.Lines = append(p.Lines, uplinkLine(u, len(f.Uplinks) > 1))
	}
	for _, l := range f.Links {
		p.Lines = append(p.Lines, cardLine(l, up[l.Name], f.WiFi))
	}
	if len(f.Links) == 0 {
		p.Lines = append(p.Lines, Line{Text: "No network card is seen.", Mark: Bad})
	}
	if words := setWords(f.Settings); words != "" {
		p.Lines = append(p.Lines, Line{Label: "Set", Text: words})
	}
	p.Lines = append(p.Lines, Line{Label: "Resolvers", Text: cmp.Or(strings.Join(f.Resolvers, " "), "none")})
	p.Deeds = append([]Deed{
		{ID: "network-test", Title: "Test the network", Fields: []Field{{Name: "host", Question: "host to reach, with its port", Default: f.Parent}}},
		networkDeed(f),
	}, wifiDeeds(f)...)
	if f.Trial != nil && f.Trial.Phase == "trial" {
		p.Deeds = append(p.Deeds, Deed{ID: "network-revert", Title: "Take the new settings back now"})
	}
	return p
}

// uplinkLine says how one way out is set and whether it works; the best of several is named.
func uplinkLine(u Uplink, several bool) Line {
	text, mark := cmp.Or(u.Address, "no address"), Plain
	how := "fixed"
	if u.DHCP {
		how = "DHCP"
	}
	if !u.Up {
		mark = Bad
	}
	if u.Gateway != "" {
		text += " by " + u.Gateway
	}
	if u.Cost > 0 {
		text += fmt.Sprintf(", costs %d", u.Cost)
	}
	if w := u.WiFi; w != nil {
		switch w.State {
		case joined:
			text += fmt.Sprintf(", in the network %q", w.SSID)
		case refused:
			text, mark = fmt.Sprintf("the network %q refuses this box", w.SSID), Bad
		case absent:
			text, mark = fmt.Sprintf("the network %q is not heard here", w.SSID), Bad
		default:
			text, mark = fmt.Sprintf("looks for the network %q", w.SSID), Attention
		}
	}
	if u.Best && several {
		text += ", leads out"
	}
	return Line{Label: u.Name, Text: how + ", " + text, Mark: mark}
}

// cardLine says what a network card is; used: an uplink's line tells its addresses.
func cardLine(l Link, used, wifi bool) Line {
	text := l.State
	if l.Speed != "" {
		text += ", " + l.Speed
	}
	if len(l.Addresses) > 0 && !used {
		text += ", " + strings.Join(l.Addresses, " ")
	}
	switch l.Kind {
	case wireless:
		text += ", Wi-Fi"
		if !wifi {
			text += ": this box's profile joins no wireless network"
		} else if !used {
			text += ": in no network"
		}
	case mobile:
		text += ", mobile: it is used where its modem shows itself as a network card; this system dials none"
	}
	if l.Master != "" {
		text += ", port of " + l.Master
	}
	mark := Plain
	if l.State != "up" {
		mark = Attention
	}
	return Line{Label: l.Name, Text: text + ", " + l.MAC, Mark: mark}
}

func networkDeed(f Facts) Deed {
	fields := []Field{
		{Name: "link", Question: "network card", Default: firstWay(f)},
		{Name: "mode", Question: "dhcp or fixed", Default: "dhcp", Choices: []string{"dhcp", "fixed"}},
		{Name: "address", Question: "address with prefix length, when fixed (10.0.0.2/24)"},
		{Name: "gateway", Question: "gateway, when fixed"},
		{Name: "dns", Question: "resolvers, separated by spaces"},
		{Name: "vlan", Question: "VLAN, 1 to 4094, or 0 for none", Default: "0"},
		{Name: "proxy", Question: "proxy, http://host:port, or nothing"},
	}
	if f.Settings != nil && f.Settings.Proxy != "" {
		fields[len(fields)-1].Question = "proxy, http://host:port; nothing leaves it as it is, none takes it away"
	}
	if setWords(f.Settings) != "" {
		fields = append(fields, Field{Name: "others", Question: "what else is set here: keep or drop", Default: keepOthers, Choices: []string{keepOthers, dropOthers}})
	}
	return Deed{ID: "network-set", Title: "Change address, VLAN or proxy", Fields: fields, Confirm: "try", Warning: onTrial}
}

// firstWay is what the form offers: a bond, else the first card with a connection, else the first.
func firstWay(f Facts) (first string) {
	if f.Settings != nil && len(f.Settings.Bonds) > 0 {
		return f.Settings.Bonds[0].Name
	}
	for _, l := range f.Links {
		if l.Kind == wireless {
			continue
		}
		if l.State == "up" {
			return l.Name
		}
		first = cmp.Or(first, l.Name)
	}
	return first
}

// wifiDeeds offers wireless networks to a box that has a card for them and may join.
func wifiDeeds(f Facts) []Deed {
	i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Kind == wireless })
	if i < 0 || !f.WiFi {
		return nil
	}
	card := Field{Name: "link", Question: "wireless card", Default: f.Links[i].Name}
	return []Deed{
		{ID: "wifi-scan", Title: "Look for wireless networks", Fields: []Field{card}},
		{ID: "wifi-join", Title: "Join a wireless network", Fields: []Field{card,
			{Name: "ssid", Question: "name of the network"},
			{Name: "passphrase", Question: "passphrase, or nothing for an open network", Secret: true},
			{Name: "hidden", Question: "does it hide its name, yes or no", Default: "no", Choices: []string{"yes", "no"}},
			{Name: "country", Question: "country in two capitals, such as DE, or nothing"},
		}, Confirm: "try", Warning: "Cables stay in use and come first. " + onTrial},
	}
}
