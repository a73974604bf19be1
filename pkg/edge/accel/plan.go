package accel

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Want is one slice that somebody asks for: by its profile's name, or by what it must have
// at least.
type Want struct {
	Who       string // for words: app/service
	Profile   string // "1g.10gb"; empty: any that has
	MemoryMiB int64  // this much memory and
	Slices    int    // this many compute slices
}

func (w Want) String() string {
	if w.Profile != "" {
		return w.Profile
	}
	return fmt.Sprintf("a slice of %d MiB and %d/g of compute", w.MemoryMiB, max(w.Slices, 1))
}

// Op is what a step does.
type Op string

// The steps.
const (
	OpDestroy Op = "destroy"
	OpCreate  Op = "create"
)

// Step is one change of a card. Steps are done in their order; each may be done again when
// it is not known whether it was done.
type Step struct {
	Op Op `json:"op" cbor:"1,keyasint"`
	// Instance is the driver's number of the slice to destroy.
	Instance int `json:"instance" cbor:"2,keyasint"`
	// Profile and At are of the slice that is made, or of the one that goes.
	Profile int              `json:"profile" cbor:"3,keyasint"`
	Name    string           `json:"name" cbor:"4,keyasint"`
	At      api.MIGPlacement `json:"at" cbor:"5,keyasint"`
}

func (s Step) String() string { return fmt.Sprintf("%s %s at %s", s.Op, s.Name, s.At) }

// Place is where a want is met.
type Place struct {
	Profile int
	Name    string
	At      api.MIGPlacement
	// Instance is the slice that is there already; -1 where a step makes it.
	Instance int
}

// Plan is how all wants are met.
type Plan struct {
	Steps  []Step
	Places []Place // one for each want, in their order
	// Expected is how many of the wants to come find room afterwards without a busy slice
	// being moved: as many as any plan leaves room for.
	Expected int
}

// NoRoom says why a want finds no place. Those before it in the list find theirs.
type NoRoom struct {
	Want  int // index
	Words string
}

func (e *NoRoom) Error() string { return e.Words }

// PlanMIG finds slices for all wants on one card, or says which of them has none and why.
//
// It never touches a slice that is busy or cordoned, and finds a plan whenever there is
// one. Among the plans that there are it takes the one that leaves room for the most of
// what is expected, then removes the fewest idle slices, gives the least beyond what is
// asked for, makes the fewest new ones, and leaves the most room for what nobody has asked
// for yet. The same question has the same answer.
func PlanMIG(m *api.MIG, wants, expected []Want) (Plan, error) {
	if err := api.CheckMIG(m); err != nil {
		return Plan{}, err
	}
	if len(wants) > maxWants || len(expected) > maxWants {
		return Plan{}, api.Errorf(api.TooLarge, "%d slices cannot be asked of one card", max(len(wants), len(expected)))
	}
	c := newCard(m)
	level := []node{{parent: -1, slot: -1}}
	levels := [][]node{level}
	for i, w := range wants {
		if level = c.grow(level, c.slotsFor(w)); len(level) == 0 {
			return Plan{}, &NoRoom{Want: i, Words: c.whyNot(wants, i)}
		}
		levels = append(levels, level)
	}
	best, leaf := cost{}, -1
	fits := map[state]int{}
	for i, n := range level {
		if k := c.cost(n, len(wants), expected, fits); leaf < 0 || k.compare(best) < 0 {
			best, leaf = k, i
		}
	}
	return c.plan(levels, leaf, best, len(expected)), nil
}

// maxWants bounds the work: no card has more than 8 slices.
const maxWants = 64

// card is what a plan is made from.
type card struct {
	mig      *api.MIG
	profiles []api.MIGProfile // the smallest first
	held     uint64           // memory slices that may not be touched
	used     []uint8          // of each profile, slices that may not be touched
	scarce   []bool           // profiles of which fewer may be there than have a place
	slots    []slot
	idle     []api.MIGInstance
}

