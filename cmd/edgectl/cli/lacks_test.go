package cli

import (
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestWhatAnAppMissesWhere(t *testing.T) {
	a := &app{fleets: []fleetView{
		{name: "ran", tenant: "default", status: api.FleetStatus{Placed: []api.PlacementStatus{{App: "du", Replicas: 3, Placed: 1, Message: "d2: 2 × cpu is wanted; this box has no cpu"}, {App: "cu", Replicas: 1, Placed: 1}}}},
		{name: "all", tenant: "default", status: api.FleetStatus{Lacking: []api.Lack{{App: "du", Message: "du: 1 × vf is wanted; this box has no vf", Count: 7, Devices: []string{"d3", "d4"}}}}},
		{name: "other", tenant: "acme", status: api.FleetStatus{Lacking: []api.Lack{{App: "du", Message: "not ours", Count: 1, Devices: []string{"x"}}}}},
	}}
	want := []string{"ran: on 1 of 3 devices: d2: 2 × cpu is wanted; this box has no cpu", "all: d3, d4 and 5 more: du: 1 × vf is wanted; this box has no vf"}
	if got := a.missingOf("default", "du"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := a.missingOf("default", "cu"); got != nil {
		t.Errorf("%q", got)
	}
	if got := capacityText([]api.Capacity{{Name: "cpu", Total: 6, Held: 2}, {Name: "hugepages-2M", Total: 512}}); got != "cpu 2/6, hugepages-2M 0/512" {
		t.Error(got)
	}
}
