package hwprofiles

import (
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// PTP has the box keep the time by IEEE 1588 (linuxptp, which the image has to carry).
type PTP struct {
	// Interfaces are the ports that speak it.
	Interfaces []string `json:"interfaces,omitempty"`
	// Role stands for Interfaces: all ports of that role which have a clock of their own, or with software timestamps
	// all of that role.
	Role string `json:"role,omitempty"`
	// Domain is IEEE 1588's; from 24 on the rates are those of telecom (G.8275.1).
	Domain int `json:"domain,omitempty"`
	// Transport is L2 (the default) or UDPv4.
	Transport string `json:"transport,omitempty"`
	// Timestamping is hardware (the default) or software.
	Timestamping string `json:"timestamping,omitempty"`
	// Server has the box give the time where nobody better does.
	Server bool `json:"server,omitempty"`
	// BoundNS is how far off it may be before that is a warning; 0 is 1500.
	BoundNS int64 `json:"boundNS,omitempty"`
}

// maxPTPPorts is how many ports may speak it.
const maxPTPPorts = 16

// PTPPorts names the interfaces that speak PTP on a box, of those that it has.
func (p Profile) PTPPorts(have []api.NetDevice) (out []string) {
	if p.PTP == nil {
		return nil
	}
	if p.PTP.Role == "" {
		return p.PTP.Interfaces
	}
	for _, d := range have {
		if d.Physical != "" || d.SwitchPort != "" || d.PTP == "" && p.PTP.Timestamping != "software" {
			continue // functions and representors have no clock of their own
		}
		if policy, ok := p.NIC(d.Driver); ok && policy.Role == p.PTP.Role && len(out) < maxPTPPorts {
			out = append(out, d.Name)
		}
	}
	slices.Sort(out)
	return out
}

func (c *checker) ptp(p *PTP) {
	if p == nil {
		return
	}
	if p.Role != "" {
		c.oneOf("ptp.role", p.Role, Uplink, Site, Fronthaul, Any)
		c.fault(len(p.Interfaces) == 0, "ptp.interfaces", "remove them, or the role", "ports are picked by their role already")
	} else {
		c.fault(len(p.Interfaces) > 0 && len(p.Interfaces) <= maxPTPPorts, "ptp.interfaces", "name 1 to 16 ports, or a role", "there are %d", len(p.Interfaces))
	}
	bad := slices.ContainsFunc(p.Interfaces, func(name string) bool { return !interfaceName(name) })
	c.fault(!bad, "ptp.interfaces", "write names of interfaces, such as enp3s0f0", "these are no names of interfaces")
	c.between("ptp.domain", int64(p.Domain), 0, 127, "")
	if p.Transport != "" {
		c.oneOf("ptp.transport", p.Transport, "L2", "UDPv4")
	}
	if p.Timestamping != "" {
		c.oneOf("ptp.timestamping", p.Timestamping, "hardware", "software")
	}
	c.between("ptp.boundNS", p.BoundNS, 0, 1e9, "ns")
}

// interfaceName is what the kernel takes for one (dev_valid_name), and ptp4l's file does.
func interfaceName(name string) bool {
	if name == "" || len(name) > 15 {
		return false
	}
	return !slices.ContainsFunc([]byte(name), func(b byte) bool {
		return b <= ' ' || b > '~' || b == '/' || b == ':' || b == '[' || b == ']' || b == '#'
	})
}