// slot is one slice that the card could have.
type slot struct {
	profile int
	at      api.MIGPlacement
	mask    uint64
	idle    int // index in card.idle when it is there and idle; else -1
	waste   int
}

// maxScarce is how many scarce profiles a state counts. A card with more of them (none is
// known) loses nothing but that plans past it might break the driver's limit and be refused by it.
const maxScarce = 8

// state is all that later choices depend on.
type state struct {
	mask   uint64           // memory slices taken by wants
	reused uint64           // idle slices that are given
	counts [maxScarce]uint8 // of each scarce profile, how many are given
}

// node is one way to get to a state, the one that gives the least beyond what was asked.
type node struct {
	state
	waste        int
	parent, slot int
}

func newCard(m *api.MIG) *card {
	c := &card{mig: m, profiles: slices.Clone(m.Profiles)}
	slices.SortStableFunc(c.profiles, func(a, b api.MIGProfile) int {
		return cmp.Or(cmp.Compare(a.Slices, b.Slices), cmp.Compare(a.MemoryMiB, b.MemoryMiB), cmp.Compare(b.Max, a.Max), cmp.Compare(a.ID, b.ID))
	})
	c.used, c.scarce = make([]uint8, len(c.profiles)), make([]bool, len(c.profiles))
	for _, i := range m.Instances {
		if i.Busy || i.Cordoned != "" { // check: busy
			c.held |= i.Placement.Mask()
			if p := c.profile(i.Profile); p >= 0 {
				c.used[p]++
			}
			continue
		}
		c.idle = append(c.idle, i)
	}
	n := 0
	for _, p := range c.profiles {
		n += len(p.Placements)
	}
	c.slots = make([]slot, 0, n)
	slices.SortFunc(c.idle, func(a, b api.MIGInstance) int { return cmp.Compare(a.ID, b.ID) })
	for p := range c.profiles {
		c.scarce[p] = c.profiles[p].Max < mostDisjoint(c.profiles[p].Placements)
		c.addSlots(p)
	}
	return c
}

func (c *card) addSlots(p int) {
	prof := c.profiles[p]
	for i, at := range inOrder(prof.Placements, byStart) {
		if n := len(c.slots); i > 0 && n > 0 && c.slots[n-1].profile == p && c.slots[n-1].at == at {
			continue // told twice
		}
		if at.Mask()&c.held != 0 { // check: overlap
			continue
		}
		// A slice without a compute instance is what a crash left half made: it gives way.
		idle := slices.IndexFunc(c.idle, func(i api.MIGInstance) bool { return i.Profile == prof.ID && i.Placement == at && i.Compute >= 0 })
		c.slots = append(c.slots, slot{profile: p, at: at, mask: at.Mask(), idle: idle, waste: at.Size*maxWants + prof.Slices})
	}
}

func (c *card) profile(id int) int {
	return slices.IndexFunc(c.profiles, func(p api.MIGProfile) bool { return p.ID == id })
}

func byStart(a, b api.MIGPlacement) int {
	return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Size, b.Size))
}

func byEnd(a, b api.MIGPlacement) int { return cmp.Compare(a.Start+a.Size, b.Start+b.Size) }

// inOrder copies only what is not in order: cards tell their places so.
func inOrder(places []api.MIGPlacement, order func(a, b api.MIGPlacement) int) []api.MIGPlacement {
	if !slices.IsSortedFunc(places, order) {
		places = slices.Clone(places)
		slices.SortFunc(places, order)
	}
	return places
}

// mostDisjoint is how many placements have no slice in common: the earliest end first.
func mostDisjoint(places []api.MIGPlacement) (n int) {
	end := 0
	for _, at := range inOrder(places, byEnd) {
		if at.Start >= end {
			n, end = n+1, at.Start+at.Size
		}
	}
	return n
}

