// Package claim answers: which devices of a box answer the claims of a service?
//
// The box decides by it what a service gets, and the core whether a box could give it,
// so that both say the same and in the same words. It knows no hardware and keeps nothing.
package claim

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/natural"
)

// Owner is a service that holds devices.
type Owner struct{ App, Service string }

func (o Owner) String() string { return o.App + "/" + o.Service }

// Grant is one device, or a part of one, that answers one claim of its owner.
type Grant struct {
	// Claim is the index of the claim in the service's list.
	Claim int            `json:"claim"`
	Class api.ClaimClass `json:"class"`
	ID    string         `json:"id"`
	// Units is how much of a counted device it is; else 1.
	Units int `json:"units"`
}

// Missing is why claims cannot be met. Its text is for people.
type Missing struct {
	Claim int
	Words string
}

func (m *Missing) Error() string { return m.Words }

type deviceKey struct {
	class api.ClaimClass
	id    string
}

// Allocate answers all claims of owner, or none: a plain function of what the box has, who
// holds what, and what is wanted.
//
// What owner holds already stays with it wherever it still answers its claim, so that the
// answer to the same question is the same; what others hold is theirs. It finds an answer
// whenever there is one, and prefers devices near one NUMA node, then those that can do the
// least beyond what was asked.
func Allocate(devices []api.Claimable, held map[Owner][]Grant, owner Owner, wanted []api.Claim) ([]Grant, error) {
	t := newTable(devices, held, owner)
	mine := t.kept(held[owner], wanted)
	nodes := t.nodes(mine, wanted)
	var first error
	for _, node := range nodes {
		got, err := t.meet(wanted, mine, node)
		if err == nil {
			return got, nil
		}
		// The last node is "any", whose words are about the devices themselves.
		first = err
	}
	// What is held may stand in the way of an answer that is there without it.
	if len(mine) > 0 {
		for _, node := range t.nodes(nil, wanted) {
			if got, err := t.meet(wanted, nil, node); err == nil {
				return got, nil
			}
		}
	}
	return nil, first
}

// table is what is free for one owner.
type table struct {
	devices []api.Claimable
	index   map[deviceKey]int
	free    []int // units of each that are not others'
	shares  []int // of each, how many others may still hold it
}

func newTable(devices []api.Claimable, held map[Owner][]Grant, owner Owner) *table {
	t := &table{devices: slices.Clone(devices), index: map[deviceKey]int{}}
	slices.SortFunc(t.devices, func(a, b api.Claimable) int {
		return cmp.Or(strings.Compare(string(a.Class), string(b.Class)), natural.Compare(a.ID, b.ID))
	})
	t.devices = slices.CompactFunc(t.devices, func(a, b api.Claimable) bool { return a.Class == b.Class && a.ID == b.ID })
	t.free, t.shares = make([]int, len(t.devices)), make([]int, len(t.devices))
	for i, d := range t.devices {
		t.index[deviceKey{d.Class, d.ID}] = i
		t.free[i], t.shares[i] = max(d.Units, 1), max(d.Shares, 1)
	}
	mine, later := make([]int, len(t.devices)), make([]int, len(t.devices))
	for other, grants := range held {
		for _, g := range grants {
			i, ok := t.index[deviceKey{g.Class, g.ID}]
			switch {
			case !ok: // it is gone; its owner hears of that
			case !counted(&t.devices[i]):
				if other != owner {
					t.shares[i]--
				}
			case other == owner:
				mine[i] += g.Units
			case CompareOwners(other, owner) < 0:
				t.free[i] -= g.Units
			default:
				later[i] += g.Units
			}
		}
	}
	for i := range t.free {
		// Where there is less than is held, as after a start with less memory, those who come
		// first by name have theirs, and the others wait.
		t.free[i] -= min(later[i], max(t.free[i]-mine[i], 0))
	}
	return t
}

// counted tells that a device is held by parts.
func counted(d *api.Claimable) bool { return d.Class == api.ClaimHugePages }

