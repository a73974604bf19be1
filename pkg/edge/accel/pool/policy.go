package pool

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// look reads all cards and brings each to what it is to be. p.work is held. One card's fault
// is that card's, and told there; an error is that nothing can be asked.
func (p *Pool) look(ctx context.Context) error {
	list, err := p.cfg.Driver.Cards(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	seen := p.cfg.Seen() // asks who may be asking us: without our lock
	for _, told := range list {
		there[told.Accelerator.ID] = true
		c := p.take(told, seen)
		err := p.tend(ctx, c)
		if api.CodeOf(err) == api.Unavailable && err != nil || ctx.Err() != nil {
			return err // what is not done is done at the next look
		}
		p.mu.Lock()
		c.fault = ""
		if err != nil {
			c.fault = err.Error()
			p.cfg.Log.Warn("a card is not what it is to be", "card", c.told.ID, "err", err)
		}
		p.mu.Unlock()
	}
	p.miss(there)
	return nil
}

// awayLooks is how often a card may be missing before it counts as lost: one that is reset is
// away for a moment.
const awayLooks = 3

// miss notes which cards are not told of, and has those moved who hold one that is lost.
func (p *Pool) miss(there map[string]bool) {
	var lost []*card
	p.mu.Lock()
	for id, c := range p.cards {
		if there[id] {
			c.away = 0
			continue
		}
		c.told, c.settled = api.Accelerator{ID: id}, false // it may come back
		if c.away++; c.away == awayLooks && len(c.kept.Held) > 0 {
			lost = append(lost, c)
		}
	}
	p.mu.Unlock()
	for _, c := range lost {
		p.find(c, accel.Judge(&c.told, accel.Fault{Kind: "unavailable", Instance: -1}, p.cfg.Now()))
	}
}

// take notes what a card told. Which node it is near the bus says: the library tells none on
// x86, and on boards with memory of the card's own the node of that.
func (p *Pool) take(told gpud.Card, seen []api.Accelerator) *card {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := told.Accelerator.ID
	c := p.cards[id]
	if at := slices.IndexFunc(seen, func(a api.Accelerator) bool { return a.PCI == told.Accelerator.PCI }); at >= 0 {
		told.Accelerator.NUMA = seen[at].NUMA
	}
	if c != nil { // the same is told with the time of when it began
		for i := range told.Accelerator.Findings {
			f := &told.Accelerator.Findings[i].Warning
			if at := slices.IndexFunc(c.told.Findings, func(o api.AcceleratorFinding) bool { return o.Warning.Name == f.Name && o.Warning.Message == f.Message }); at >= 0 {
				f.Since = c.told.Findings[at].Warning.Since
			}
		}
	}
	if c == nil {
		c = &card{promised: map[string]time.Time{}, kept: remembered{Boot: p.cfg.Boot, Sharing: api.Sharing{Mode: api.SharingExclusive}, Uncorrected: uncorrected(&told.Accelerator)}}
		if m := told.Accelerator.MIG; m != nil {
			c.kept.Found = accel.Keep(id, m, accel.Kept{})
			c.kept.Now = c.kept.Found
			if m.Enabled { // as somebody made it; a policy may say otherwise
				c.kept.Sharing.Mode = api.SharingMIG
			}
		}
		p.cards[id] = c
	}
	c.told, c.compute = told.Accelerator, told.Details["compute_mode"]
	return c
}

func uncorrected(a *api.Accelerator) uint64 {
	if a.ECC == nil {
		return 0
	}
	return a.ECC.Uncorrected
}

// tend brings one card to what it was before a reboot or a crash, and then under its policy.
func (p *Pool) tend(ctx context.Context, c *card) error {
	switch {
	case len(c.told.Findings) > 0:
		return nil // it does not answer, or cannot be read: what it was is made again when it does
	case c.told.MIG != nil:
		if err := p.again(ctx, c); err != nil {
			return err
		}
	case c.kept.Boot != p.cfg.Boot:
		if err := p.change(c, func() { c.kept.Boot, c.kept.Findings = p.cfg.Boot, nil }); err != nil {
			return err
		}
	}
	if err := p.settle(ctx, c); err != nil {
		return err
	}
	if c.kept.Sharing.Mode == api.SharingMPS && len(c.kept.Held) > 0 { // edged is new, or the daemon ended
		return p.serve(ctx, c)
	}
	return nil
}

// again makes a card what it was before the reboot, or ends what a crash cut short. A
// reboot ends what was found wrong with it: what is still so, the card tells again.
func (p *Pool) again(ctx context.Context, c *card) error {
	var err error
	j := journal{p.cfg.Store}
	id := c.told.ID
	rebooted := c.kept.Boot != p.cfg.Boot
	switch {
	case rebooted && c.kept.Sharing.Mode == api.SharingMIG:
		err = accel.Restore(ctx, p.cfg.Driver, j, c.kept.Now)
	case rebooted: // what was begun was begun on slices that are gone
		err = j.Put(id, nil)
	default:
		err = accel.Resume(ctx, p.cfg.Driver, j, id)
	}
	if api.CodeOf(err) == api.Unavailable || ctx.Err() != nil {
		return err
	}
	if rebooted {
		p.mu.Lock()
		c.broken = ""
		if err != nil {
			c.broken = err.Error()
		}
		p.mu.Unlock()
		if err := p.change(c, func() { c.kept.Boot, c.kept.Findings = p.cfg.Boot, nil }); err != nil {
			return err
		}
	}
	return p.reread(ctx, c)
}

// reread takes a card's layout in, and remembers it for after a reboot.
func (p *Pool) reread(ctx context.Context, c *card) error {
	if c.told.MIG == nil {
		return nil
	}
	m, err := p.cfg.Driver.Layout(ctx, c.told.ID)
	if err != nil {
		return err
	}
	p.mu.Lock()
	c.told.MIG = m
	now := accel.Keep(c.told.ID, m, c.kept.Now)
	same := reflect.DeepEqual(now, c.kept.Now)
	c.kept.Now = now
	p.mu.Unlock()
	if same {
		return nil
	}
	return p.save(c)
}

// Policy is how a card is to be shared: by the first policy that names it, or exclusive.
func Policy(a *api.Accelerator, policies []api.AcceleratorPolicy) api.Sharing {
	for _, rule := range policies {
		if rule.Names(a) {
			return rule.Sharing
		}
	}
	return api.Sharing{Mode: api.SharingExclusive}
}

// settle puts a card under its policy, as far as that disturbs nobody. Of a card that no
// policy names and whose slices somebody else made, the slices are given as they are.
func (p *Pool) settle(ctx context.Context, c *card) error {
	p.mu.Lock()
	rules := slices.Concat(p.policies, p.cfg.Profile)
	want := Policy(&c.told, rules)
	named := slices.ContainsFunc(rules, func(r api.AcceleratorPolicy) bool { return r.Names(&c.told) })
	if !named && c.kept.Found.Enabled {
		want = api.Sharing{Mode: api.SharingMIG}
	}
	c.refused, c.waits, c.layout = "", "", ""
	if _, err := accel.Share(&c.told, want, p.cfg.Run); err != nil {
		c.refused = err.Error()
		want = c.kept.Sharing
	}
	now := c.kept.Sharing
	used := len(c.kept.Held) > 0 || busy(&c.told)
	if !reflect.DeepEqual(want, now) && used && (want.Mode != now.Mode || want.Mode != api.SharingMIG) {
		c.waits = fmt.Sprintf("it is to be shared %s, and is held %s", want.Mode, now.Mode)
		want = now
	}
	changed := !reflect.DeepEqual(want, now)
	first := !c.settled
	p.mu.Unlock()
	if changed {
		if err := p.convert(ctx, c, want); err != nil {
			return err
		}
	}
	if changed || first {
		if err := p.tidy(ctx, c); err != nil {
			return err
		}
	}
	p.mu.Lock()
	c.settled = true
	if m := c.shown().MIG; m != nil { // its places are told once MIG is on
		c.layout = accel.NeverAll(m, c.kept.Sharing.Layout)
	}
	if m := c.told.MIG; c.kept.Sharing.Mode == api.SharingMIG && m != nil && !m.Enabled && c.waits == "" {
		c.waits = "MIG turns on at its next reset: restart the box"
	}
	p.mu.Unlock()
	return nil
}

// busy tells that a program runs on a slice, whoever started it.
func busy(a *api.Accelerator) bool {
	return a.MIG != nil && slices.ContainsFunc(a.MIG.Instances, func(i api.MIGInstance) bool { return i.Busy })
}

// convert changes a card's way of sharing; nobody holds it, unless it is cut before and
// after. What is done can be done again.
func (p *Pool) convert(ctx context.Context, c *card, want api.Sharing) error {
	now := c.kept.Sharing
	enabled := c.told.MIG != nil && c.told.MIG.Enabled
	if now.Mode == api.SharingMIG && want.Mode != api.SharingMIG {
		if err := p.undo(ctx, c); err != nil {
			return err
		}
	}
	if want.Mode == api.SharingMIG && !enabled {
		if _, err := p.cfg.Driver.SetMIG(ctx, c.told.ID, true); err != nil {
			return err
		}
	}
	if err := p.change(c, func() { c.kept.Sharing = want }); err != nil {
		return err
	}
	p.cfg.Log.Info("a card is shared another way", "card", c.told.ID, "before", now.Mode, "now", want.Mode)
	return p.reread(ctx, c)
}

// undo leaves a card's slices and its mode as they were found.
func (p *Pool) undo(ctx context.Context, c *card) error {
	m, err := p.cfg.Driver.Layout(ctx, c.told.ID)
	if err != nil {
		return err
	}
	if err := accel.Change(ctx, p.cfg.Driver, journal{p.cfg.Store}, c.told.ID, accel.Back(m, c.kept.Found)); err != nil {
		return err
	}
	if c.kept.Found.Enabled || !m.Enabled {
		return nil
	}
	_, err = p.cfg.Driver.SetMIG(ctx, c.told.ID, false)
	return err
}

// tidy removes the slices that were made for somebody and are held by nobody, and makes
// those that are to be ready: of the policy's layout, or as they were found.
func (p *Pool) tidy(ctx context.Context, c *card) error {
	if c.kept.Sharing.Mode != api.SharingMIG || c.told.MIG == nil || !c.told.MIG.Enabled {
		return nil
	}
	if err := p.reread(ctx, c); err != nil {
		return err
	}
	p.mu.Lock()
	a := c.shown()
	c.keepPromises(a.MIG, p.cfg.Now())
	sharing, found := c.kept.Sharing, c.kept.Found
	p.mu.Unlock()
	var steps []accel.Step
	if len(sharing.Layout) > 0 {
		steps = accel.Ready(a.MIG, found, sharing.Layout)
	} else {
		steps = accel.Back(a.MIG, found)
	}
	if len(steps) == 0 {
		return nil
	}
	p.cfg.Log.Info("slices of a card are put in order", "card", a.ID, "steps", steps)
	if err := accel.Change(ctx, p.cfg.Driver, journal{p.cfg.Store}, a.ID, steps); err != nil {
		return err
	}
	return p.reread(ctx, c)
}

// promise is how long a slice waits for the one that it was made for.
const promise = time.Minute

// keepPromises marks the slices that somebody comes for in a moment. p.mu is held.
func (c *card) keepPromises(m *api.MIG, now time.Time) {
	for id, at := range c.promised {
		if now.Sub(at) > promise || now.Before(at) {
			delete(c.promised, id)
			continue
		}
		for i := range m.Instances {
			if sliceID(c.told.ID, m.Instances[i].Placement) == id {
				m.Instances[i].Busy = true
			}
		}
	}
}
