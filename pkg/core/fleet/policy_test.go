package fleet

import (
	"encoding/json"
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// A device gets the policies that select it, in the order of their names, and whom a
// change concerns is rendered anew.
func TestPolicies(t *testing.T) {
	w := newWorlds()
	tn := w.tenant("default")
	du := &entry{Device: Device{Name: "du", Labels: map[string]string{"role": "du"}}}
	cu := &entry{Device: Device{Name: "cu", Labels: map[string]string{"role": "cu"}}}
	tn.devices["du"], tn.devices["cu"] = du, cu
	set := func(name, role string, n int) dirty {
		t.Helper()
		spec, err := json.Marshal(api.NetworkPolicySpec{Selector: api.Selector{MatchLabels: map[string]string{"role": role}}, Functions: []api.FunctionPolicy{{Match: api.FunctionMatch{Driver: name}, VirtualFunctions: &n}}})
		if err != nil {
			t.Fatal(err)
		}
		d := dirty{}
		if err := w.set(&api.Object{Kind: api.KindNetworkPolicy, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: spec}, d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := set("b", "du", 2); !d[du] || d[cu] {
		t.Errorf("a policy of du concerns %v", d)
	}
	if d := set("b", "du", 2); len(d) != 0 {
		t.Errorf("the same again concerns %v", d)
	}
	set("a", "du", 4)
	var got []api.FunctionPolicy
	if err := decMode.Unmarshal(Desire(&du.Device, &tn.World, nil)[manifest.KeyNetwork].Body, &got); err != nil {
		t.Fatal(err)
	}
	if names := []string{got[0].Match.Driver, got[1].Match.Driver}; len(got) != 2 || !slices.Equal(names, []string{"a", "b"}) || *got[0].VirtualFunctions != 4 {
		t.Errorf("du gets %+v", got)
	}
	if _, has := Desire(&cu.Device, &tn.World, nil)[manifest.KeyNetwork]; has {
		t.Error("cu gets a policy of du")
	}
	if d := set("b", "cu", 2); !d[du] || !d[cu] {
		t.Errorf("a policy that moves concerns %v", d)
	}
	d := dirty{}
	w.unset(api.Key{Tenant: "default", Kind: api.KindNetworkPolicy, Name: "a"}, d)
	if _, has := Desire(&du.Device, &tn.World, nil)[manifest.KeyNetwork]; has || !d[du] {
		t.Error("a policy that is gone holds")
	}
}