// count is where a scarce profile is counted; -1 for the others.
func (c *card) count(p int) int {
	if !c.scarce[p] {
		return -1
	}
	n := 0
	for i := range p {
		if c.scarce[i] {
			n++
		}
	}
	if n >= maxScarce {
		return -1
	}
	return n
}

// slotsFor lists the slots that a want could be met by, whoever else wants them.
func (c *card) slotsFor(w Want) []int {
	list := make([]int, 0, len(c.slots))
	for i, s := range c.slots {
		if suits(c.profiles[s.profile], w) {
			list = append(list, i)
		}
	}
	return list
}

func suits(p api.MIGProfile, w Want) bool {
	if w.Profile != "" {
		return p.Name == w.Profile
	}
	return p.MemoryMiB >= w.MemoryMiB && p.Slices >= w.Slices
}

// grow gives one more want a slot, in every way that leads to another state.
func (c *card) grow(level []node, slots []int) []node {
	next := make([]node, 0, len(slots))
	index := make(map[state]int, len(slots))
	for from, n := range level {
		for _, i := range slots {
			s := c.slots[i]
			if n.mask&s.mask != 0 {
				continue
			}
			to := node{state: n.state, waste: n.waste + s.waste, parent: from, slot: i}
			if k := c.count(s.profile); k >= 0 {
				if int(c.used[s.profile])+int(n.counts[k]) >= c.profiles[s.profile].Max { // check: limit
					continue
				}
				to.counts[k]++
			}
			to.mask |= s.mask
			if s.idle >= 0 {
				to.reused |= 1 << s.idle
			}
			if at, ok := index[to.state]; !ok {
				index[to.state] = len(next)
				next = append(next, to)
			} else if to.waste < next[at].waste {
				next[at] = to
			}
		}
	}
	return next
}

// cost is what a plan is judged by, the weightiest first; less is better.
type cost struct {
	missed, destroyed, waste, created int
	lost, closed                      int // profiles, and places of profiles, that no longer find room
}

func (a cost) compare(b cost) int {
	return cmp.Or(cmp.Compare(a.missed, b.missed), cmp.Compare(a.destroyed, b.destroyed), cmp.Compare(a.waste, b.waste),
		cmp.Compare(a.created, b.created), cmp.Compare(a.lost, b.lost), cmp.Compare(a.closed, b.closed))
}

func (c *card) cost(n node, wants int, expected []Want, fits map[state]int) cost {
	k := cost{waste: n.waste, created: wants - bits.OnesCount64(n.reused), destroyed: bits.OnesCount64(c.doomed(n.state))}
	if len(expected) > 0 {
		after := n.state
		after.reused = 0
		fit, ok := fits[after]
		if !ok {
			fit = c.fit(after, expected)
			fits[after] = fit
		}
		k.missed = len(expected) - fit
	}
	k.lost, k.closed = c.room(n.state)
	return k
}

// doomed are the idle slices that must go: those that lie where something else comes to be,
// and those of which too many would be there.
func (c *card) doomed(s state) (gone uint64) {
	for i, inst := range c.idle {
		if s.reused&(1<<i) == 0 && inst.Placement.Mask()&s.mask != 0 {
			gone |= 1 << i
		}
	}
	for p := range c.profiles {
		k := c.count(p)
		if k < 0 || s.counts[k] == 0 { // what nobody is given stays as it was
			continue
		}
		there := int(c.used[p]) + int(s.counts[k])
		for i := range c.idle {
			if c.idle[i].Profile != c.profiles[p].ID || (s.reused|gone)&(1<<i) != 0 {
				continue
			}
			if there++; there > c.profiles[p].Max {
				gone |= 1 << i
			}
		}
	}
	return gone
}

