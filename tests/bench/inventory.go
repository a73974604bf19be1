package main

import (
	"context"
	"fmt"
	"os"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/hardware/hwtest"
	"tributary.dev/tributary/pkg/report"
)

// benchInventory counts the bytes by which a box tells what it is made of: keys and values
// of reported state, before the link numbers and packs them. The box is a recorded guest with
// an igb and its virtual functions.
func benchInventory(context.Context) ([]Figure, error) {
	raw, err := os.ReadFile("pkg/edge/hardware/testdata/guest-igb.json")
	if err != nil {
		return nil, err
	}
	recording, err := hwtest.Read(raw)
	if err != nil {
		return nil, err
	}
	box := hardware.Look(recording.Source())
	first, err := report.SplitInventory(&box)
	if err != nil {
		return nil, err
	}
	if len(box.NetDevices) == 0 {
		return nil, fmt.Errorf("the recording has no network card")
	}
	link := &box.NetDevices[0].Link
	link.State, link.Speed = map[bool]string{true: api.LinkDown, false: api.LinkUp}[link.State == api.LinkUp], 0
	second, err := report.SplitInventory(&box)
	if err != nil {
		return nil, err
	}
	uses := make([]api.DeviceUse, 64)
	for n := range uses {
		uses[n] = api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimCPU, ID: fmt.Sprint("cpu", n), NUMA: n / 32, Units: 1, Facts: map[string]string{"isolated": "true"}}}
	}
	free, err := report.SplitClaims(uses)
	if err != nil {
		return nil, err
	}
	for n := range 4 {
		uses[n].Holders = []api.DeviceHolder{{App: "ran", Service: "du", Units: 1}}
	}
	held, err := report.SplitClaims(uses)
	if err != nil {
		return nil, err
	}
	whole := plain("inventory.first", float64(differing(nil, first)), "B")
	whole.Note = fmt.Sprintf("%d entries of %d PCI functions and %d interfaces", len(first), len(box.PCI), len(box.NetDevices))
	return []Figure{whole, plain("inventory.change", float64(differing(first, second)), "B"), plain("inventory.claims", float64(differing(nil, free)), "B"), plain("inventory.claimed", float64(differing(free, held)), "B")}, nil
}

// differing are the bytes of entries that are not as before.
func differing(before, now map[string][]byte) (n int) {
	for key, value := range now {
		if old, was := before[key]; !was || string(old) != string(value) {
			n += len(key) + len(value)
		}
	}
	return n
}
