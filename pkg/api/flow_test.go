package api

import (
	"strings"
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

// flowText is a whole policy, which tests of refusals change in one place.
const flowText = `apiVersion: tributary/v1
kind: FlowPolicy
metadata: {name: access}
spec:
  interface: {name: enp*, switchPort: p0}
  rules:
    - name: breakout
      match: {source: 10.45.0.0/16, destination: 203.0.113.10, protocol: tcp, destinationPort: "443"}
      police: {kbitPerSecond: 100000}
      mirror: {interface: tap0}
      to: {app: cache, service: proxy, port: 8443}
    - name: tag
      match: {vlan: 100, protocol: udp, sourcePort: 1000-2000}
      popVLAN: true
      pushVLAN: {id: 200, priority: 3}
      to: {switchPort: pf0vf1}
    - name: tunnel
      match: {destination: 2001:db8::/48}
      encapsulate: {kind: vxlan, id: 55, source: 192.0.2.1, destination: 192.0.2.2}
    - name: subscriber
      match: {destination: 10.45.0.2}
      encapsulate: {kind: gtpu, id: 8193, in: 4097, destination: 192.0.2.7}
    - name: inside
      match: {tunnel: {kind: gtpu}, source: 10.45.0.2}
      drop: true
`

func TestFlowPolicy(t *testing.T) {
	objects, err := Decode([]byte(flowText))
	if err != nil || len(objects) != 1 {
		t.Fatalf("%v %v", objects, err)
	}
}

// Each fault is refused at its place, with what to do instead.
func TestFlowPolicyRefused(t *testing.T) {
	for _, c := range []struct{ old, new, at, say string }{
		{"{name: enp*, switchPort: p0}", "{}", "spec.interface", "stand nowhere"},
		{"name: enp*", `name: "enp["`, "spec.interface.name", "no interface's name"},
		{"p0}", "p 0}", "spec.interface.switchPort", "no port"},
		{"rules:", "direction: out\n  rules:", "spec.direction", "ingress"},
		{"rules:", "offload: hardware\n  rules:", "spec.offload", "required"},
		{"rules:", "priority: 1001\n  rules:", "spec.priority", "out of range"},
		{"rules:", "direction: egress\n  rules:", "spec.rules[0].to.app", "does not come to an app"},
		{"name: tag", "name: breakout", "spec.rules[1].name", "listed twice"},
		{"10.45.0.0/16", "10.45.0.1/16", "spec.rules[0].match.source", "neither"},
		{"10.45.0.0/16", "2001:db8::/48", "spec.rules[0].match.destination", "different families"},
		{"source: 10.45.0.0/16, ", "", "spec.rules[0].match.source", "whose traffic"},
		{"destination: 203.0.113.10", "destination: 203.0.113.0/24", "spec.rules[0].match.destination", "one IPv4 address"},
		{"protocol: tcp, ", "protocol: icmp, ", "spec.rules[0].match.destinationPort", "have ports"},
		{`"443"`, `"443-444"`, "spec.rules[0].match.destinationPort", "one port"},
		{`"443"`, `"0"`, "spec.rules[0].match.destinationPort", "neither"},
		{"protocol: udp", "protocol: dccp", "spec.rules[1].match.protocol", "no protocol"},
		{"kbitPerSecond: 100000", "burstBytes: 2000", "spec.rules[0].police", "one rate"},
		{"kbitPerSecond: 100000", "kbitPerSecond: 1", "spec.rules[0].police.kbitPerSecond", "out of range"},
		{"{interface: tap0}", "{interface: tap0, switchPort: p1}", "spec.rules[0].mirror", "2 targets"},
		{"{interface: tap0}", "{interface: a/b}", "spec.rules[0].mirror", "neither"},
		{"service: proxy, ", "", "spec.rules[0].to.service", "no service's name"},
		{"{vlan: 100, ", "{vlan: 4095, ", "spec.rules[1].match.vlan", "no VLAN"},
		{"{vlan: 100, ", "{", "spec.rules[1].popVLAN", "none to take away"},
		{"id: 200", "id: 0", "spec.rules[1].pushVLAN", "no tag"},
		{"to: {switchPort: pf0vf1}", "drop: true", "spec.rules[1].drop", "needs no tag"},
		{"kind: vxlan", "kind: ipip", "spec.rules[2].encapsulate.kind", "no kind of tunnel"},
		{"id: 55", "id: 16777216", "spec.rules[2].encapsulate.id", "out of range"},
		{", destination: 192.0.2.2", "", "spec.rules[2].encapsulate.destination", "leads nowhere"},
		{"192.0.2.2}", "'2001:db8::1'}", "spec.rules[2].encapsulate.destination", "different families"},
		{"in: 4097, ", "", "spec.rules[3].encapsulate.in", "TEID"},
		{"destination: 10.45.0.2}", "destination: 10.45.0.0/24}", "spec.rules[3].match.destination", "one subscriber"},
		{"tunnel: {kind: gtpu}", "tunnel: {kind: gtpu, id: 4}", "spec.rules[4].match.tunnel", "subscriber's address"},
		{"tunnel: {kind: gtpu}", "vlan: 5, tunnel: {kind: gtpu}", "spec.rules[4].match.tunnel", "no Ethernet"},
		{"192.0.2.7}", "'2001:db8::7'}", "spec.rules[3].encapsulate.destination", "IPv4 alone"},
		{"drop: true", "drop: true\n      to: {interface: x}", "spec.rules[4]", "one way"},
	} {
		if !strings.Contains(flowText, c.old) {
			t.Fatalf("the policy has no %q", c.old)
		}
		_, err := Decode([]byte(strings.Replace(flowText, c.old, c.new, 1)))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if CodeOf(err) != Invalid || !strings.Contains(text, c.at+": ") || !strings.Contains(text, c.say) || !strings.Contains(text, "(") {
			t.Errorf("%q in place of %q: %v; wanted %q at %s", c.new, c.old, err, c.say, c.at)
		}
	}
}

// Without a check its refusal is missed.
func TestFlowPolicyChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	var checks []mutation.Check
	for file, test := range map[string]string{"flow.go": "^TestFlowPolicyRefused$", "slices.go": "^TestUncordonRefused$",
		"claim.go": "^TestOneCardByMPS$|^TestPartsOfAnotherWay$", "accelerator.go": "^TestPoliciesInVain$"} {
		checks = append(checks, mutation.Marked(t, test, file)...)
	}
	mutation.Prove(t, checks...)
}
