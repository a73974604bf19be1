package api

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

const policyText = `
apiVersion: tributary.dev/v1
kind: NetworkPolicy
metadata: {name: fronthaul}
spec:
  selector: {matchLabels: {role: du}}
  functions:
    - match: {driver: ice, name: "enp59s0f*"}
      virtualFunctions: 8
      change: drain
      mtu: 9000
      default: {mac: stable, vlan: 100, qos: 5, spoofCheck: true, maxRate: 5000}
      virtual:
        - {index: 0, set: {mac: "02:00:00:00:00:01", trust: true, vlan: 0}}
        - {index: 7, set: {driver: vfio-pci}}
`

func policyOf(t *testing.T, text string) (*NetworkPolicySpec, error) {
	t.Helper()
	objects, err := Decode([]byte(strings.Replace(text, "tributary.dev/v1", Version, 1)))
	if err != nil {
		return nil, err
	}
	var spec NetworkPolicySpec
	if err := json.Unmarshal(objects[0].Spec, &spec); err != nil {
		t.Fatal(err)
	}
	return &spec, nil
}

func TestNetworkPolicy(t *testing.T) {
	s, err := policyOf(t, policyText)
	if err != nil {
		t.Fatal(err)
	}
	p := &s.Functions[0]
	if v := p.For(0); v.MAC != "02:00:00:00:00:01" || *v.VLAN != 0 || v.QoS != 0 || !*v.Trust || !*v.SpoofCheck || *v.MaxRate != 5000 {
		t.Errorf("function 0: %+v", v)
	}
	if v := p.For(7); v.MAC != MACStable || *v.VLAN != 100 || v.QoS != 5 || v.Trust != nil || v.Driver != DriverVFIO {
		t.Errorf("function 7: %+v", v)
	}
	for _, c := range []struct {
		pci, name, driver, id string
		want                  bool
	}{{"0000:3b:00.0", "enp59s0f0", "ice", "8086:1592", true}, {"0000:3b:00.0", "enp60s0f0", "ice", "8086:1592", false}, {"0000:3b:00.0", "enp59s0f0", "i40e", "8086:1592", false}} {
		if got := p.Match.Fits(c.pci, c.name, c.driver, c.id); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if (&FunctionMatch{}).Fits("0000:3b:00.0", "x", "ice", "8086:1592") {
		t.Error("a match that says nothing fits")
	}
}

// Each fault is told with its place and what to do.
func TestNetworkPolicyRefuses(t *testing.T) {
	for _, c := range []struct{ from, to, field, words string }{
		{"matchLabels: {role: du}", "", "spec.selector", "picks no device"},
		{`{driver: ice, name: "enp59s0f*"}`, "{}", "spec.functions[0].match", "says of no card"},
		{"driver: ice", `pci: "3b:00"`, "spec.functions[0].match.pci", "is none"},
		{"driver: ice", `id: "ice"`, "spec.functions[0].match.id", "is none"},
		{`"enp59s0f*"`, `"enp["`, "spec.functions[0].match.name", "is not a pattern"},
		{"virtualFunctions: 8", "virtualFunctions: 5000", "spec.functions[0].virtualFunctions", "cannot be"},
		{"virtualFunctions: 8", "virtualFunctions: -1", "spec.functions[0].virtualFunctions", "cannot be"},
		{"virtualFunctions: 8", "virtualFunctions: 7", "spec.functions[0].virtual[1].index", "none has the number 7"},
		{"index: 7", "index: 0", "spec.functions[0].virtual[1].index", "twice"},
		{"change: drain", "change: kill", "spec.functions[0].change", "not a way"},
		{"mtu: 9000", "mtu: 20", "spec.functions[0].mtu", "no MTU"},
		{"mac: stable", `mac: "02:00:00:00:00:02"`, "spec.functions[0].default.mac", "all functions"},
		{`"02:00:00:00:00:01"`, `"03:00:00:00:00:01"`, "spec.functions[0].virtual[0].set.mac", "no address"},
		{"driver: vfio-pci", `mac: "02:00:00:00:00:01"`, "spec.functions[0].virtual[1].set.mac", "another function's"},
		{"vlan: 100", "vlan: 4095", "spec.functions[0].default.vlan", "not a VLAN"},
		{"vlan: 100, ", "", "spec.functions[0].default", "parts of a VLAN's tag"},
		{"qos: 5", "qos: 8", "spec.functions[0].default.qos", "not a priority"},
		{"qos: 5", "protocol: QinQ", "spec.functions[0].default.protocol", "protocol of VLANs"},
		{"maxRate: 5000", "maxRate: 5000, minRate: 6000", "spec.functions[0].default.minRate", "exclude"},
		{"maxRate: 5000", "link: up", "spec.functions[0].default.link", "state of a link"},
		{"maxRate: 5000", "driver: dpdk", "spec.functions[0].default.driver", "given to"},
		{"driver: vfio-pci", "driver: vfio-pci, rdma: true", "spec.functions[0].virtual[1].set.rdma", "no RDMA"},
		{"maxRate: 5000", "rate: 5", "spec.functions[0].default.rate", "rate"},
	} {
		text := strings.Replace(policyText, c.from, c.to, 1)
		if text == policyText {
			t.Fatalf("%q is not in the text", c.from)
		}
		_, err := policyOf(t, text)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s in place of %s: %v", c.to, c.from, err)
		}
	}
}
