package main

import (
	"context"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/claims"
	"tributary.dev/tributary/pkg/edge/compute"
	"tributary.dev/tributary/pkg/edge/hardware"
)

// openHardware looks at what the box is made of, and opens the book of who holds what of it.
func (b *box) openHardware(context.Context) (err error) {
	source := hardware.Host(b.o.data)
	look := func() api.Inventory { return b.lookOver(hardware.Look(source)) }
	if err := b.openGPUs(look); err != nil {
		return err
	}
	b.keeper = hardware.NewKeeper(look, hardware.Hear, b.log)
	known := func() *api.Inventory {
		if inv := b.keeper.Inventory(); inv != nil {
			return inv
		}
		inv := look()
		return &inv
	}
	if err := b.openFunctions(); err != nil {
		return err
	}
	b.claims, err = claims.Open(b.state, &claims.Specs{Dir: b.o.cdi}, b.log, compute.Pool{Inventory: known}, b.functions, b.gpus)
	return err
}
