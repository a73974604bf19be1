package api

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"unicode"
)

// NetworkSettings are the uplinks, the preferred first. Without any, each wired interface is
// asked by DHCP.
type NetworkSettings struct {
	Uplinks []Uplink `json:"uplinks,omitempty"`
	// Bonds are made first; their ports are no uplinks of their own.
	Bonds []Bond `json:"bonds,omitempty"`
	// Proxy is an HTTP proxy for what leaves the box over HTTPS.
	Proxy string `json:"proxy,omitempty"`
}

// Uplink is one interface with its addresses.
type Uplink struct {
	Match UplinkMatch `json:"match,omitempty"`
	// DHCP asks for an IPv4 address. It is the default when no address is given.
	DHCP bool `json:"dhcp,omitempty"`
	// Addresses are in CIDR form, IPv4 or IPv6.
	Addresses []string `json:"addresses,omitempty"`
	Gateway   string   `json:"gateway,omitempty"`
	DNS       []string `json:"dns,omitempty"`
	// VLAN is an 802.1Q number from 1 to 4094; 0 is untagged.
	VLAN int64 `json:"vlan,omitempty"`
	// WiFi joins a wireless network; without it an uplink fits no wireless card, and with it no other.
	WiFi *WiFi `json:"wifi,omitempty"`
	// Metric orders default routes, the smallest wins; 0 is by the place in the list.
	Metric int64 `json:"metric,omitempty"`
	// Cost is what the owner makes of using it: 0 is free, and one that costs leads out only
	// while the parent is reached by none that costs less.
	Cost int64 `json:"cost,omitempty"`
}

// UplinkMatch picks interfaces; what is empty fits all.
type UplinkMatch struct {
	Name   string `json:"name,omitempty"`
	MAC    string `json:"mac,omitempty"`
	Driver string `json:"driver,omitempty"`
}

// Fits tells whether an interface is picked. A pattern that is none fits nothing.
func (m UplinkMatch) Fits(name, mac, driver string) bool {
	if m.Name != "" {
		if ok, err := path.Match(m.Name, name); err != nil || !ok {
			return false
		}
	}
	return (m.MAC == "" || strings.EqualFold(m.MAC, mac)) && (m.Driver == "" || m.Driver == driver)
}

// WiFi is a wireless network.
type WiFi struct {
	// SSID is its name, at most 32 bytes.
	SSID string `json:"ssid"`
	// Passphrase is that of WPA2 or WPA3; empty joins a network that is open to all.
	Passphrase string `json:"passphrase,omitempty"`
	// Hidden is for a network that does not tell its name.
	Hidden bool `json:"hidden,omitempty"`
	// Country is where the box stands (ISO 3166-1, two capitals): it decides the radio channels.
	// Empty allows what is allowed everywhere.
	Country string `json:"country,omitempty"`
}

// fault is the first thing that is wrong; field is below wifi.
func (w *WiFi) fault() (field, message string) {
	switch {
	case w.SSID == "" || len(w.SSID) > 32:
		return "ssid", "a name of 1 to 32 bytes is wanted"
	case strings.ContainsFunc(w.SSID, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "ssid", "it holds what cannot be printed"
	case w.Passphrase != "" && (len(w.Passphrase) < 8 || len(w.Passphrase) > 63):
		return "passphrase", "8 to 63 characters are wanted"
	case strings.ContainsFunc(w.Passphrase, func(r rune) bool { return r < ' ' || r > '~' }):
		return "passphrase", "only characters of ASCII are wanted"
	case w.Country != "" && (len(w.Country) != 2 || strings.ContainsFunc(w.Country, func(r rune) bool { return r < 'A' || r > 'Z' })):
		return "country", "two capitals are wanted, such as DE"
	}
	return "", ""
}

// Validate tells all faults; at stands before the names of the fields.
func (n *NetworkSettings) Validate(at string) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &Error{Code: Invalid, Field: at + field, Message: fmt.Sprintf(format, args...)})
	}
	if u, err := url.Parse(n.Proxy); n.Proxy != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		bad("proxy", "it is no http://host:port, or http://user:password@host:port") // unquoted: it may hold a password
	}
	n.faults(bad)
	if len(n.Uplinks) > 16 {
		bad("uplinks", "%d of them, more than 16", len(n.Uplinks))
	}
	for i, u := range n.Uplinks {
		item := fmt.Sprintf("uplinks[%d].", i)
		for _, a := range u.Addresses {
			if p, err := netip.ParsePrefix(a); err != nil || !p.Addr().IsValid() {
				bad(item+"addresses", "%.80q is no address with a prefix length, such as 10.0.0.2/24", a)
			}
		}
		if _, err := netip.ParseAddr(u.Gateway); u.Gateway != "" && err != nil {
			bad(item+"gateway", "%.80q is no address", u.Gateway)
		}
		for _, a := range u.DNS {
			if _, err := netip.ParseAddr(a); err != nil {
				bad(item+"dns", "%.80q is no address", a)
			}
		}
		if len(u.Addresses) > 16 || len(u.DNS) > 8 {
			bad(item+"addresses", "more than 16 addresses or 8 resolvers")
		}
		if u.VLAN < 0 || u.VLAN > 4094 {
			bad(item+"vlan", "%d is not between 1 and 4094", u.VLAN)
		}
		if u.WiFi != nil {
			if field, message := u.WiFi.fault(); field != "" {
				bad(item+"wifi."+field, "%s", message)
			}
			if u.VLAN != 0 {
				bad(item+"vlan", "a wireless network carries none")
			}
		}
		if u.Metric < 0 || u.Metric > 1<<20 {
			bad(item+"metric", "%d is not between 0 and 1048576", u.Metric)
		}
		if u.Cost < 0 || u.Cost > 1000 {
			bad(item+"cost", "%d is not between 0 and 1000", u.Cost)
		}
	}
	return errors.Join(errs...)
}
