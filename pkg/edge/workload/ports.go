package workload

import (
	"fmt"
	"net/netip"
	"slices"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network"
)

// hidesListener tells why an app must not publish its ports here: what is sent to a
// published port goes to the container before any socket of the box sees it, so that a
// relay would lose its children, and the operator the way in. "" when all is well. Ports
// that the app has already stay with it, whoever listens later. m.mu is held.
func (m *Manager) hidesListener(a *App) string {
	var others []network.Listener
	asked := false
	for i := range a.Bundle.Services {
		s := &a.Bundle.Services[i]
		if len(networksOf(s)) == 0 {
			continue
		}
		for _, p := range attachment("", a.Bundle.App, s).Ports {
			if slices.ContainsFunc(m.own(), p.Takes) {
				return fmt.Sprintf("service %s: host port %d/%s is edged's own, its children come in by it; publish another port", s.Name, p.Host, p.Protocol)
			}
			if p.Host == 0 || m.hasPort(a.Bundle.App, p) {
				continue
			}
			if !asked {
				var err error
				if others, err = network.Listeners(); err != nil {
					m.cfg.Log.Warn("host ports cannot be compared with what listens on the device", "err", err)
				}
				asked = true
			}
			if slices.ContainsFunc(others, p.Takes) {
				return fmt.Sprintf("service %s: a program of the device listens on host port %d/%s (`ss -ln` there names it); publish another port", s.Name, p.Host, p.Protocol)
			}
		}
	}
	return ""
}

// own lists where this process listens.
func (m *Manager) own() (out []network.Listener) {
	for _, a := range m.cfg.Own {
		if at, err := netip.ParseAddrPort(a.String()); err == nil {
			out = append(out, network.Listener{Protocol: a.Network(), Addr: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())})
		}
	}
	return out
}

// hasPort tells whether a container of the app publishes the port. m.mu is held.
func (m *Manager) hasPort(app string, p network.Port) bool {
	for _, t := range m.instances {
		if t.in.Key.App == app && slices.ContainsFunc(t.svc.Ports, func(have api.Port) bool {
			return have.Host == p.Host && have.Protocol == p.Protocol && have.HostIP == p.HostIP
		}) {
			return true
		}
	}
	return false
}
