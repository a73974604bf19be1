package main

import (
	"context"
	"io"
	"net/http"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network/flow"
	"tributary.dev/tributary/pkg/identity"
)

// flows keeps the rules for packets, and tells of them with the inventory.
type flows struct {
	*flow.Keeper
	trial *flow.Trial
	news  chan struct{} // the inventory, or how the rules stand, is another
}

// openFlows makes the room of flow policies. It changes nothing before the manifest has said
// which hold: rules that an earlier run left stand until then.
func (b *box) openFlows(context.Context) error {
	b.flows = flows{news: make(chan struct{}, 1), Keeper: flow.NewKeeper(flow.Config{Notes: b.state.Blob("flows"), Now: b.clock.Now, Log: b.log, Endpoint: b.endpoint})}
	b.flows.trial = flow.NewTrial(flow.TrialConfig{Set: b.flows.Keeper.Set, Reached: b.reachesCore, Notes: b.state.Blob("flows-tried"), Now: time.Now, Log: b.log})
	return nil
}

// Set puts policies in force, on trial.
func (f flows) Set(policies map[string]api.FlowPolicySpec) { f.trial.Set(policies) }

// Warnings are of the rules, and of policies that were taken back.
func (f flows) Warnings() []api.Warning {
	return slices.Concat(f.trial.Warnings(), f.Keeper.Warnings())
}

// reachesCore asks for what only the core can answer.
func (b *box) reachesCore(ctx context.Context) bool {
	root, client, err := b.parents.Endpoint()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, root.JoinPath(identity.PathTrust).String(), nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection can be used again
	return err == nil && resp.StatusCode == http.StatusOK
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
	go func() { _ = b.flows.trial.Run(ctx) }() // it ends with ctx, and never else
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
