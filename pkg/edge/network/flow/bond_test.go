package flow

import (
	"testing"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

// bond joins two ports of a namespace into one.
func (s *space) bond(name string, ports ...string) {
	s.t.Helper()
	b := netlink.NewLinkBond(attrs(name))
	b.Mode, b.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 100
	s.link(b)
	for _, p := range ports {
		s.must(s.h.LinkSetDown(s.get(p)))
		s.must(s.h.LinkSetMaster(s.get(p), s.get(name)))
		s.up(p)
	}
}

// Rules at a bond see what comes by either of its ports, and rules at the ports see it before; both go
// on when a cable is pulled.
func TestOnBond(t *testing.T) {
	l := newLab(t)
	far := newSpace(t)
	wire(far, "c0", l.box, "d0")
	wire(far, "c1", l.box, "d1")
	l.box.bond("bond0", "d0", "d1")
	far.bond("bond0", "c0", "c1")
	l.box.addr("bond0", "10.46.0.1/24")
	far.addr("bond0", "10.46.0.2/24")
	at := l.peer.capture("p0")
	l.keeper.Set(map[string]api.FlowPolicySpec{
		"bond":  {Interface: api.InterfaceSelector{Name: "bond0"}, Rules: []api.FlowRule{{Name: "steer", Match: udp("5000"), To: toPeer}}},
		"ports": {Interface: api.InterfaceSelector{Name: "d*"}, Rules: []api.FlowRule{{Name: "drop", Match: udp("5001"), Drop: true}, {Name: "first", Match: udp("5002"), To: toPeer}}},
	})
	l.stand(5)
	total := 0
	say := func(after string) {
		t.Helper()
		before, first := at.count("by the bond"), at.count("by a port")
		wait.Until(t, "datagrams by either, "+after, func() bool {
			far.send("10.46.0.1:5000", "by the bond", 1)
			far.send("10.46.0.1:5001", "dropped", 1)
			far.send("10.46.0.1:5002", "by a port", 1)
			total++
			return at.count("by the bond") > before && at.count("by a port") > first
		})
	}
	say("with both cables")
	far.must(far.h.LinkSetDown(far.get("c0")))
	say("with one cable")
	far.up("c0")
	far.must(far.h.LinkSetDown(far.get("c1")))
	say("with the other")
	if n := at.count("dropped"); n != 0 {
		t.Errorf("%d of %d dropped datagrams arrive", n, total)
	}
}
