package fleet

import (
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// A fleet's flow policies go to its devices as they are written; a change of one concerns
// these alone, and what is taken away goes.
func TestFlowPolicies(t *testing.T) {
	c := newCore(t, "")
	in, out := c.device(1, map[string]string{"role": "field"}), c.device(2, map[string]string{"role": "other"})
	c.put(api.KindFleet, "field", nil, api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "field"}}, FlowPolicies: []string{"access", "ghost"}}, nil)
	spec := api.FlowPolicySpec{Interface: api.InterfaceSelector{Name: "enp*"}, Rules: []api.FlowRule{{Name: "all", Drop: true}}}
	c.put(api.KindFlowPolicy, "access", nil, spec, nil)
	c.run()
	key := manifest.PrefixFlow + "access"
	c.until("the policy at its fleet's device alone", func() bool { return c.has(in, key)() && c.has(out)() })
	spec.Rules[0].Match.VLAN = 7
	c.put(api.KindFlowPolicy, "access", nil, spec, nil)
	c.until("the changed policy", func() bool {
		var got api.FlowPolicySpec
		err := decMode.Unmarshal(c.published[in].Manifest.Items[key].Body, &got)
		return err == nil && len(got.Rules) == 1 && got.Rules[0].Match.VLAN == 7
	})
	if err := c.db.Delete(t.Context(), api.Key{Tenant: "default", Kind: api.KindFlowPolicy, Name: "access"}, 0); err != nil {
		t.Fatal(err)
	}
	c.until("no policy", c.has(in))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.times[out] != 1 {
		t.Errorf("the other device was rendered %d times", c.times[out])
	}
}
