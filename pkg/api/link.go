package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// checkLink says what is wrong with what a claim of a virtual function says of addresses.
func checkLink(c *Claim) *Error {
	fault := func(option, message, remedy string) *Error {
		return &Error{Code: Invalid, Field: "options." + option, Message: message, Remedy: remedy}
	}
	for _, option := range []string{"address", "range", "routes", "interface", "mtu"} {
		switch {
		case c.Options[option] == "":
		case c.Driver == DriverVFIO:
			return fault(option, "a function that vfio-pci serves is no interface", "leave it out: the program itself sets what it drives")
		case c.Count != 1 && (option == "address" || option == "interface"):
			return fault(option, "several functions cannot have one "+option, "claim them one by one, each with its own")
		}
	}
	if c.Options["interface"] == "lo" {
		return fault("interface", "lo is each container's own loopback", "choose another name")
	}
	if n, err := strconv.Atoi(c.Options["mtu"]); err == nil && (n < leastMTU || n > mostMTU) {
		return fault("mtu", fmt.Sprintf("%d is no MTU", n), fmt.Sprintf("give %d to %d bytes, or leave it out", leastMTU, mostMTU))
	}
	var nets []netip.Prefix
	if text := c.Options["address"]; text != "" {
		for _, one := range strings.Split(text, ",") {
			p, err := netip.ParsePrefix(one)
			if err != nil || !isStation(p.Addr()) {
				return fault("address", quote(one)+" is no address of an interface", "write it with the length of its network: 192.0.2.10/24")
			}
			nets = append(nets, p.Masked())
		}
	}
	if text := c.Options["range"]; text != "" {
		_, network, err := ParseRange(text)
		if err != nil {
			return fault("range", quote(text)+" is no part of a network", "write it like 192.0.2.32/27 of 192.0.2.0/24")
		}
		nets = append(nets, network)
	}
	for _, r := range Routes(c.Options["routes"]) {
		dst, via, routed := strings.Cut(r, " via ")
		p, err := netip.ParsePrefix(dst)
		gateway, gerr := netip.ParseAddr(via)
		switch {
		case err != nil || routed && (gerr != nil || gateway.Is4() != p.Addr().Is4()):
			return fault("routes", quote(r)+" is no route", "write it like 198.51.100.0/24 via 192.0.2.1")
		case routed && !reaches(nets, gateway):
			return fault("routes", "none of its addresses reaches "+gateway.String(), "give an address in the gateway's network")
		}
	}
	return nil
}

func reaches(nets []netip.Prefix, a netip.Addr) bool {
	for _, n := range nets {
		if n.Contains(a) {
			return true
		}
	}
	return a.Is6() && a.IsLinkLocalUnicast()
}

func isStation(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
}

// Routes takes a list of routes apart: "CIDR via ADDRESS,…".
func Routes(text string) (out []string) {
	for _, r := range strings.Split(text, ",") {
		if r = strings.TrimSpace(r); r != "" {
			out = append(out, r)
		}
	}
	return out
}

// ParseRange reads "192.0.2.32/27 of 192.0.2.0/24": from which addresses of which network a
// box chooses one for itself.
func ParseRange(text string) (from, network netip.Prefix, err error) {
	a, b, _ := strings.Cut(text, " of ")
	if from, err = netip.ParsePrefix(a); err != nil {
		return from, network, err
	}
	if network, err = netip.ParsePrefix(b); err != nil {
		return from, network, err
	}
	from, network = from.Masked(), network.Masked()
	if !network.Overlaps(from) || from.Bits() < network.Bits() || !isStation(from.Addr()) {
		return from, network, Errorf(Invalid, "%s is no part of %s", from, network)
	}
	return from, network, nil
}