func (t *table) available(i int) bool {
	return t.devices[i].Fault == "" && t.free[i] > 0 && t.shares[i] > 0
}

// kept are the grants that still answer the claim of their index, as far as they are there.
func (t *table) kept(grants []Grant, wanted []api.Claim) []Grant {
	var out []Grant
	used := make([]int, len(t.devices))
	have := make([]int, len(wanted))
	for _, g := range grants {
		i, ok := t.index[deviceKey{g.Class, g.ID}]
		if !ok || g.Claim < 0 || g.Claim >= len(wanted) || !t.available(i) {
			continue
		}
		c := &wanted[g.Claim]
		g.Units = min(g.Units, t.most(i)-used[i])
		if c.Count != api.AllOfThem {
			g.Units = min(g.Units, c.Count-have[g.Claim])
		}
		if g.Units < 1 || c.Fits(&t.devices[i]) != "" {
			continue
		}
		used[i] += g.Units
		have[g.Claim] += g.Units
		out = append(out, g)
	}
	return out
}

const anyNode = -2

// nodes lists the NUMA nodes to try, anyNode last unless a claim insists on one node for
// all. What is held already comes first.
func (t *table) nodes(mine []Grant, wanted []api.Claim) []int {
	near := map[int]int{}
	for _, g := range mine {
		if i, ok := t.index[deviceKey{g.Class, g.ID}]; ok && t.devices[i].NUMA >= 0 {
			near[t.devices[i].NUMA]++
		}
	}
	all := map[int]bool{}
	for i := range t.devices {
		if t.devices[i].NUMA >= 0 && slices.ContainsFunc(wanted, func(c api.Claim) bool { return c.Class == t.devices[i].Class }) {
			all[t.devices[i].NUMA] = true
		}
	}
	list := slices.SortedFunc(maps.Keys(all), func(a, b int) int { return cmp.Or(near[b]-near[a], a-b) })
	insist := slices.ContainsFunc(wanted, func(c api.Claim) bool { return c.Options["numa"] == "same" })
	if !insist || len(list) == 0 {
		list = append(list, anyNode)
	}
	return list
}

// meet answers all claims with devices near one node.
func (t *table) meet(wanted []api.Claim, mine []Grant, node int) ([]Grant, error) {
	f := flow{of: make([]map[int]int, len(wanted)), fits: make([][]int, len(wanted)), used: map[int]int{}, table: t}
	for n := range wanted {
		f.of[n], f.fits[n] = map[int]int{}, t.fits(&wanted[n], node)
	}
	have := make([]int, len(wanted))
	for _, g := range mine {
		i := t.index[deviceKey{g.Class, g.ID}]
		f.move(g.Claim, i, g.Units)
		have[g.Claim] += g.Units
	}
	for n := range wanted {
		// Of a claim of all there are, one device is a need and the others are what is left.
		for need := max(wanted[n].Count, 1); have[n] < need; {
			d := f.give(n, need-have[n], map[int]bool{})
			if d == 0 {
				return nil, t.missing(wanted, n, node)
			}
			have[n] += d
		}
	}
	for n := range wanted {
		if wanted[n].Count == api.AllOfThem {
			for _, i := range f.fits[n] {
				f.move(n, i, f.room(i))
			}
		}
	}
	return f.grants(), nil
}

// flow gives units of devices to claims. It is the textbook's way to the greatest flow
// (Ford and Fulkerson): what an earlier claim chose yields where a later one has no choice.
type flow struct {
	*table
	fits [][]int       // of each claim, devices that answer it, the best first
	of   []map[int]int // of each claim, units by device
	used map[int]int   // units by device
}

func (f *flow) move(n, i, units int) {
	f.of[n][i] += units
	f.used[i] += units
	if f.of[n][i] == 0 {
		delete(f.of[n], i)
	}
}

