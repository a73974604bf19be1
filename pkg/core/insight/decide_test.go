package insight

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var (
	now   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rules = Rules{Patience: 2 * time.Minute, Quiet: 24 * time.Hour, Keep: 30 * 24 * time.Hour}
	core  = api.DeviceID{}
)

func id(n int) api.DeviceID { return api.DeviceID{1, byte(n >> 8), byte(n)} }

// tree draws devices of up to three tenants, each below an earlier one or the core; all are there.
func tree(t *rapid.T) map[api.DeviceID]Node {
	nodes := map[api.DeviceID]Node{}
	for n := range rapid.IntRange(1, 25).Draw(t, "devices") {
		tenant := rapid.SampledFrom([]string{"acme", "beta", "gamma"}).Draw(t, "tenant")
		parent := core
		if p := rapid.IntRange(-1, n-1).Draw(t, "parent"); p >= 0 {
			parent = id(p)
		}
		nodes[id(n)] = Node{ID: id(n), Key: api.Key{Tenant: tenant, Kind: api.KindDevice, Name: fmt.Sprintf("%s-box-%d", tenant, n)}, Site: rapid.SampledFrom([]string{"", tenant + "-hall", tenant + "-hill"}).Draw(t, "site"), Parent: parent, Online: true, Seen: now}
	}
	return nodes
}

func under(nodes map[api.DeviceID]Node, top api.DeviceID) (all []api.DeviceID) {
	for n := range nodes {
		for at := n; ; at = nodes[at].Parent {
			if at == top {
				all = append(all, n)
				break
			}
			if _, known := nodes[at]; !known {
				break
			}
		}
	}
	slices.SortFunc(all, compareIDs)
	return all
}

// lose has devices away since a time.
func lose(nodes map[api.DeviceID]Node, ids []api.DeviceID, since time.Time) {
	for _, d := range ids {
		n := nodes[d]
		n.Online, n.Seen = false, since
		nodes[d] = n
	}
}

// does brings incidents to what a plan says.
func does(is map[api.Key]Incident, p Plan) map[api.Key]Incident {
	out := map[api.Key]Incident{}
	for k, i := range is {
		out[k] = i
	}
	for _, i := range slices.Concat(p.Create, p.Update) {
		out[i.Key] = i
	}
	for _, k := range p.Delete {
		delete(out, k)
	}
	return out
}

// One link that is cut is one cut, which names the link and all that is below it.
func TestOneCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := tree(t)
		child := id(rapid.IntRange(0, len(nodes)-1).Draw(t, "cut"))
		behind := under(nodes, child)
		lose(nodes, behind, now.Add(-3*time.Minute))
		cuts := Cuts(nodes, now, rules.Patience)
		if len(cuts) != 1 || cuts[0].Child != child || cuts[0].Parent != nodes[child].Parent || !slices.Equal(cuts[0].Devices, behind) {
			t.Fatalf("cuts are %+v, want one above %v with %v", cuts, child, behind)
		}
		if early := Cuts(nodes, now.Add(-2*time.Minute), rules.Patience); len(early) != 0 {
			t.Fatalf("cuts before patience ends: %+v", early)
		}
		tenants := map[string]bool{}
		for _, d := range behind {
			tenants[nodes[d].Key.Tenant] = true
		}
		plan := Decide(nodes, nil, nil, now, rules)
		if len(plan.Create) != len(tenants) || len(plan.Update)+len(plan.Delete) > 0 {
			t.Fatalf("one cut for %d tenants is the plan %+v", len(tenants), plan)
		}
		for _, i := range plan.Create {
			if i.Key.Tenant == nodes[child].Key.Tenant && i.Status.Link.Child != nodes[child].Key.Name {
				t.Fatalf("the link's child is not named: %+v", i)
			}
		}
	})
}

