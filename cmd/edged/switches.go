package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network/switchdev"
)

// openSwitches makes the room that sets up the switches inside network cards, beside the one that
// divides cards, which gives functions away while a switch changes.
func (b *box) openSwitches() {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	b.switches = switchdev.NewKeeper(switchdev.Config{
		Open: func() (switchdev.Machine, error) { return switchdev.Open() }, Notes: b.state.Blob("switches"), Profile: profileSwitches(), Boot: strings.TrimSpace(string(boot)),
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

// profileSwitches are what the image's hardware profile says of them.
func profileSwitches() (out []api.FunctionPolicy) {
	for _, p := range profileCards() {
		if p.Switch != nil {
			return profileCards()
		}
	}
	return nil
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
