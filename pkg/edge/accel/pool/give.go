package pool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
)

// maxPlans bounds the ways to spread slices over cards that are tried.
const maxPlans = 512

// Make cuts slices for the claims of a service that nothing there answers, beside what is
// held. What is known to come has a say in where they lie. True means that slices were made.
func (p *Pool) Make(ctx context.Context, need api.Need) (bool, error) {
	var wants []api.Claim
	for _, c := range need.Claims {
		if c.Class == api.ClaimGPU && c.Sharing() == string(api.SharingMIG) {
			for range max(c.Count, 1) {
				wants = append(wants, c)
			}
		}
	}
	if len(wants) == 0 {
		return false, nil
	}
	p.work.Lock()
	defer p.work.Unlock()
	cards, err := p.sliceable(ctx, need)
	if err != nil {
		return false, err
	}
	if len(cards) == 0 {
		return false, api.Errorf(api.NotFound, "no card of this box is to be cut into slices; its settings' accelerators say so with mode: mig")
	}
	// The largest first: it has the fewest places.
	slices.SortStableFunc(wants, func(a, b api.Claim) int { return cmp.Compare(weight(b), weight(a)) })
	s := spread{cards: cards, budget: maxPlans}
	if !s.place(wants, 0) {
		return false, s.why
	}
	made := false
	for i, one := range cards {
		plan := s.best[i]
		p.mu.Lock()
		for _, at := range plan.Places {
			one.card.promised[sliceID(one.card.told.ID, at.At)] = p.cfg.Now()
		}
		p.mu.Unlock()
		if len(plan.Steps) == 0 {
			continue
		}
		p.cfg.Log.Info("slices are cut", "card", one.card.told.ID, "steps", plan.Steps)
		if err := accel.Change(ctx, p.cfg.Driver, journal{p.cfg.Store}, one.card.told.ID, plan.Steps); err != nil {
			return made, err
		}
		if err := p.reread(ctx, one.card); err != nil {
			return made, err
		}
		made = true
	}
	if made {
		p.cfg.Changed()
	}
	return made, nil
}

// cut is one card that slices can be made on.
type cut struct {
	card     *card
	shown    api.Accelerator
	expected []accel.Want
}

// sliceable lists the cards that are cut and can be asked, the ones with the most slices
// held first: so whole cards stay free.
func (p *Pool) sliceable(ctx context.Context, need api.Need) (out []cut, err error) {
	p.mu.Lock()
	all := make([]*card, 0, len(p.cards))
	for _, c := range p.cards {
		if c.told.PCI != "" && c.kept.Sharing.Mode == api.SharingMIG && c.told.MIG != nil {
			all = append(all, c)
		}
	}
	p.mu.Unlock()
	for _, c := range all {
		if err := p.reread(ctx, c); err != nil {
			return nil, err
		}
		p.mu.Lock()
		one := cut{card: c, shown: c.shown()}
		p.mu.Unlock()
		for i := range one.shown.MIG.Instances {
			inst := &one.shown.MIG.Instances[i]
			inst.Busy = inst.Busy || slices.Contains(need.Held, sliceID(one.shown.ID, inst.Placement))
		}
		for i := range need.Expected {
			if e := &need.Expected[i]; e.Class == api.ClaimGPU && e.Sharing() == string(api.SharingMIG) && len(one.expected) < maxExpected && suits(&one.shown, e) == "" {
				one.expected = append(one.expected, wantOf(e))
			}
		}
		out = append(out, one)
	}
	held := func(c cut) (n int) {
		for _, i := range c.shown.MIG.Instances {
			if i.Busy {
				n++
			}
		}
		return n
	}
	slices.SortFunc(out, func(a, b cut) int { return cmp.Or(held(b)-held(a), strings.Compare(a.shown.PCI, b.shown.PCI)) })
	return out, nil
}

// Room lists what cards could still be cut into.
func (p *Pool) Room() (list []api.DeviceUse) {
	told := p.snapshot()
	for i := range told {
		list = append(list, accel.Room(&told[i])...)
	}
	return list
}

// maxExpected is how many slices to come are thought of: no card has more.
const maxExpected = 8

func weight(c api.Claim) int64 {
	memory, _ := strconv.ParseInt(c.Options["memory"], 10, 64)
	compute, _ := strconv.ParseInt(c.Options["compute"], 10, 64)
	if g, _, ok := strings.Cut(c.Options["profile"], "g."); ok && len(g) > 0 {
		compute = max(compute, int64(g[len(g)-1]-'0'))
	}
	return compute<<32 + memory
}

