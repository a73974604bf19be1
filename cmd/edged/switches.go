package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network/switchdev"
)

// openSwitches makes the room that sets up the switches inside network cards, beside the one that
// divides cards, which gives functions away while a switch changes.
func (b *box) openSwitches(cards []api.FunctionPolicy) {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if !slices.ContainsFunc(cards, func(p api.FunctionPolicy) bool { return p.Switch != nil }) {
		cards = nil // the hardware profile says nothing of switches
	}
	b.switches = switchdev.NewKeeper(switchdev.Config{
		Open: func() (switchdev.Machine, error) { return switchdev.Open() }, Notes: b.state.Blob("switches"), Profile: cards, Boot: strings.TrimSpace(string(boot)),
		Now: time.Now, Log: b.log, Drain: b.drainFrom,
		Users: func(card string) map[string][]string {
			pci, ok := strings.CutPrefix(card, "pci/")
			if !ok {
				return nil
			}
			out := map[string][]string{}
			for index, users := range b.functions.Users(pci) {
				out[fmt.Sprintf("pf%svf%d", pci[len(pci)-1:], index)] = users
			}
			return out
		},
		Clear: func(card string, away bool) bool {
			pci, ok := strings.CutPrefix(card, "pci/")
			return !ok || b.functions.Clear(pci, away)
		},
	})
}

// setNetwork puts policies of network cards in force.
func (b *box) setNetwork(policies []api.FunctionPolicy) {
	b.switches.SetPolicies(policies)
	b.functions.SetPolicies(policies)
}

// drainFrom ends a service that is in the way of a change of network cards.
func (b *box) drainFrom(ctx context.Context, user, reason string) error {
	app, service, _ := strings.Cut(user, "/")
	w := b.running.Load()
	if w == nil {
		return api.Errorf(api.Unavailable, "apps are not looked after yet")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return w.Drain(ctx, app, service, reason)
}
