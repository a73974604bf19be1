package pool

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
)

// ledger counts what each service has used of cards, as counters that only grow: who bills
// reads them, and takes what is new since.
type ledger struct {
	// Used is by "app/service".
	Used map[string]api.AcceleratorUse `json:"used,omitempty"`
	// Cards are the counters of each card when it was read last.
	Cards map[string]reading `json:"cards,omitempty"`
	// Rest is what is below the unit, by service and kind, so that short times add up.
	Rest map[string]float64 `json:"rest,omitempty"`

	saved string // what is on the disk, and what of it was told
	told  map[string]api.AcceleratorUse
}

// reading is what a card had counted at one time.
type reading struct {
	Boot     string `json:"boot"`
	At       int64  `json:"at"` // Unix milliseconds
	EnergyMJ uint64 `json:"energy"`
}

// Holder is a service that holds a device.
type Holder struct{ App, Service string }

func (h Holder) String() string { return h.App + "/" + h.Service }

// maxUsed bounds the services that are counted; those that hold nothing go first.
const maxUsed = 1024

// account charges who holds cards and slices for the time since they were read last. A gap
// in which nobody looked (edged was away) is charged too: who holds now held then, as what is
// held outlives edged. A gap over a reboot is not.
func (p *Pool) account(samples []gpud.Sample, now time.Time) {
	holders := p.cfg.Holders() // asks who may be asking us: without our lock
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.meter
	if l.Used == nil {
		l.Used, l.Rest = map[string]api.AcceleratorUse{}, map[string]float64{}
	}
	if l.Cards == nil {
		l.Cards = map[string]reading{}
	}
	for _, whole := range samples {
		c := p.cards[whole.Card]
		if whole.Slice != "" || c == nil || c.told.PCI == "" {
			continue
		}
		before, known := l.Cards[whole.Card]
		at := now.UnixMilli()
		l.Cards[whole.Card] = reading{p.cfg.Boot, at, whole.EnergyMJ}
		if !known || before.Boot != p.cfg.Boot || at <= before.At {
			continue
		}
		energy := uint64(0)
		if whole.EnergyMJ > before.EnergyMJ && before.EnergyMJ > 0 { // it begins anew with the driver
			energy = whole.EnergyMJ - before.EnergyMJ
		}
		a := c.shown()
		held, all := holdings(&a, whole, samples, holders, float64(at-before.At)/1000)
		for _, u := range accel.Meter(all, energy, held) {
			l.add(u, held)
		}
	}
	l.bound(holders)
}

// holdings are the parts of one card that services hold, and its parts in all.
func holdings(a *api.Accelerator, whole gpud.Sample, samples []gpud.Sample, holders map[string][]Holder, seconds float64) (held []accel.Holding, all int) {
	if a.Sharing.Mode != api.SharingMIG || a.MIG == nil {
		who := holders[a.ID]
		for _, h := range who {
			// What runs beside others has no meter of its own: an equal part.
			n := int64(len(who))
			one := accel.Holding{Who: h.String(), Compute: 1, Seconds: seconds, MemoryMiB: whole.MemoryMiB / n, Percent: whole.Percent}
			if one.Percent > 0 {
				one.Percent /= int(n)
			}
			held = append(held, one)
		}
		return held, max(len(who), 1)
	}
	for _, prof := range a.MIG.Profiles {
		all = max(all, prof.Slices)
	}
	for i := range a.MIG.Instances {
		inst := &a.MIG.Instances[i]
		compute := 1
		for _, prof := range a.MIG.Profiles {
			if prof.ID == inst.Profile {
				compute = prof.Slices
			}
		}
		s := gpud.Sample{Percent: -1}
		if at := slices.IndexFunc(samples, func(s gpud.Sample) bool { return s.Card == a.ID && s.Slice == inst.UUID && s.Slice != "" }); at >= 0 {
			s = samples[at]
		}
		for _, h := range holders[sliceID(a.ID, inst.Placement)] {
			held = append(held, accel.Holding{Who: h.String(), Compute: compute, Seconds: seconds, MemoryMiB: s.MemoryMiB, Percent: s.Percent})
		}
	}
	return held, all
}

// add counts what one service used. Fractions wait for the rest of their unit.
func (l *ledger) add(u accel.Used, held []accel.Holding) {
	seconds := 0.0
	if i := slices.IndexFunc(held, func(h accel.Holding) bool { return h.Who == u.Who }); i >= 0 {
		seconds = held[i].Seconds
	}
	n := l.Used[u.Who]
	whole := func(kind string, x float64) uint64 {
		x += l.Rest[u.Who+" "+kind]
		units := math.Floor(x)
		l.Rest[u.Who+" "+kind] = x - units
		return uint64(units)
	}
	n.HeldMillis += whole("held", seconds*1000)
	n.SliceMillis += whole("slice", u.SliceSeconds*1000)
	n.MemoryMiBSeconds += whole("memory", u.MemoryMiBHours*3600)
	n.EnergyMillijoules += whole("energy", u.EnergyJ*1000)
	if u.BusySeconds < 0 {
		n.UnknownMillis += whole("unknown", seconds*1000)
	} else {
		n.BusyMillis += whole("busy", u.BusySeconds*1000)
	}
	l.Used[u.Who] = n
}

// bound forgets services that hold nothing when there are too many.
func (l *ledger) bound(holders map[string][]Holder) {
	if len(l.Used) <= maxUsed {
		return
	}
	holding := map[string]bool{}
	for _, list := range holders {
		for _, h := range list {
			holding[h.String()] = true
		}
	}
	for _, who := range slices.Sorted(maps.Keys(l.Used)) {
		if len(l.Used) > maxUsed/2 && !holding[who] {
			delete(l.Used, who)
			maps.DeleteFunc(l.Rest, func(k string, _ float64) bool { return strings.HasPrefix(k, who+" ") })
		}
	}
}

// Used lists what services have used since they were first counted, by "app/service". It is
// on the disk when it is told: counters never go back. What was counted since the last time
// and is lost in a crash is found again, in the time and the energy since the last reading
// that was kept.
func (p *Pool) Used() map[string]api.AcceleratorUse {
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, err := json.Marshal(p.meter)
	if err == nil && string(raw) != p.meter.saved {
		err = p.cfg.Store.Put(bucket, usedKey, raw)
	}
	if err != nil {
		p.cfg.Log.Warn("what was used of accelerators is not kept yet", "err", err)
		return maps.Clone(p.meter.told)
	}
	p.meter.saved, p.meter.told = string(raw), maps.Clone(p.meter.Used)
	return maps.Clone(p.meter.told)
}