// Whatever is away is in one cut, and nothing else is; what is above a cut is there.
func TestEachIsExplainedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := tree(t)
		for k := range len(nodes) {
			n := id(k)
			switch rapid.IntRange(0, 3).Draw(t, "is") {
			case 0:
				lose(nodes, []api.DeviceID{n}, now.Add(-time.Hour))
			case 1:
				lose(nodes, []api.DeviceID{n}, time.Time{}) // never was there
			}
		}
		if rapid.Bool().Draw(t, "ring") {
			a, b := nodes[id(0)], nodes[id(len(nodes)-1)]
			a.Parent = b.ID
			nodes[a.ID] = a
		}
		seen := map[api.DeviceID]api.DeviceID{}
		tops := map[api.DeviceID]bool{}
		for _, c := range Cuts(nodes, now, rules.Patience) {
			tops[c.Child] = true
			for _, d := range c.Devices {
				if other, twice := seen[d]; twice {
					t.Fatalf("%v is in the cuts above %v and %v", d, other, c.Child)
				}
				seen[d] = c.Child
			}
		}
		for d, n := range nodes {
			if _, in := seen[d]; in != away(n) {
				t.Fatalf("%+v: in a cut %v", n, in)
			}
			above, known := nodes[n.Parent]
			if away(n) && known && away(above) && seen[d] != seen[n.Parent] {
				t.Fatalf("%v and its parent are away, and in two cuts", d)
			}
			if tops[d] && known && away(above) && seen[n.Parent] != d {
				t.Fatalf("the cut above %v could be explained further up", d)
			}
		}
	})
}

// However devices come and go and tell, the plan leads to a state of which nothing more is to be done,
// no tenant reads a name of another's, and when all is back all is closed.
func TestDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, is, at := tree(t), map[api.Key]Incident{}, now
		seq := uint64(0)
		for range rapid.IntRange(1, 6).Draw(t, "turns") {
			at = at.Add(time.Duration(rapid.IntRange(1, 5000).Draw(t, "minutes")) * time.Minute)
			for k := range len(nodes) {
				n := nodes[id(k)]
				if rapid.Bool().Draw(t, "there") {
					n.Online, n.Seen = true, at
				} else if n.Online {
					n.Online, n.Seen = false, at.Add(-time.Duration(rapid.IntRange(0, 10).Draw(t, "ago"))*time.Minute)
				}
				nodes[n.ID] = n
			}
			var found []Finding
			for range rapid.IntRange(0, 3).Draw(t, "findings") {
				seq++
				found = append(found, Finding{Device: id(rapid.IntRange(0, len(nodes)).Draw(t, "of")), At: api.RecordPosition{Epoch: 1, Seq: seq}, Time: at.Add(-time.Duration(rapid.IntRange(0, 60).Draw(t, "found")) * time.Minute), Subject: rapid.SampledFrom([]string{"cpu.busy", "net.sent"}).Draw(t, "subject"), Message: "odd"})
			}
			is = does(is, Decide(nodes, is, found, at, rules))
			if again := Decide(nodes, is, found, at, rules); len(again.Create)+len(again.Update)+len(again.Delete) > 0 {
				t.Fatalf("decided again, with the same findings: %+v", again)
			}
			for key, i := range is {
				text := fmt.Sprintf("%+v %+v", i.Status, i.Status.Link)
				for _, n := range nodes {
					if n.Key.Tenant != key.Tenant && strings.Contains(text, n.Key.Tenant+"-") {
						t.Fatalf("%s reads of %s: %s", key, n.Key.Tenant, text)
					}
				}
			}
			for d, n := range nodes {
				if away(n) && at.Sub(nodes[highest(nodes, d)].Seen) >= rules.Patience && !openFor(is, n) {
					t.Fatalf("%+v is away, and no open incident has it: %+v", n, is)
				}
			}
		}
		for _, n := range nodes {
			n.Online, n.Seen = true, at
			nodes[n.ID] = n
		}
		is = does(is, Decide(nodes, is, nil, at, rules))
		for key, i := range is {
			if i.Status.Cause == api.CauseLink && i.Status.State == api.IncidentOpen {
				t.Fatalf("%s is open, and all is back: %+v", key, i.Status)
			}
		}
		is = does(is, Decide(nodes, is, nil, at.Add(rules.Quiet), rules))
		if is = does(is, Decide(nodes, is, nil, at.Add(rules.Quiet+rules.Keep), rules)); len(is) > 0 {
			t.Fatalf("what is over is kept for ever: %+v", is)
		}
	})
}

func openFor(is map[api.Key]Incident, n Node) bool {
	for key, i := range is {
		if key.Tenant == n.Key.Tenant && i.Status.State == api.IncidentOpen && slices.Contains(i.Status.Devices, n.Key.Name) {
			return true
		}
	}
	return false
}

// line is core - relay - field.
func line() map[api.DeviceID]Node {
	box := func(n int, name string, parent api.DeviceID) Node {
		return Node{ID: id(n), Key: api.Key{Tenant: "acme", Kind: api.KindDevice, Name: name}, Site: "hill", Parent: parent, Online: true, Seen: now}
	}
	return map[api.DeviceID]Node{id(1): box(1, "relay", core), id(2): box(2, "field", id(1))}
}