// most is how many units of a device one owner may hold.
func (t *table) most(i int) int {
	if counted(&t.devices[i]) {
		return t.free[i]
	}
	return 1
}

func (f *flow) room(i int) int { return f.most(i) - f.used[i] }

// give finds up to units for claim n and tells how many it found: of what is free, or else
// of what another claim can do without.
func (f *flow) give(n, units int, seen map[int]bool) int {
	for _, i := range f.fits[n] {
		if d := min(units, f.room(i)); d > 0 && !seen[i] {
			f.move(n, i, d)
			return d
		}
	}
	for _, i := range f.fits[n] {
		if seen[i] {
			continue
		}
		seen[i] = true
		for m := range f.of {
			if m == n || f.of[m][i] == 0 {
				continue
			}
			if d := f.give(m, min(units, f.of[m][i]), seen); d > 0 {
				f.move(m, i, -d)
				f.move(n, i, d)
				return d
			}
		}
	}
	return 0
}

func (f *flow) grants() []Grant {
	var out []Grant
	for n := range f.of {
		for i, units := range f.of[n] {
			out = append(out, Grant{Claim: n, Class: f.devices[i].Class, ID: f.devices[i].ID, Units: units})
		}
	}
	slices.SortFunc(out, func(a, b Grant) int { return cmp.Or(a.Claim-b.Claim, natural.Compare(a.ID, b.ID)) })
	return out
}

// fits lists the devices that answer a claim and are free, the best first: what can do the
// least, then the name.
func (t *table) fits(c *api.Claim, node int) []int {
	var out []int
	for i := range t.devices {
		d := &t.devices[i]
		if t.available(i) && (node == anyNode || d.NUMA < 0 || d.NUMA == node) && c.Fits(d) == "" {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(power(&t.devices[a]), power(&t.devices[b])) })
	return out
}

// power orders devices by what they can do, so that the least that suffices is taken: a
// right that nobody asked for weighs more than any size.
func power(d *api.Claimable) int {
	n := 0
	for i, fact := range []string{"rdma", "trust"} {
		if d.Facts[fact] == "true" {
			n += 1 << (60 + i)
		}
	}
	for _, fact := range []string{"memory", "speed"} {
		v, _ := strconv.Atoi(d.Facts[fact])
		n += v
	}
	return n
}

// missing says what hinders a claim: how many would fit, who holds them, and what is wrong
// with the nearest others.
func (t *table) missing(wanted []api.Claim, n, node int) error {
	c := &wanted[n]
	var fit, busy, units int
	reasons := map[string]int{}
	for i := range t.devices {
		d := &t.devices[i]
		if d.Class != c.Class {
			continue
		}
		why := c.Fits(d)
		switch {
		case why != "":
			reasons[why]++
		case d.Fault != "":
			reasons[d.Fault]++
		case node != anyNode && d.NUMA >= 0 && d.NUMA != node:
			reasons[fmt.Sprintf("it is near NUMA node %d", d.NUMA)]++
		case !t.available(i):
			busy++
		default:
			fit++
			units += t.free[i]
		}
	}
	words := fmt.Sprintf("%s is wanted; ", c)
	switch {
	case fit+busy+len(reasons) == 0:
		words += fmt.Sprintf("this box has no %s", c.Class)
	case c.Class == api.ClaimHugePages:
		words += fmt.Sprintf("%d pages are free", units)
	default:
		words += fmt.Sprintf("%d free, %d held by others", fit, busy)
	}
	for _, why := range slices.SortedFunc(maps.Keys(reasons), func(a, b string) int { return cmp.Or(reasons[b]-reasons[a], strings.Compare(a, b)) })[:min(len(reasons), 3)] {
		words += fmt.Sprintf("; of %d others %s", reasons[why], why)
	}
	return &Missing{Claim: n, Words: words}
}

// CompareOwners orders by app, then service.
func CompareOwners(a, b Owner) int {
	return cmp.Or(strings.Compare(a.App, b.App), strings.Compare(a.Service, b.Service))
}
