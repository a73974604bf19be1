package main

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
	"tributary.dev/tributary/pkg/edge/accel/pool"
	"tributary.dev/tributary/pkg/edge/claims"
)

// gpus are the box's accelerators: gpud, where there is a card of NVIDIA's, and the pool that
// gives them.
type gpus struct {
	*pool.Pool
	// Expected tells whether there is a card of NVIDIA's, so that gpud is to answer.
	Expected func() bool
	keeper   *gpud.Keeper
	seen     atomic.Pointer[[]api.Accelerator] // as the bus shows them
}

var _ claims.Maker = (*gpus)(nil)

// openGPUs makes the pool; look is asked once when the bus was not looked at yet.
func (b *box) openGPUs(look func() api.Inventory) error {
	g := &gpus{}
	b.gpus = g
	seen := func() []api.Accelerator {
		if g.seen.Load() == nil {
			look()
		}
		return *g.seen.Load()
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	files := pool.FindFiles()
	if b.o.nvidiaRoot != "" {
		files = pool.Files{Libraries: b.o.nvidiaRoot, System: b.o.nvidiaRoot}
	}
	program := b.o.gpud
	if _, err := os.Stat(program); err != nil && program != "" {
		program = cmp.Or(files.Program("gpud"), program) // a release has it beside the driver
	}
	g.Expected = func() bool {
		return b.o.gpud != "" && (b.o.gpudAlways || slices.ContainsFunc(seen(), func(a api.Accelerator) bool { return a.Vendor == "nvidia" }))
	}
	g.keeper = gpud.Keep(gpud.Config{Start: gpud.Command(b.errs, []string{"LD_LIBRARY_PATH=" + strings.Join(files.Folders(), ":")}, program), Pause: gpud.Pause, Log: b.log,
		Events: func(e gpud.Event) { g.Tell(e) }, Again: func(h gpud.Hello) { g.Again(h) }})
	g.Pool, err = pool.New(pool.Config{Driver: g.keeper, Seen: seen, Store: b.state, Files: files, Run: b.o.run, Boot: strings.TrimSpace(string(boot)), Profile: profilePolicies(),
		NVIDIA: g.Expected, Changed: func() { b.keeper.Poke(); b.claims.Poke() }, Move: b.moveFrom, Holders: b.holders,
		Event: func(e api.Event) {
			if a := b.agent.Load(); a != nil {
				a.Event(e)
			}
		},
		Now: b.clock.Now, Log: b.log})
	return err
}

// lookOver puts what the drivers of accelerators tell in the place of what the bus shows.
func (b *box) lookOver(i api.Inventory) api.Inventory {
	seen := i.Accelerators
	b.gpus.seen.Store(&seen)
	if b.gpus.Pool != nil {
		i.Accelerators = b.gpus.Fill(seen)
	}
	return i
}

// profilePolicies are those of the image that runs; elsewhere there are none.
func profilePolicies() []api.AcceleratorPolicy {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil {
		return nil
	}
	return p.GPU.Policies
}

// keepGPUs runs gpud and the pool until ctx ends.
func (b *box) keepGPUs(ctx context.Context) error {
	b.claims.Expect(b.wanted)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.gpus.Run(ctx) })
	g.Go(func() error {
		pool.While(ctx, 5*time.Second, b.gpus.Expected, b.gpus.keeper.Run)
		return ctx.Err()
	})
	return g.Wait()
}

// wanted are the services that are wanted with claims.
func (b *box) wanted() map[claims.Owner][]api.Claim {
	out := map[claims.Owner][]api.Claim{}
	for _, s := range b.work.Claiming() {
		out[claims.Owner{App: s.App, Service: s.Service}] = s.Claims
	}
	return out
}

// holders are the services that hold accelerators.
func (b *box) holders() map[string][]pool.Holder {
	out := map[string][]pool.Holder{}
	for _, u := range b.claims.Uses() {
		if u.Class == api.ClaimGPU {
			for _, h := range u.Holders {
				out[u.ID] = append(out[u.ID], pool.Holder{App: h.App, Service: h.Service})
			}
		}
	}
	return out
}

// moveFrom has the services that hold these devices started anew, with others.
func (b *box) moveFrom(devices []string, reason string) {
	held := b.holders()
	for _, id := range devices {
		for _, h := range held[id] {
			b.work.Move(h.App, h.Service, reason)
		}
	}
}

// patientClaims has a service that asks for a card of NVIDIA's wait until the cards are known
// and cut again as they were: after a start that takes gpud a moment.
type patientClaims struct {
	*claims.Book
	gpus *gpus
}

// firstAnswer bounds that wait; who comes later is told what is missing.
const firstAnswer = time.Minute

func (p patientClaims) Take(ctx context.Context, app, service string, wanted []api.Claim) ([]api.HeldDevice, error) {
	card := func(c api.Claim) bool { return c.Class == api.ClaimGPU && (c.Driver == "" || c.Driver == "nvidia") }
	if slices.ContainsFunc(wanted, card) && p.gpus.Expected() {
		limit := time.NewTimer(firstAnswer)
		defer limit.Stop()
		select {
		case <-p.gpus.Ready():
		case <-limit.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return p.Book.Take(ctx, app, service, wanted)
}
