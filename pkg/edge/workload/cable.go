package workload

import (
	"net/netip"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network"
)

// Cable tells how the container in charge of a service hangs on the box, and its address there.
func (m *Manager) Cable(app, service string) (network.Cable, netip.Addr, error) {
	t, err := m.serving(app, service)
	if err != nil {
		return network.Cable{}, netip.Addr{}, err
	}
	if len(t.addrs) == 0 {
		return network.Cable{}, netip.Addr{}, api.Errorf(api.NotFound, "service %s/%s has no network of its own", app, service)
	}
	c, err := network.CableOf(m.net.Namespace(t.in.ID))
	return c, t.addrs[0], err
}
