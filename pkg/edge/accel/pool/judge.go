package pool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// coolC is how far a hot card must cool down before it is given again, in degrees.
const coolC = 5

// maxFindings bounds what is kept of one card.
const maxFindings = 32

// judge takes in what cards told since the last look, what they use, and has those moved who
// are on a card or slice that fails.
func (p *Pool) judge(ctx context.Context) {
	now := p.cfg.Now()
	p.mu.Lock()
	events := p.events
	p.events = nil
	cards := make([]*card, 0, len(p.cards))
	for _, c := range p.cards {
		cards = append(cards, c)
	}
	p.mu.Unlock()
	for _, e := range events {
		i := slices.IndexFunc(cards, func(c *card) bool { return c.told.ID == e.Card })
		if i < 0 {
			continue
		}
		p.mu.Lock()
		a := cards[i].told
		p.mu.Unlock()
		p.find(cards[i], accel.Judge(&a, accel.Fault{Kind: string(e.Kind), Xid: e.Xid, Instance: e.Instance}, now))
	}
	for _, c := range cards {
		p.counted(c, now)
		p.heed(c)
	}
	samples, err := p.cfg.Driver.Sample(ctx)
	switch {
	case err == nil:
		for _, s := range samples {
			if i := slices.IndexFunc(cards, func(c *card) bool { return c.told.ID == s.Card && s.Slice == "" }); i >= 0 {
				p.heat(cards[i], s, now)
			}
		}
		p.account(samples, now)
	case api.CodeOf(err) != api.Unavailable: // that one is told already
		p.cfg.Log.Warn("what cards use cannot be read; what is held meanwhile is counted once it can", "err", err)
	}
	for _, c := range cards {
		p.move(c)
	}
}

// counted finds errors whose events nobody heard: gpud may have been away.
func (p *Pool) counted(c *card, now time.Time) {
	p.mu.Lock()
	a, before := c.told, c.kept.Uncorrected
	p.mu.Unlock()
	if a.ECC == nil || a.ECC.Uncorrected == before {
		return
	}
	if err := p.change(c, func() { c.kept.Uncorrected = a.ECC.Uncorrected }); err != nil {
		p.cfg.Log.Warn("a card's count of errors is not kept", "card", a.ID, "err", err)
	}
	if a.ECC.Uncorrected > before {
		p.find(c, accel.Judge(&a, accel.Fault{Kind: "ecc-uncorrected", Instance: -1}, now))
	}
}

// heat cordons a card that is too hot, and gives it again once it has cooled down.
func (p *Pool) heat(c *card, s gpud.Sample, now time.Time) {
	const name = "gpu-hot"
	p.mu.Lock()
	a := c.told
	hot := slices.ContainsFunc(c.kept.Findings, func(f api.AcceleratorFinding) bool { return f.Warning.Name == name })
	p.mu.Unlock()
	found := accel.Judge(&a, accel.Fault{Kind: "hot", Instance: -1, Celsius: s.Celsius}, now)
	switch {
	case found.Warning.Name != "" && !hot:
		p.find(c, found)
	case hot && accel.Judge(&a, accel.Fault{Kind: "hot", Instance: -1, Celsius: s.Celsius + coolC}, now).Warning.Name == "":
		err := p.change(c, func() {
			c.kept.Findings = slices.DeleteFunc(c.kept.Findings, func(f api.AcceleratorFinding) bool { return f.Warning.Name == name })
		})
		p.cfg.Log.Info("a card has cooled down and is given again", "card", a.ID, "celsius", s.Celsius, "err", err)
	}
}

// find takes a finding in. What asks for nothing is an event and no more; what cordons is
// kept until the box starts anew, or the cause is seen to be gone.
func (p *Pool) find(c *card, f api.AcceleratorFinding) {
	if f.Warning.Name == "" {
		return
	}
	p.cfg.Event(api.Event{Time: p.cfg.Now().UnixMilli(), Name: strings.Replace(f.Warning.Name, "-", ".", 1), Subject: c.told.ID, Message: f.Warning.Message})
	if f.Action == string(accel.ActNone) || f.Action == "" {
		return
	}
	same := func(o api.AcceleratorFinding) bool {
		return o.Warning.Name == f.Warning.Name && o.Warning.Message == f.Warning.Message && o.Slice == f.Slice
	}
	p.mu.Lock()
	known := slices.ContainsFunc(c.kept.Findings, same) || len(c.kept.Findings) >= maxFindings
	p.mu.Unlock()
	if known {
		return
	}
	p.cfg.Log.Error("a card fails", "card", c.told.ID, "slice", f.Slice, "finding", f.Warning.Message, "action", f.Action)
	if err := p.change(c, func() { c.kept.Findings = append(c.kept.Findings, f) }); err != nil {
		p.cfg.Log.Warn("what was found wrong with a card is not kept", "card", c.told.ID, "err", err)
	}
}

// Uncordon ends what was found wrong with cards and slices until people said that they are
// well. What is found later counts, as does what a card itself goes on telling.
func (p *Pool) Uncordon(words []api.Uncordon) {
	p.mu.Lock()
	p.words = slices.Clone(words)
	p.mu.Unlock()
	p.Poke()
}

// heed does what people said of a card.
func (p *Pool) heed(c *card) {
	p.mu.Lock()
	a, words := c.shown(), p.words
	ended := func(f api.AcceleratorFinding) bool {
		return slices.ContainsFunc(words, func(w api.Uncordon) bool { return f.Warning.Since <= w.Until && a.Names(&f, w.ID) })
	}
	var over []api.AcceleratorFinding
	for _, f := range c.kept.Findings {
		if ended(f) {
			over = append(over, f)
		}
	}
	p.mu.Unlock()
	if len(over) == 0 {
		return
	}
	err := p.change(c, func() {
		c.kept.Findings = slices.DeleteFunc(c.kept.Findings, ended)
		c.settled = false // slices that nobody wanted meanwhile may go
	})
	p.cfg.Log.Info("what was found of a card is ended by a person's word", "card", a.ID, "findings", len(over), "err", err)
	for _, f := range over {
		p.cfg.Event(api.Event{Time: p.cfg.Now().UnixMilli(), Name: "gpu.uncordoned", Subject: cmp.Or(f.Slice, a.ID), Message: "ended: " + f.Warning.Message})
	}
	p.Poke()
}

// move asks that those be started elsewhere who hold what fails. A slice's UUID is that of
// the boot in which it failed.
func (p *Pool) move(c *card) {
	p.mu.Lock()
	a := c.shown()
	var devices []string
	reason := ""
	for _, f := range a.Findings {
		if f.Action != string(accel.ActMove) {
			continue
		}
		for id := range c.kept.Held {
			if f.Slice == "" || slices.ContainsFunc(sliceNames(&a, f.Slice), func(n string) bool { return n == id }) {
				devices, reason = append(devices, id), f.Warning.Message
			}
		}
	}
	p.mu.Unlock()
	if len(devices) == 0 {
		return
	}
	slices.Sort(devices)
	p.cfg.Move(slices.Compact(devices), fmt.Sprintf("moved: %s", reason))
}

// sliceNames is how the slice of a UUID is named to who holds it.
func sliceNames(a *api.Accelerator, uuid string) (names []string) {
	if a.MIG == nil {
		return nil
	}
	for _, i := range a.MIG.Instances {
		if i.UUID == uuid {
			names = append(names, sliceID(a.ID, i.Placement))
		}
	}
	return names
}
