package flow

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

var world = World{
	Links: []Link{
		{Index: 2, Name: "enp1s0", MAC: "02:00:00:00:00:01", Ethernet: true, Offload: true, Switch: "aa", SwitchPort: "p0"},
		{Index: 3, Name: "enp1s0f0v1", Ethernet: true, Switch: "aa", SwitchPort: "pf0vf1"},
		{Index: 4, Name: "other", Ethernet: true, Switch: "bb", SwitchPort: "pf0vf1"},
		{Index: 5, Name: "trt-vx4789", Kind: "vxlan", Ethernet: true},
		{Index: 6, Name: "trt-gtp", Kind: "gtp"},
	},
	Endpoint: func(app, service string) (Endpoint, bool) {
		return Endpoint{Link: 9, MAC: [6]byte{2, 0, 0, 0, 0, 9}, Gateway: [6]byte{2, 0, 0, 0, 0, 8}, Address: netip.MustParseAddr("10.213.0.9")}, app == "cache"
	},
}

func compileOne(r api.FlowRule) Set {
	r.Name = "r"
	return Compile(map[string]api.FlowPolicySpec{"p": {Interface: api.InterfaceSelector{Name: "enp1s0"}, Rules: []api.FlowRule{r}}}, world)
}

func TestCompile(t *testing.T) {
	breakout := api.FlowRule{Match: api.FlowMatch{Source: "10.45.0.0/16", Destination: "203.0.113.10", Protocol: "tcp", DestinationPort: "443"}, To: &api.FlowTarget{App: "cache", Service: "s", Port: 8443}}
	inTunnel := breakout
	inTunnel.Match.Tunnel = &api.FlowTunnel{Kind: "gtpu"}
	for _, c := range []struct {
		what string
		rule api.FlowRule
		want []string // hook, what it is filed under, verbs
	}{
		{"drop of all", api.FlowRule{Drop: true}, []string{"2 3 drop"}},
		{"a protocol without a family", api.FlowRule{Match: api.FlowMatch{Protocol: "udp"}}, []string{"2 800 pass", "2 86dd pass"}},
		{"icmp", api.FlowRule{Match: api.FlowMatch{Protocol: "icmp"}}, []string{"2 800 pass"}},
		{"tags", api.FlowRule{Match: api.FlowMatch{VLAN: 7}, PopVLAN: true, PushVLAN: &api.FlowVLAN{ID: 8}, To: &api.FlowTarget{SwitchPort: "pf0vf1"}}, []string{"2 8100 pop push redirect:3"}},
		{"the order of actions", api.FlowRule{Police: &api.FlowPolice{KbitPerSecond: 1000}, Mirror: &api.FlowTarget{Interface: "other"}}, []string{"2 3 police mirror:4 pass"}},
		{"into vxlan", api.FlowRule{Encapsulate: &api.FlowTunnel{Kind: "vxlan", ID: 5, Destination: "192.0.2.2"}}, []string{"2 3 wrap redirect:5"}},
		{"out of vxlan", api.FlowRule{Match: api.FlowMatch{Tunnel: &api.FlowTunnel{Kind: "vxlan", ID: 5}}, To: &api.FlowTarget{Interface: "other"}}, []string{"5 3 unwrap redirect:4"}},
		{"into gtpu", api.FlowRule{Match: api.FlowMatch{Destination: "10.45.0.2"}, Encapsulate: &api.FlowTunnel{Kind: "gtpu", ID: 2, In: 1, Destination: "192.0.2.7"}}, []string{"2 800 redirect:6"}},
		{"to an app", breakout, []string{"9 800 answer answerport sum pass", "2 800 address sum redirect:9"}},
		{"to an app out of gtpu", inTunnel, []string{"9 800 answer answerport sum redirect:6", "6 800 header address sum redirect:9"}},
	} {
		set := compileOne(c.rule)
		var got []string
		for _, r := range set.Rules {
			got = append(got, describe(r))
		}
		if !slices.Equal(got, c.want) || len(set.States) != 0 {
			t.Errorf("%s: %q %v, want %q", c.what, got, set.States, c.want)
		}
		for _, r := range set.Rules {
			if _, err := r.options(0); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
	}
	if set := compileOne(api.FlowRule{Match: api.FlowMatch{Destination: "10.45.0.2"}, Encapsulate: &api.FlowTunnel{Kind: "gtpu", ID: 2, In: 1, Destination: "192.0.2.7"}}); len(set.Sessions) != 1 || set.Sessions[0].Subscriber != netip.MustParseAddr("10.45.0.2") {
		t.Errorf("sessions %v", set.Sessions)
	}
}

// What is missing is said, and no half of a rule stands.
func TestCompileWaits(t *testing.T) {
	app := api.FlowRule{Match: api.FlowMatch{Source: "10.45.0.0/16", Destination: "203.0.113.10", Protocol: "tcp", DestinationPort: "443"}, To: &api.FlowTarget{App: "gone", Service: "s"}}
	for _, c := range []struct {
		rule api.FlowRule
		say  string
	}{
		{app, "service s of app gone does not run"},
		{api.FlowRule{Mirror: &api.FlowTarget{Interface: "tap9"}}, "no interface tap9"},
		{api.FlowRule{Encapsulate: &api.FlowTunnel{Kind: "gre", Destination: "192.0.2.1"}}, "no interface for gre"},
		{api.FlowRule{Match: api.FlowMatch{Tunnel: &api.FlowTunnel{Kind: "gtpu"}}, To: &api.FlowTarget{Interface: "other"}}, "no Ethernet header"},
	} {
		set := compileOne(c.rule)
		if len(set.Rules) != 0 || len(set.States) != 1 || set.States[0].State != api.FlowWaiting || !strings.Contains(set.States[0].Why, c.say) {
			t.Errorf("%+v: %+v", set.Rules, set.States)
		}
	}
	set := Compile(map[string]api.FlowPolicySpec{"p": {Interface: api.InterfaceSelector{Name: "wlan*"}, Rules: []api.FlowRule{{Name: "r", Drop: true}}}}, world)
	if len(set.Rules) != 0 || len(set.States) != 1 || !strings.Contains(set.States[0].Why, "wlan*") {
		t.Errorf("%+v", set)
	}
}

// Policies come by priority, then by name; what a rule says makes its identity, where it stands
// among others does not.
func TestCompileOrder(t *testing.T) {
	rule := []api.FlowRule{{Name: "r", Drop: true}}
	at := api.InterfaceSelector{Name: "enp1s0"}
	policies := map[string]api.FlowPolicySpec{"c": {Interface: at, Priority: 5, Rules: rule}, "b": {Interface: at, Rules: rule}, "a": {Interface: at, Priority: 200, Rules: rule}}
	set := Compile(policies, world)
	if got := []string{set.Rules[0].Policy, set.Rules[1].Policy, set.Rules[2].Policy}; !slices.Equal(got, []string{"c", "b", "a"}) {
		t.Errorf("order %v", got)
	}
	was := set.Rules[1].ID()
	policies["a"] = api.FlowPolicySpec{Interface: at, Priority: 1, Rules: rule}
	if again := Compile(policies, world); again.Rules[2].ID() != was {
		t.Error("another policy's priority is another rule")
	}
	policies["b"] = api.FlowPolicySpec{Interface: at, Rules: []api.FlowRule{{Name: "r", Drop: true, Match: api.FlowMatch{VLAN: 3}}}}
	if again := Compile(policies, world); again.Rules[2].ID() == was {
		t.Error("another match is the same rule")
	}
}