func only(t *testing.T, is map[api.Key]Incident) Incident {
	t.Helper()
	if len(is) != 1 {
		t.Fatalf("incidents are %+v, want one", is)
	}
	for _, i := range is {
		return i
	}
	panic("unreachable")
}

// A cut explains what devices behind it find odd meanwhile, also where they tell of it once it is mended;
// what is found at other times is an incident of its own, which counts.
func TestCutExplainsFindings(t *testing.T) {
	nodes := line()
	lose(nodes, []api.DeviceID{id(1), id(2)}, now)
	cutAt := now
	is := does(nil, Decide(nodes, nil, nil, now.Add(5*time.Minute), rules))
	if i := only(t, is); i.Status.Message != "the link core - relay is cut, or what is below it is off: nothing comes from 2 devices at 1 site" {
		t.Errorf("it says %q", i.Status.Message)
	}
	back := now.Add(30 * time.Minute)
	for _, n := range nodes {
		n.Online, n.Seen = true, back
		nodes[n.ID] = n
	}
	is = does(is, Decide(nodes, is, nil, back, rules))
	odd := func(seq uint64, at time.Time) []Finding {
		return []Finding{{Device: id(2), At: api.RecordPosition{Epoch: 1, Seq: seq}, Time: at, Subject: "net.sent", Message: "net.sent is 0"}}
	}
	is = does(is, Decide(nodes, is, odd(7, cutAt.Add(time.Minute)), back.Add(time.Minute), rules))
	if i := only(t, is); i.Status.State != api.IncidentClosed || i.Status.Findings != 1 {
		t.Errorf("the cut is %+v", i.Status)
	}
	for _, seq := range []uint64{8, 9, 9} {
		is = does(is, Decide(nodes, is, odd(seq, back.Add(time.Hour)), back.Add(time.Hour), rules))
	}
	open := 0
	for _, i := range is {
		if i.Status.State == api.IncidentOpen {
			if open++; i.Status.Cause != api.CauseAnomaly || i.Status.Message != "net.sent is 0" || i.Status.Findings != 2 || i.Status.Subject != "net.sent" {
				t.Errorf("the anomaly is %+v", i.Status)
			}
		}
	}
	if open != 1 || len(is) != 2 {
		t.Errorf("two findings of one number, after the cut, are %+v", is)
	}
}

// A person's word holds while what they spoke of goes on, and no longer.
func TestClosedByAPerson(t *testing.T) {
	nodes := line()
	lose(nodes, []api.DeviceID{id(2)}, now)
	at := now.Add(5 * time.Minute)
	is := does(nil, Decide(nodes, nil, nil, at, rules))
	i := only(t, is)
	i.Spec.Closed = true
	is[i.Key] = i
	for range 3 {
		at = at.Add(rules.Keep)
		is = does(is, Decide(nodes, is, nil, at, rules))
		if i := only(t, is); i.Status.State != api.IncidentClosed || i.Status.Why != "by a person" {
			t.Fatalf("it is %+v", i.Status)
		}
	}
	lose(nodes, []api.DeviceID{id(2)}, at) // it was there again
	is = does(is, Decide(nodes, is, nil, at.Add(5*time.Minute), rules))
	open := 0
	for _, i := range is {
		if i.Status.State == api.IncidentOpen {
			open++
		}
	}
	if open != 1 {
		t.Errorf("away anew, it is no incident: %+v", is)
	}
}

// A cut further down becomes part of one further up.
func TestCutMovesUp(t *testing.T) {
	nodes := line()
	lose(nodes, []api.DeviceID{id(2)}, now)
	is := does(nil, Decide(nodes, nil, nil, now.Add(5*time.Minute), rules))
	lose(nodes, []api.DeviceID{id(1)}, now.Add(6*time.Minute))
	is = does(is, Decide(nodes, is, nil, now.Add(10*time.Minute), rules))
	var says []string
	for _, i := range is {
		says = append(says, i.Status.State+" "+i.Status.Link.Child+" "+i.Status.Why)
	}
	slices.Sort(says)
	if want := []string{"closed field it is part of a cut further up: link core - relay", "open relay "}; !slices.Equal(says, want) {
		t.Errorf("incidents are %q, want %q", says, want)
	}
}
