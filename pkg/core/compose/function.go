package compose

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"tributary.dev/tributary/pkg/api"
)

// driverSRIOV is the driver of networks that are a network card's: a service on one gets a
// virtual function of its own (docs/network-functions.md).
const driverSRIOV = "sriov"

// bridge refuses for an app's own network what is for a network card's.
func (c *compiler) bridge(at, name string, def types.NetworkConfig, in types.ServiceConfig) {
	const remedy = "addresses are given by the device, and reach services by name; remove it"
	if len(def.DriverOpts) > 0 {
		c.once(place("networks", name, "driver_opts"), remedy, "driver_opts is not supported")
	}
	if len(def.Ipam.Config) > 0 {
		c.once(place("networks", name, "ipam"), remedy, "ipam is not supported")
	}
	own := in.Networks[name]
	if own == nil {
		return
	}
	for field, value := range map[string]string{"ipv4_address": own.Ipv4Address, "ipv6_address": own.Ipv6Address, "interface_name": own.InterfaceName} {
		if value != "" {
			c.add(join(join(join(at, "networks"), name), field), remedy, "%s is not supported", field)
		}
	}
}

// function turns a service's place on a network card's network into a claim of a virtual
// function, with the addresses that the network says.
func (c *compiler) function(at, name string, def types.NetworkConfig, in types.ServiceConfig, s *api.Service) {
	claim := api.Claim{Class: api.ClaimVF, Count: 1, Options: map[string]string{"network": name}}
	for _, key := range keys(def.DriverOpts) {
		if key == "driver" {
			if claim.Driver = def.DriverOpts[key]; claim.Driver == api.DriverKernel {
				claim.Driver = ""
			}
			continue
		}
		claim.Options[key] = def.DriverOpts[key]
	}
	own := in.Networks[name]
	if own == nil {
		own = &types.ServiceNetworkConfig{}
	}
	switch {
	case own.InterfaceName != "":
		claim.Options["interface"] = own.InterfaceName
	case claim.Driver == "" && claim.Options["interface"] == "" && len(name) <= 15:
		claim.Options["interface"] = name
	}
	if i := claim.Options["interface"]; c.leads && bridged.MatchString(i) {
		c.add(c.written(join(join(join(at, "networks"), name), "interface_name"), place("networks", name)), "give it another interface_name, or name the network otherwise", "%s is what the service's interfaces to networks of the app's own are called", i)
		return
	}
	c.addresses(join(join(at, "networks"), name), name, def, own, &claim)
	if e := api.CheckClaim(&claim); e != nil {
		field := strings.TrimPrefix(e.Field, "options.")
		where := join(place("networks", name, "driver_opts"), field)
		c.once(c.written(where, join(join(join(at, "networks"), name), "interface_name"), place("networks", name)), e.Remedy, "%s", e.Message)
		return
	}
	s.Claims = append(s.Claims, claim)
}

// bridged are the names that a container's interfaces to bridges get.
var bridged = regexp.MustCompile(`^eth[0-9]+$`)

// apart refuses a range that holds addresses which are somebody's: the box chooses of it
// without asking anyone.
func (c *compiler) apart(where, name string, pool *types.IPAMPool) {
	between, err := netip.ParsePrefix(pool.IPRange)
	if err != nil {
		return // the claim's own check says so
	}
	in := func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err == nil && between.Contains(a)
	}
	at := c.written(join(where, "ip_range"), place("networks", name, "ipam"))
	if c.leads && in(pool.Gateway) {
		c.once(at, "choose a range without it: the box gives its addresses to services", "the gateway %s is in the range", clip(pool.Gateway))
	}
	for _, other := range keys(c.project.Services) {
		own := c.project.Services[other].Networks[name]
		if own != nil && (in(own.Ipv4Address) || in(own.Ipv6Address)) {
			c.once(at, "choose a range without it: the box gives its addresses to other services", "the address of service %s is in the range", other)
		}
	}
}

// addresses are those that the service is given by name, else one of the network's range
// that the box chooses. The gateway leads where the service is on no network of the app's
// own, which would lead out too.
func (c *compiler) addresses(at, name string, def types.NetworkConfig, own *types.ServiceNetworkConfig, claim *api.Claim) {
	var fixed, routes []string
	if r := claim.Options["routes"]; r != "" {
		routes = append(routes, r)
	}
	used := map[string]bool{}
	for i, pool := range def.Ipam.Config {
		where := index(join(place("networks", name, "ipam"), "config"), i)
		subnet, err := netip.ParsePrefix(pool.Subnet)
		if err != nil {
			c.once(c.written(join(where, "subnet"), place("networks", name, "ipam")), "write it like 192.0.2.0/24", "%q is no subnet", clip(pool.Subnet))
			continue
		}
		had := false
		for field, text := range map[string]string{"ipv4_address": own.Ipv4Address, "ipv6_address": own.Ipv6Address} {
			if a, err := netip.ParseAddr(text); err == nil && subnet.Contains(a) {
				fixed, used[field], had = append(fixed, netip.PrefixFrom(a, subnet.Bits()).String()), true, true
			}
		}
		if !had && pool.IPRange != "" && claim.Options["range"] == "" {
			claim.Options["range"], had = pool.IPRange+" of "+subnet.String(), true
			c.apart(where, name, pool)
		}
		if !had {
			continue
		}
		if gateway, err := netip.ParseAddr(pool.Gateway); err == nil && !c.leads {
			all := "0.0.0.0/0"
			if gateway.Is6() {
				all = "::/0"
			}
			routes = append(routes, all+" via "+gateway.String())
		} else if pool.Gateway != "" && err != nil {
			c.once(c.written(join(where, "gateway"), place("networks", name, "ipam")), "write an address of the subnet", "%q is no gateway", clip(pool.Gateway))
		}
	}
	for field, text := range map[string]string{"ipv4_address": own.Ipv4Address, "ipv6_address": own.Ipv6Address} {
		if text != "" && !used[field] {
			c.add(join(at, field), "give an address of a subnet that networks."+name+".ipam.config has", "%q is in no subnet of the network", clip(text))
		}
	}
	slices.Sort(fixed)
	for option, values := range map[string][]string{"address": fixed, "routes": routes} {
		if len(values) > 0 {
			claim.Options[option] = strings.Join(values, ",")
		}
	}
}
