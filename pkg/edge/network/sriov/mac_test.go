package sriov

import (
	"fmt"
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
)

// A function that had no address has none when nobody asks for one any more, and one of its driver's own is left alone.
func TestNoAddressComesBack(t *testing.T) {
	for _, own := range []bool{false, true} {
		b := &box{model: newModel(1, 1), found: map[string]Found{}, cut: -1}
		b.bare, b.own = true, false
		b.make(&b.state.Cards[0], 2)
		b.own = own
		policy := []api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, Default: api.VirtualPolicy{MAC: "02:00:00:00:00:01"}}}
		b.settle(t, policy)
		policy[0].Default.MAC = "02:00:00:00:00:02"
		b.settle(t, policy)
		if got := b.state.Cards[0].Functions[0].MAC; got != "02:00:00:00:00:02" {
			t.Errorf("the policy's address is not set: %q", got)
		}
		b.settle(t, nil)
		want := map[bool]string{true: "0a:00:00:00:00:00"}[own]
		if got := b.state.Cards[0].Functions[0].MAC; got != want || len(b.found) > 0 {
			t.Errorf("it had no address and has %q, not %q; written down %+v", got, want, b.found)
		}
	}
	// What somebody else gave it meanwhile is theirs.
	b := &box{model: newModel(1, 1), found: map[string]Found{}, cut: -1}
	b.bare = true
	b.make(&b.state.Cards[0], 1)
	policy := []api.FunctionPolicy{{Match: api.FunctionMatch{Driver: "igb"}, Default: api.VirtualPolicy{MAC: "02:00:00:00:00:01"}}}
	b.settle(t, policy)
	b.state.Cards[0].Functions[0].MAC = "02:00:00:00:00:77"
	b.settle(t, nil)
	if got := b.state.Cards[0].Functions[0].MAC; got != "02:00:00:00:00:77" {
		t.Errorf("somebody else's address became %q", got)
	}
	steps := Plan(Input{State: State{Cards: []Card{{PCI: "c", Name: "eth0", Driver: "igb", Up: true, Functions: []Function{{Index: 3, PCI: "f"}}}}}, Boot: "one", Policies: policy,
		Found: map[string]Found{"c": {Boot: "one", First: []Function{{Index: 3, PCI: "f"}}, Base: []Function{{Index: 3, PCI: "f"}}, SetUp: true}}}).Steps
	if i := slices.IndexFunc(steps, func(s Step) bool {
		return s.Op == Remember && fmt.Sprint(s.Found.Addressed) == "map[3:[02:00:00:00:00:01]]"
	}); i != 0 || len(steps) != 1 {
		t.Errorf("what is to be taken back is not written down before all else: %+v", steps)
	}
}

// Without what takes the address away the test fails.
func TestAddressesCount(t *testing.T) {
	mutation.Prove(t,
		mutation.Check{Name: "taken away", Test: "^TestNoAddressComesBack$", File: "plan.go", From: `if want.MAC == "" && slices.Contains(found.Addressed[f.Index], f.MAC) {`, To: `if want.MAC == "" && slices.Contains(found.Addressed[f.Index], f.MAC) && !GONE {`, Says: "it had no address"})
}