func wantOf(c *api.Claim) accel.Want {
	w := accel.Want{Profile: c.Options["profile"]}
	if w.Profile == "" {
		w.MemoryMiB, _ = strconv.ParseInt(c.Options["memory"], 10, 64)
		w.Slices, _ = strconv.Atoi(c.Options["compute"])
	}
	return w
}

// suits says why no slice that the card could have answers a claim; empty when one does.
func suits(a *api.Accelerator, c *api.Claim) (why string) {
	for _, s := range accel.Possible(a) {
		if why = c.Fits(&s); why == "" {
			return ""
		}
	}
	return cmp.Or(why, a.ID+" tells of no slices")
}

// spread finds cards for all wants.
type spread struct {
	cards  []cut
	given  [32][]accel.Want // by card
	best   [32]accel.Plan
	budget int
	why    error
}

// place finds a card for each want from the n-th on, going back where that leads nowhere.
func (s *spread) place(wants []api.Claim, n int) bool {
	if n == len(wants) {
		return true
	}
	for i := range s.cards[:min(len(s.cards), len(s.given))] {
		one := &s.cards[i]
		if words := suits(&one.shown, &wants[n]); words != "" {
			if s.why == nil {
				s.why = api.Errorf(api.NotFound, "%s: %s", one.shown.ID, words)
			}
			continue
		}
		if s.budget--; s.budget < 0 {
			return false
		}
		more := append(slices.Clone(s.given[i]), wantOf(&wants[n]))
		plan, err := accel.PlanMIG(one.shown.MIG, more, one.expected)
		if err != nil {
			s.why = fmt.Errorf("%s: %w", one.shown.ID, err)
			continue
		}
		before, was := s.given[i], s.best[i]
		s.given[i], s.best[i] = more, plan
		if s.place(wants, n+1) {
			return true
		}
		s.given[i], s.best[i] = before, was
	}
	return false
}

// Prepare makes a device ready and tells what a container needs of it.
func (p *Pool) Prepare(ctx context.Context, id string, _ int, claim api.Claim) (api.DeviceEdits, error) {
	p.work.Lock()
	defer p.work.Unlock()
	name, at := parse(id)
	p.mu.Lock()
	c := p.cards[name]
	there := c != nil && c.told.PCI != ""
	var a api.Accelerator
	if there {
		a = c.shown()
		delete(c.promised, id)
	}
	p.mu.Unlock()
	if !there {
		for _, seen := range p.cfg.Seen() {
			if seen.ID == id && seen.Vendor != "nvidia" {
				return p.edits(accel.Exclusive(&seen), false)
			}
		}
		return api.DeviceEdits{}, api.Errorf(api.NotFound, "%s is gone", id)
	}
	var edits accel.Edits
	var err error
	if at != "" {
		edits, err = p.slice(&a, at)
	} else {
		edits, err = p.whole(&a, claim)
	}
	if err != nil {
		return api.DeviceEdits{}, err
	}
	if err := p.hold(c, id, &a); err != nil {
		return api.DeviceEdits{}, err
	}
	if a.Sharing.Mode == api.SharingMPS {
		if err := p.serve(ctx, c); err != nil {
			return api.DeviceEdits{}, err
		}
	}
	p.cfg.Changed()
	return p.edits(edits, true)
}

func (p *Pool) slice(a *api.Accelerator, at string) (accel.Edits, error) {
	if a.MIG != nil {
		for i := range a.MIG.Instances {
			if a.MIG.Instances[i].Placement.String() == at {
				return accel.Slice(a, &a.MIG.Instances[i], p.cfg.Files.Minor)
			}
		}
	}
	return accel.Edits{}, api.Errorf(api.NotFound, "the slice at %s of %s is gone", at, a.ID)
}

// whole are the edits of a card that is given as one, with the limits that its claim names:
// they may be below those of the policy, never above.
func (p *Pool) whole(a *api.Accelerator, claim api.Claim) (accel.Edits, error) {
	s := a.Sharing
	if s.Mode == api.SharingMPS {
		memory, threads := accel.Limits(a, s)
		if asked, err := strconv.ParseInt(claim.Options["memory-limit"], 10, 64); err == nil {
			if asked > memory { // check: memory limit
				return accel.Edits{}, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%d MiB are asked for, and %s gives each service %d", asked, a.ID, memory), Remedy: "ask for less, or change the settings' accelerators"}
			}
			memory = asked
		}
		if asked, err := strconv.Atoi(claim.Options["threads"]); err == nil {
			if asked > threads { // check: thread limit
				return accel.Edits{}, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%d %% of the threads are asked for, and %s gives each service %d", asked, a.ID, threads), Remedy: "ask for less, or change the settings' accelerators"}
			}
			threads = asked
		}
		s.MemoryMiB, s.ThreadsPercent = memory, threads
	}
	shared, err := accel.Share(a, s, p.cfg.Run)
	return shared.Edits, err
}

