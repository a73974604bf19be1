// Package insight answers: what went wrong in the tree, and what of it is one and the same?
//
// Devices that are away are explained by the highest link that can explain them, and what
// devices found odd about themselves while it was cut is explained by it, too. What remains
// is an incident of its own. The decision is pure; Room does it.
package insight

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Node is a device as incidents are concerned with it.
type Node struct {
	ID     api.DeviceID
	Key    api.Key
	Site   string
	Parent api.DeviceID // zero is the core
	Online bool
	Seen   time.Time // zero: never
}

// Cut is a link that nothing comes through.
type Cut struct {
	Child, Parent api.DeviceID // the parent's zero is the core
	Since         time.Time    // when the child was last heard of
	Devices       []api.DeviceID
}

// Cuts explains each device that is away by the highest link above it below which all are away
// on the way down to it. A cut counts once its child was not heard of for the time of patience:
// before that, the link above may be found to be cut as well.
func Cuts(nodes map[api.DeviceID]Node, now time.Time, patience time.Duration) []Cut {
	below := map[api.DeviceID][]api.DeviceID{}
	for id, n := range nodes {
		if away(n) {
			top := highest(nodes, id)
			below[top] = append(below[top], id)
		}
	}
	var cuts []Cut
	for top, devices := range below {
		n := nodes[top]
		if now.Sub(n.Seen) < patience {
			continue
		}
		slices.SortFunc(devices, compareIDs)
		cuts = append(cuts, Cut{Child: top, Parent: n.Parent, Since: n.Seen, Devices: devices})
	}
	slices.SortFunc(cuts, func(a, b Cut) int { return compareIDs(a.Child, b.Child) })
	return cuts
}

func compareIDs(a, b api.DeviceID) int { return slices.Compare(a[:], b[:]) }

// away tells that a device was there and is not. One that never was is missed by nobody.
func away(n Node) bool { return !n.Online && !n.Seen.IsZero() }

// highest goes up from a device while what is above is away as well. In a ring, which forged or old
// attachments can make, it is the one with the smallest id.
func highest(nodes map[api.DeviceID]Node, id api.DeviceID) api.DeviceID {
	walked := map[api.DeviceID]bool{}
	for {
		walked[id] = true
		n := nodes[id]
		above, known := nodes[n.Parent]
		if n.Parent.IsZero() || !known || !away(above) {
			return id
		}
		if walked[n.Parent] {
			return smallest(nodes, id)
		}
		id = n.Parent
	}
}

func smallest(nodes map[api.DeviceID]Node, in api.DeviceID) api.DeviceID {
	least := in
	for id := nodes[in].Parent; id != in; id = nodes[id].Parent {
		if compareIDs(id, least) < 0 {
			least = id
		}
	}
	return least
}

// Finding is what a device found odd about itself.
type Finding struct {
	Device           api.DeviceID
	At               api.RecordPosition
	Time             time.Time // by the device's clock
	Subject, Message string
}

// Incident is one as it is stored.
type Incident struct {
	Key    api.Key
	Spec   api.IncidentSpec
	Status api.IncidentStatus
}

// Rules are the times by which the room decides.
type Rules struct {
	// Patience is how long a device is away before that is an incident.
	Patience time.Duration
	// Quiet is how long nothing more is found before an anomaly is over.
	Quiet time.Duration
	// Keep is how long what is closed is kept.
	Keep time.Duration
}

// around is how much earlier and later than a cut what devices find may be due to it: they notice
// before the core does, and catch up when it is mended.
const around = 5 * time.Minute

// Plan is what is to be done: incidents to write, and names to delete.
type Plan struct {
	Create, Update []Incident
	Delete         []api.Key
}

// Decide says what becomes of the incidents, given the tree, and what was found since the last time.
// Of the same state it decides the same again, and of the state that it leads to, nothing.
func Decide(nodes map[api.DeviceID]Node, incidents map[api.Key]Incident, found []Finding, now time.Time, rules Rules) Plan {
	d := decision{nodes: nodes, now: now, rules: rules, is: maps.Clone(incidents), was: incidents}
	if d.is == nil {
		d.is = map[api.Key]Incident{}
	}
	d.closeByWord()
	cuts := Cuts(nodes, now, rules.Patience)
	for _, c := range cuts {
		d.cut(c)
	}
	d.mended(cuts)
	for _, f := range found {
		d.found(f)
	}
	d.quiet()
	return d.plan()
}

type decision struct {
	nodes   map[api.DeviceID]Node
	now     time.Time
	rules   Rules
	is, was map[api.Key]Incident
}

func (d *decision) shut(i Incident, why string) {
	at := d.now.UTC()
	i.Status.State, i.Status.Closed, i.Status.Why = api.IncidentClosed, &at, why
	d.is[i.Key] = i
}

func (d *decision) closeByWord() {
	for _, i := range d.sorted() {
		if i.Spec.Closed && i.Status.State == api.IncidentOpen {
			d.shut(i, "by a person")
		}
	}
}

// sorted gives the incidents in one order, so that the same state has the same plan.
func (d *decision) sorted() []Incident {
	return slices.SortedFunc(maps.Values(d.is), func(a, b Incident) int {
		return cmp.Or(cmp.Compare(a.Key.Tenant, b.Key.Tenant), cmp.Compare(a.Key.Name, b.Key.Name))
	})
}

// mended closes cuts of which the child came back, is gone, or is explained by another cut.
func (d *decision) mended(cuts []Cut) {
	by := map[api.DeviceID]api.DeviceID{} // the child of the cut that explains a device
	for _, c := range cuts {
		for _, id := range c.Devices {
			by[id] = c.Child
		}
	}
	for _, i := range d.sorted() {
		if i.Status.Cause != api.CauseLink || i.Status.State != api.IncidentOpen || i.Status.Link == nil {
			continue
		}
		child := i.Status.Link.ID
		n, known := d.nodes[child]
		switch top, explained := by[child]; {
		case !known:
			d.shut(i, "the device is no longer there")
		case n.Online:
			d.shut(i, "it is heard of again")
		case explained && top != child:
			d.shut(i, "it is part of a cut further up: "+d.link(i.Key.Tenant, Cut{Child: top, Parent: d.nodes[top].Parent}))
		}
	}
}

// quiet closes anomalies of which no more was heard, and drops what was closed long ago.
func (d *decision) quiet() {
	for _, i := range d.sorted() {
		switch s := &i.Status; {
		case s.State == api.IncidentClosed && s.Closed != nil && d.now.Sub(*s.Closed) >= d.rules.Keep && !d.standing(i):
			delete(d.is, i.Key)
		case s.State == api.IncidentOpen && s.Cause == api.CauseAnomaly && d.now.Sub(s.Last) >= d.rules.Quiet:
			d.shut(i, "no more of it was found")
		}
	}
}

// standing tells of what a person closed and still is so: without it, it would be raised again.
func (d *decision) standing(i Incident) bool {
	return i.Status.Link != nil && away(d.nodes[i.Status.Link.ID])
}

func (d *decision) plan() (p Plan) {
	for _, i := range d.sorted() {
		old, known := d.was[i.Key]
		switch {
		case !known:
			p.Create = append(p.Create, i)
		case !same(old.Status, i.Status):
			p.Update = append(p.Update, i)
		}
	}
	for key := range d.was {
		if _, kept := d.is[key]; !kept {
			p.Delete = append(p.Delete, key)
		}
	}
	slices.SortFunc(p.Delete, func(a, b api.Key) int { return cmp.Compare(a.String(), b.String()) })
	return p
}
