package compose

import (
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"tributary.dev/tributary/pkg/api"
)

const defaultNetwork = "default"

// network reads network_mode, networks and ports.
func (c *compiler) network(at string, in types.ServiceConfig, s *api.Service) {
	switch in.NetworkMode {
	case "":
		c.join(at, in, s)
	case "host", "none":
		s.NetworkMode = in.NetworkMode
		if len(in.Networks) > 0 {
			c.add(join(at, "networks"), "choose one of networks and network_mode", "networks do not go with network_mode: %s", in.NetworkMode)
		}
		if len(in.Ports) > 0 {
			remedy := "remove ports; the service is not reachable"
			if in.NetworkMode == "host" {
				remedy = "remove ports; the program listens on the box's own ports"
			}
			c.add(join(at, "ports"), remedy, "ports do not go with network_mode: %s", in.NetworkMode)
		}
		return
	default:
		c.add(join(at, "network_mode"), "write host or none, or use networks", "%q is not supported", clip(in.NetworkMode))
	}
	for i, p := range in.Ports {
		s.Ports = append(s.Ports, c.port(at, i, p)...)
	}
	sort.Slice(s.Ports, func(i, j int) bool {
		a, b := s.Ports[i], s.Ports[j]
		if a.Host != b.Host {
			return a.Host < b.Host
		}
		if a.Protocol != b.Protocol {
			return a.Protocol < b.Protocol
		}
		return a.HostIP < b.HostIP
	})
}

func (c *compiler) join(at string, in types.ServiceConfig, s *api.Service) {
	// An app's own network leads out, where the service is on one.
	c.leads = false
	for name := range in.Networks {
		c.leads = c.leads || c.project.Networks[name].Driver != driverSRIOV
	}
	for _, name := range keys(in.Networks) {
		def, declared := c.project.Networks[name]
		switch {
		case !declared && name != defaultNetwork:
			c.add(join(join(at, "networks"), name), "declare it under networks: at the top of the file", "there is no such network")
		case len(name) > 63 || !serviceName.MatchString(name):
			c.add(place("networks", name), "use letters and digits with single '-', '_' or '.' between", "the network's name cannot be used")
		case def.Driver == driverSRIOV:
			c.function(at, name, def, in, s)
			continue
		case def.Driver != "" && def.Driver != "bridge":
			c.once(place("networks", name, "driver"), "leave it out for a bridge of the app's own, or write sriov for a function of a network card", "the network driver %q is not supported", clip(def.Driver))
		default:
			c.bridge(at, name, def, in)
		}
		s.Networks = append(s.Networks, name)
		c.nets[name] = true
	}
	switch {
	case len(s.Networks) > 0:
	case len(in.Networks) > 0 && len(s.Claims) > 0:
		s.NetworkMode = "none" // functions of network cards alone
		if len(in.Ports) > 0 {
			c.add(join(at, "ports"), "remove ports: who is on that network reaches the service itself", "ports are published from networks of the app's own, and this service is on none")
		}
	default:
		c.nets[defaultNetwork] = true
	}
}

// once adds a finding that several services would repeat.
func (c *compiler) once(at, remedy, format string, args ...any) {
	if !slices.ContainsFunc(c.list, func(e *api.Error) bool { return e.Field == at }) {
		c.add(at, remedy, format, args...)
	}
}

func (c *compiler) port(at string, i int, p types.ServicePortConfig) []api.Port {
	// Ranges are expanded by now: the index is exact for files without them.
	at = join(at, "ports")
	if _, ok := c.lines[index(at, i)]; ok {
		at = index(at, i)
	}
	out := api.Port{HostIP: p.HostIP, Container: int(p.Target), Protocol: p.Protocol}
	if out.Protocol == "" {
		out.Protocol = "tcp"
	}
	if out.Protocol != "tcp" && out.Protocol != "udp" {
		c.add(at, "publish tcp or udp", "the protocol %q is not supported", clip(p.Protocol))
		return nil
	}
	if p.Target < 1 || p.Target > 65535 {
		c.add(at, "a port is 1 to 65535", "%d is not a port", p.Target)
		return nil
	}
	switch {
	case p.Published == "" || p.Published == "0":
		c.add(at, "write it as \"HOST:CONTAINER\", e.g. \"8080:"+strconv.Itoa(int(p.Target))+"\"", "the port names no port of the box; a random one would be found by nobody")
		return nil
	case strings.Contains(p.Published, "-"):
		c.add(at, "publish one port, or a range of the same width on both sides", "the range %s cannot lead to one port", clip(p.Published))
		return nil
	}
	host, err := strconv.Atoi(p.Published)
	if err != nil || host < 1 || host > 65535 {
		c.add(at, "a port is 1 to 65535", "%q is not a port", clip(p.Published))
		return nil
	}
	out.Host = host
	if p.HostIP != "" {
		ip, err := netip.ParseAddr(p.HostIP)
		if err != nil {
			c.add(at, "write an IPv4 or IPv6 address of the box, or leave it out", "%q is not an address", clip(p.HostIP))
			return nil
		}
		if out.HostIP = ip.String(); ip.IsUnspecified() {
			out.HostIP = ""
		}
	}
	return []api.Port{out}
}
