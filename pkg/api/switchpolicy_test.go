package api

import (
	"strings"
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

// switchText is a whole policy, which tests of refusals change in one place.
const switchText = `apiVersion: tributary/v1
kind: NetworkPolicy
metadata: {name: switches}
spec:
  selector: {matchLabels: {role: edge}}
  functions:
    - match: {driver: mlx5_core}
      virtualFunctions: 4
      change: drain
      switch:
        mode: switchdev
        inline: transport
        encap: basic
        groups:
          - {name: gold, minRate: 100, maxRate: 1000}
        ports:
          - {port: pf0vf1, mac: "02:00:00:00:00:01", roce: false, maxRate: 500, group: gold}
          - {port: pf0sf88, state: inactive, roce: true}
          - {port: c1pf0vf3, minRate: 10, maxRate: 20}
`

func TestSwitchPolicyRefused(t *testing.T) {
	if objects, err := Decode([]byte(switchText)); err != nil || len(objects) != 1 {
		t.Fatalf("%v %v", objects, err)
	}
	for _, c := range []struct{ from, to, field string }{
		{"mode: switchdev", "mode: bridge", "switch.mode"},
		{"mode: switchdev", "mode: legacy", "switch.mode"},
		{"inline: transport", "inline: all", "switch.inline"},
		{"name: gold, minRate", "name: Gold, minRate", "groups[0].name"},
		{"minRate: 100", "minRate: 2000", "groups[0].minRate"},
		{"maxRate: 500", "maxRate: -1", "ports[0].maxRate"},
		{"port: pf0sf88", "port: pf0vf1", "ports[1].port"},
		{"port: pf0vf1", "port: eth0", "ports[0].port"},
		{`"02:00:00:00:00:01"`, `"01:00:00:00:00:01"`, "ports[0].mac"},
		{"roce: true", "migratable: true", "ports[1]"},
		{"roce: true", `mac: "02:00:00:00:00:01"`, "ports[1].mac"},
		{"minRate: 10, maxRate: 20", "state: active", "ports[2].state"},
		{"group: gold", "group: tin", "ports[0].group"},
	} {
		text := strings.Replace(switchText, c.from, c.to, 1)
		if text == switchText {
			t.Fatalf("%s is not there", c.from)
		}
		if _, err := Decode([]byte(text)); err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v does not name %s", c.to, err, c.field)
		}
	}
}

// Without a check its refusal is missed.
func TestSwitchPolicyChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	mutation.Prove(t, mutation.Marked(t, "^TestSwitchPolicyRefused$", "switchpolicy.go")...)
}
