package sriov

import (
	"fmt"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// Functions go while a card's switch changes, unless somebody has one, and come again as they were
// wanted; on a card that no policy speaks of, as they were.
func TestClear(t *testing.T) {
	mc, away := &machine{model: newModel(2, 1)}, map[string]string{}
	mc.make(&mc.state.Cards[1], 3)
	m := manager(t, mc, &memory{}, "one", func(c *Config) {
		c.Away = func() (map[string]string, error) { return away, nil }
		c.Holders = func() map[string][]string { return map[string][]string{"0000:01:10.1": {"du/phy"}} }
	})
	m.SetPolicies([]api.FunctionPolicy{{Match: api.FunctionMatch{Name: "eth0"}, VirtualFunctions: count(2), Change: api.ChangeDrain}})
	m.Settle(t.Context())
	for _, card := range []string{"0000:01:00.0", "0000:02:00.0"} {
		n := len(mc.card(card).Functions)
		if m.Clear(card, true) {
			t.Errorf("%s: none is left at once", card)
		}
		m.Settle(t.Context())
		m.Settle(t.Context())
		if !m.Clear(card, true) || len(mc.card(card).Functions) != 0 {
			t.Errorf("%s: %d are left", card, len(mc.card(card).Functions))
		}
		m.Clear(card, false)
		m.Settle(t.Context())
		if len(mc.card(card).Functions) != n || n == 0 {
			t.Errorf("%s: %d come again of %d", card, len(mc.card(card).Functions), n)
		}
	}
	away["0000:01:10.1"] = "du"
	if got := fmt.Sprint(m.Users("0000:01:00.0")); got != "map[1:[du/phy]]" {
		t.Errorf("users %s", got)
	}
	m.Clear("0000:01:00.0", true)
	m.Settle(t.Context())
	if m.Clear("0000:01:00.0", true) || len(mc.card("0000:01:00.0").Functions) != 2 {
		t.Error("a function goes that a container has")
	}
}
