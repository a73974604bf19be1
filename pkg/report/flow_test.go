package report

import (
	"reflect"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// How the rules of a policy stand is one entry for each policy, and comes back as it was told.
func TestFlows(t *testing.T) {
	in := &api.Inventory{Flows: []api.FlowState{{Policy: "a", Rule: "x", Interface: "enp1s0", State: api.FlowInHardware, Packets: 7, Bytes: 700, Hardware: 7},
		{Policy: "a", Rule: "y", State: api.FlowWaiting, Why: "there is no interface tap0"}, {Policy: "b", Rule: "x", Interface: "enp1s0", State: api.FlowInSoftware}}}
	entries, err := SplitInventory(in)
	if err != nil || entries["hw/flow/a"] == nil || entries["hw/flow/b"] == nil {
		t.Fatalf("%v %v", entries, err)
	}
	out, bad := JoinInventory(entries)
	if len(bad) != 0 || !reflect.DeepEqual(out.Flows, in.Flows) {
		t.Errorf("%+v %v", out.Flows, bad)
	}
	entries["hw/flow/b"] = []byte{0xff}
	if _, bad := JoinInventory(entries); len(bad) != 1 {
		t.Errorf("damaged: %v", bad)
	}
}