// fit is how many of the expected find room in a state; idle slices give way.
func (c *card) fit(s state, expected []Want) int {
	best := map[state]int{s: 0}
	for _, w := range expected {
		slots := c.slotsFor(w)
		next := make(map[state]int, len(best))
		for at, n := range best {
			next[at] = max(next[at], n)
			for _, to := range c.grow([]node{{state: at}}, slots) {
				to.reused = 0
				next[to.state] = max(next[to.state], n+1)
			}
		}
		best = next
	}
	most := 0
	for _, n := range best {
		most = max(most, n)
	}
	return most
}

// room counts what can no longer be made once a state is reached: profiles without any place,
// and places of profiles.
func (c *card) room(s state) (lost, closed int) {
	for p, prof := range c.profiles {
		open := 0
		k := c.count(p)
		if k < 0 || int(c.used[p])+int(s.counts[k]) < prof.Max {
			for _, at := range prof.Placements {
				if at.Mask()&(c.held|s.mask) == 0 {
					open++
				}
			}
		}
		if open == 0 {
			lost++
		}
		closed += len(prof.Placements) - open
	}
	return lost, closed
}

// plan reads the way to a leaf backwards.
func (c *card) plan(levels [][]node, leaf int, k cost, expected int) Plan {
	out := Plan{Expected: expected - k.missed}
	end := levels[len(levels)-1][leaf]
	for i := len(levels) - 1; i > 0; i-- {
		n := levels[i][leaf]
		leaf = n.parent
		s := c.slots[n.slot]
		at := Place{Profile: c.profiles[s.profile].ID, Name: c.profiles[s.profile].Name, At: s.at, Instance: -1}
		if s.idle >= 0 {
			at.Instance = c.idle[s.idle].ID
		}
		out.Places = append(out.Places, at)
	}
	slices.Reverse(out.Places)
	gone := c.doomed(end.state)
	for i, inst := range c.idle {
		if gone&(1<<i) != 0 {
			out.Steps = append(out.Steps, Step{OpDestroy, inst.ID, inst.Profile, inst.Name, inst.Placement})
		}
	}
	made := len(out.Steps)
	for _, at := range out.Places {
		if at.Instance < 0 {
			out.Steps = append(out.Steps, Step{OpCreate, -1, at.Profile, at.Name, at.At})
		}
	}
	slices.SortFunc(out.Steps[made:], func(a, b Step) int { return cmp.Compare(a.At.Start, b.At.Start) })
	return out
}

// whyNot says what stands in the way of a want, for people.
func (c *card) whyNot(wants []Want, i int) string {
	w := wants[i]
	who := w.Who
	if who != "" {
		who += ": "
	}
	var suitable, names []string
	placed := false
	for _, p := range c.profiles {
		names = append(names, p.Name)
		if suits(p, w) {
			suitable = append(suitable, p.Name)
			placed = placed || len(p.Placements) > 0
		}
	}
	switch {
	case len(names) == 0:
		return who + "the card tells of no slices; MIG may be off"
	case len(suitable) == 0:
		return fmt.Sprintf("%sthe card has no %s; it can be cut into %s", who, w, strings.Join(names, ", "))
	case !placed:
		return fmt.Sprintf("%sthe card tells no places for %s while MIG is off", who, strings.Join(suitable, ", "))
	case len(c.grow([]node{{}}, c.slotsFor(w))) > 0:
		return fmt.Sprintf("%sno room for %s beside the %d asked for before it, without moving %s", who, w, i, c.holders())
	}
	return fmt.Sprintf("%sno room for %s without moving %s", who, w, c.holders())
}

// holders names the slices that stay where they are.
func (c *card) holders() string {
	var list []string
	for _, i := range c.mig.Instances {
		switch {
		case i.Cordoned != "":
			list = append(list, fmt.Sprintf("%s at %s (cordoned: %s)", i.Name, i.Placement, i.Cordoned))
		case i.Busy:
			list = append(list, fmt.Sprintf("%s at %s (busy)", i.Name, i.Placement))
		}
	}
	if len(list) == 0 {
		return "anything: the card is too small for all of it"
	}
	return strings.Join(list, ", ")
}
