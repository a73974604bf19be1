package main

import (
	"context"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network/flow"
)

// flows keeps the rules for packets, and tells of them with the inventory.
type flows struct {
	*flow.Keeper
	news chan struct{} // the inventory, or how the rules stand, is another
}

// openFlows makes the room of flow policies. It changes nothing before the manifest has said
// which hold: rules that an earlier run left stand until then.
func (b *box) openFlows(context.Context) error {
	b.flows = flows{news: make(chan struct{}, 1), Keeper: flow.NewKeeper(flow.Config{Notes: b.state.Blob("flows"), Now: b.clock.Now, Log: b.log, Endpoint: b.endpoint})}
	return nil
}

// endpoint finds the container that serves an app's service.
func (b *box) endpoint(app, service string) (e flow.Endpoint, ok bool) {
	w := b.running.Load()
	if w == nil {
		return e, false
	}
	cable, addr, err := w.Cable(app, service)
	if err != nil || len(cable.MAC) != len(e.MAC) || len(cable.Gateway) != len(e.Gateway) {
		return e, false
	}
	e.Link, e.Address = cable.Host, addr
	copy(e.MAC[:], cable.MAC)
	copy(e.Gateway[:], cable.Gateway)
	return e, true
}

// keepFlows keeps the rules. A box whose kernel cannot have any goes on without, and says so.
func (b *box) keepFlows(ctx context.Context) error {
	go b.tellFlows(ctx)
	if err := b.flows.Run(ctx); err != nil && ctx.Err() == nil {
		b.log.Warn("flow policies are not followed", "err", err)
	}
	<-ctx.Done()
	return nil
}

func (b *box) tellFlows(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.keeper.Changed():
		case <-b.flows.Changed():
		case <-b.switches.Changed():
		}
		select {
		case b.flows.news <- struct{}{}:
		default:
		}
	}
}

// inventory is what the box is made of, how its cards are by their own word, and how the rules for
// packets stand there.
func (b *box) inventory() *api.Inventory {
	i := b.keeper.Inventory()
	if i == nil {
		return nil
	}
	with := *i
	with.Flows, with.Cards = b.flows.States(), b.switches.Health()
	return &with
}