// hold remembers that a device was made ready, and how the card was before the first of it.
func (p *Pool) hold(c *card, id string, a *api.Accelerator) error {
	p.mu.Lock()
	_, have := c.kept.Held[id]
	compute := c.compute
	p.mu.Unlock()
	if have {
		return nil
	}
	return p.change(c, func() {
		if c.kept.Held == nil {
			c.kept.Held = map[string]string{}
		}
		c.kept.Held[id] = ""
		if a.Sharing.Mode == api.SharingMPS {
			c.kept.Held[id] = cmp.Or(compute, "Default")
		}
	})
}

// Restore leaves a device as it was found. Of a card that is gone nothing is left to do.
func (p *Pool) Restore(ctx context.Context, id string) error {
	p.work.Lock()
	defer p.work.Unlock()
	name, _ := parse(id)
	p.mu.Lock()
	c := p.cards[name]
	var was string
	held := false
	if c != nil {
		was, held = c.kept.Held[id]
	}
	p.mu.Unlock()
	if !held {
		return nil
	}
	there := c.told.PCI != ""
	if there && c.kept.Sharing.Mode == api.SharingMPS {
		shared, err := accel.Share(&c.told, c.kept.Sharing, p.cfg.Run)
		if err != nil {
			return err
		}
		if err := p.mps.stop(ctx, name, *shared.Daemon); err != nil {
			return err
		}
		if err := p.cfg.Driver.SetCompute(ctx, name, cmp.Or(was, "Default")); err != nil {
			return err
		}
		p.mu.Lock()
		c.compute = cmp.Or(was, "Default")
		p.mu.Unlock()
	}
	if !there {
		if err := p.mps.drop(ctx, name); err != nil {
			return err
		}
	}
	if err := p.change(c, func() { delete(c.kept.Held, id) }); err != nil {
		return err
	}
	defer p.cfg.Changed()
	if !there {
		return nil
	}
	// A slice that cannot be removed now (gpud is killed) is at the next look: nobody holds it.
	if err := p.tidy(ctx, c); err != nil {
		p.mu.Lock()
		c.settled = false
		p.mu.Unlock()
		p.cfg.Log.Warn("slices are put in order later", "card", name, "err", err)
		p.Poke()
	}
	return nil
}

// serve has the control daemon of MPS run for a card.
func (p *Pool) serve(ctx context.Context, c *card) error {
	shared, err := accel.Share(&c.told, c.kept.Sharing, p.cfg.Run)
	if err != nil {
		return err
	}
	if c.compute != shared.Daemon.ComputeMode {
		if err := p.cfg.Driver.SetCompute(ctx, c.told.ID, shared.Daemon.ComputeMode); err != nil {
			return err
		}
		p.mu.Lock()
		c.compute = shared.Daemon.ComputeMode
		p.mu.Unlock()
	}
	memory, threads := accel.Limits(&c.told, c.kept.Sharing)
	// A client may lower what the daemon sets, and not raise it.
	return p.mps.run(ctx, c.told.ID, *shared.Daemon, []string{
		fmt.Sprintf("set_default_device_pinned_mem_limit 0 %dM", memory), fmt.Sprintf("set_default_active_thread_percentage %d", threads)})
}

// edits are a container's, with the driver's libraries where it is NVIDIA's.
func (p *Pool) edits(e accel.Edits, nvidia bool) (api.DeviceEdits, error) {
	out := api.DeviceEdits{Env: e.Env, NUMA: -1}
	var err error
	if out.Nodes, err = p.cfg.Files.Nodes(e.Nodes); err != nil {
		return api.DeviceEdits{}, err
	}
	for _, m := range e.Mounts {
		out.Mounts = append(out.Mounts, api.DeviceBind{HostPath: m.Host, ContainerPath: m.Container, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "rw"}})
	}
	if nvidia {
		out.Mounts = append(out.Mounts, p.cfg.Files.Mounts()...)
	}
	return out, nil
}
