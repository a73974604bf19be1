package api

import (
	"strings"
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

func TestBondsRefused(t *testing.T) {
	whole := func() *NetworkSettings {
		return &NetworkSettings{Bonds: []Bond{{Name: "bond0", Ports: []UplinkMatch{{Name: "enp1s0f*"}}},
			{Name: "up", Mode: BondLACP, Hash: "layer3+4", LACPRate: "fast", MinPorts: 2, Ports: []UplinkMatch{{MAC: "02:00:00:00:00:01"}, {Driver: "ice"}}}}}
	}
	if err := whole().Validate(""); err != nil {
		t.Fatal(err)
	}
	for says, change := range map[string]func(a, b *Bond){
		"bonds[1].name":     func(_, b *Bond) { b.Name = "bond0" },
		"bonds[0].name":     func(a, _ *Bond) { a.Name = "a/b" },
		"bonds[0].mode":     func(a, _ *Bond) { a.Mode = "balance-rr" },
		"those of 802.3ad":  func(a, _ *Bond) { a.Hash = "layer2" },
		"bonds[0].ports":    func(a, _ *Bond) { a.Ports = nil },
		"bonds[1].ports[1]": func(_, b *Bond) { b.Ports[1] = UplinkMatch{} },
		"bonds[1].hash":     func(_, b *Bond) { b.Hash = "encap2+3" },
		"bonds[1].lacpRate": func(_, b *Bond) { b.LACPRate = "often" },
		"bonds[1].minPorts": func(_, b *Bond) { b.MinPorts = -1 },
	} {
		s := whole()
		change(&s.Bonds[0], &s.Bonds[1])
		if err := s.Validate(""); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	many := &NetworkSettings{Bonds: make([]Bond, maxBonds+1)}
	if err := many.Validate(""); err == nil || !strings.Contains(err.Error(), "more than 8") {
		t.Errorf("%v", err)
	}
}

// Without a check its refusal is missed.
func TestBondChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	mutation.Prove(t, mutation.Marked(t, "^TestBondsRefused$", "bonds.go")...)
}
