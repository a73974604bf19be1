package accel

import (
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// TestRoom holds what a card is said to have room for against the planner, in any state: so
// many slices of a profile can be had, and not one more. Only a card that is cut says so.
func TestRoom(t *testing.T) {
	worlds := map[string]*world{"a100": told(t, "a100"), "h100": told(t, "h100")}
	rapid.Check(t, func(r *rapid.T) {
		w := worlds[rapid.SampledFrom([]string{"a100", "h100"}).Draw(r, "card")]
		m := w.mig(anyState(r, w))
		room := map[string]int{}
		for _, one := range m.Room() {
			room[one.Profile.Name] = one.Count
		}
		for _, p := range m.Profiles {
			var wants []Want
			for range room[p.Name] {
				wants = append(wants, Want{Profile: p.Name})
			}
			if _, err := PlanMIG(m, wants, nil); err != nil {
				r.Fatalf("there is said to be room for %d × %s: %v", room[p.Name], p.Name, err)
			}
			if _, err := PlanMIG(m, append(wants, Want{Profile: p.Name}), nil); err == nil {
				r.Fatalf("there is room for more than %d × %s", room[p.Name], p.Name)
			}
		}
		a := api.Accelerator{ID: "GPU-0", Sharing: api.Sharing{Mode: api.SharingMIG}, MIG: m}
		if got := Room(&a); len(got) != len(room) {
			r.Fatalf("%+v of %v", got, room)
		}
		a.Findings = []api.AcceleratorFinding{{Warning: api.Warning{Message: "it failed"}, Action: string(ActCordon)}}
		if got := Room(&a); len(got) > 0 {
			r.Fatalf("a cordoned card has room for %+v", got)
		}
		a.Findings, a.Sharing.Mode = nil, api.SharingExclusive
		if got := Room(&a); len(got) > 0 {
			r.Fatalf("a card that is given whole has room for %+v", got)
		}
	})
}
