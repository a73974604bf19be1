package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network/sriov"
)

// openFunctions makes the room that divides network cards, before the book of claims, which
// offers their functions.
func (b *box) openFunctions() (err error) {
	cards := profileCards()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	b.functions, err = sriov.New(sriov.Config{
		Machine: sriov.Kernel{}, Store: b.state, Profile: cards, Boot: strings.TrimSpace(string(boot)), Now: time.Now, Log: b.log,
		Holders: func() map[string][]string {
			out := map[string][]string{}
			if b.claims == nil {
				return out
			}
			for _, u := range b.claims.Uses() {
				if u.Class != api.ClaimVF {
					continue
				}
				for _, h := range u.Holders {
					out[u.ID] = append(out[u.ID], h.App+"/"+h.Service)
				}
			}
			return out
		},
		Running: func(user string) (runs, known bool) {
			app, service, _ := strings.Cut(user, "/")
			w := b.running.Load()
			if w == nil {
				return false, false
			}
			return w.Runs(app, service)
		},
		Away: func() (map[string]string, error) {
			if w := b.running.Load(); w != nil {
				return w.Links().Away()
			}
			return nil, nil
		},
		Recover: func() error {
			if w := b.running.Load(); w != nil {
				return w.Links().Recover()
			}
			return nil
		},
		Drain: b.drainFrom,
	})
	b.openSwitches(cards)
	return err
}

// settleFunctions divides the cards as they were last wanted, before apps start that hold
// functions: after a reboot there are none. A switch's mode comes before the functions.
func (b *box) settleFunctions(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	b.switches.Begin(ctx)
	b.functions.Settle(ctx)
}

// profileCards are what the image's hardware profile says of network cards. It names
// families of drivers: a card that can have fewer functions has those.
func profileCards() (out []api.FunctionPolicy) {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil {
		return nil // no image of ours runs
	}
	for _, n := range p.NICs {
		if n.VirtualFunctions <= 0 && !n.Switchdev {
			continue
		}
		for _, driver := range slices.Compact(slices.Sorted(slices.Values(n.Drivers))) {
			p := api.FunctionPolicy{Match: api.FunctionMatch{Driver: driver}, UpTo: true, Default: api.VirtualPolicy{MAC: api.MACStable}}
			if number := int(n.VirtualFunctions); number > 0 {
				p.VirtualFunctions = &number
			}
			if n.Switchdev {
				p.Switch = &api.SwitchPolicy{Mode: api.Switchdev}
			}
			out = append(out, p)
		}
	}
	return out
}
