package switchdev

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/tests/mutation"
)

func verbs(steps []Step) (out []string) {
	for _, s := range steps {
		out = append(out, string(s.Do))
	}
	return out
}

func TestPlan(t *testing.T) {
	card := func(mode string, ports ...Port) Observed {
		return Observed{Device: Device{Name: "pci/0000:03:00.0", Mode: mode, Inline: "none", Encap: "basic"}, Ports: ports}
	}
	yes := true
	vf := Port{Index: 2, Flavour: VF, Function: 1, MAC: "02:00:00:00:00:01", Can: map[string]bool{"roce": true}}
	sf := Port{Index: 9, Flavour: SF, Function: 88, MAC: "02:00:00:00:00:02", Active: true, Interface: "en9"}
	withRates := card(Switchdev, vf)
	withRates.Rates = []Rate{{Group: "tributary-gold", Max: 5}, {Group: "other", Max: 1}, {Port: 2, Max: 3, Parent: "tributary-gold"}}
	for _, c := range []struct {
		what  string
		have  Observed
		want  Wanted
		steps string
		wait  string
	}{
		{"nothing", card(Legacy), Wanted{}, "", ""},
		{"another mode", card(Legacy), Wanted{Mode: Switchdev}, "mode", ""},
		{"no switch", card(""), Wanted{Mode: Switchdev}, "", "has no switch"},
		{"under users", card(Legacy), Wanted{Mode: Switchdev, InUse: map[string][]string{"pf0vf0": {"web/a"}}}, "", "in use by web/a"},
		{"back, with rates", withRates, Wanted{Mode: Legacy}, "rate, remove group, mode", ""},
		{"a function that is not there", card(Switchdev), Wanted{Functions: []Function{{Port: "pf0vf1"}}}, "", "has no port pf0vf1"},
		{"another address", card(Switchdev, vf), Wanted{Functions: []Function{{Port: "pf0vf1", MAC: "02:00:00:00:00:09"}}}, "mac", ""},
		{"an address under a user", card(Switchdev, vf), Wanted{InUse: map[string][]string{"pf0vf1": {"web/a"}}, Functions: []Function{{Port: "pf0vf1", MAC: "02:00:00:00:00:09"}}}, "", "in use by web/a"},
		{"what it has, under a user", card(Switchdev, vf), Wanted{InUse: map[string][]string{"pf0vf1": {"web/a"}}, Functions: []Function{{Port: "pf0vf1", MAC: "02:00:00:00:00:01"}}}, "", ""},
		{"another ability", card(Switchdev, vf), Wanted{Functions: []Function{{Port: "pf0vf1", Can: map[string]bool{"roce": false}}}}, "ability", ""},
		{"another function's port, of the host's", card(Switchdev, vf), Wanted{Functions: []Function{{Port: "c1pf0vf1"}}}, "", "no port c1pf0vf1"},
		{"one more scalable function", card(Switchdev, vf), Wanted{Functions: []Function{{Port: "pf0sf88"}}}, "add port", ""},
		{"a scalable function that runs, with another address", card(Switchdev, sf), Wanted{Functions: []Function{{Port: "pf0sf88", MAC: "02:00:00:00:00:09", Active: &yes}}}, "deactivate, mac, activate", ""},
		{"one less", card(Switchdev, sf), Wanted{Made: []string{"pf0sf88"}}, "deactivate, remove port", ""},
		{"one that we did not make", card(Switchdev, sf), Wanted{}, "", ""},
		{"one less that is in use", card(Switchdev, sf), Wanted{Made: []string{"pf0sf88"}, InUse: map[string][]string{"pf0sf88": {"web/a"}}}, "", "pf0sf88 of pci/0000:03:00.0 stays: in use by web/a"},
		{"rates", card(Switchdev, vf), Wanted{Functions: []Function{{Port: "pf0vf1", Rate: &FunctionRate{Max: 3, Group: "tributary-gold"}}}, Groups: []Rate{{Group: "gold", Max: 5}}}, "add group, rate", ""},
		{"the same rates", withRates, Wanted{Functions: []Function{{Port: "pf0vf1", Rate: &FunctionRate{Max: 3, Group: "tributary-gold"}}}, Groups: []Rate{{Group: "gold", Max: 5}}}, "", ""},
		{"no group any more", withRates, Wanted{Functions: []Function{{Port: "pf0vf1"}}}, "rate, remove group", ""},
	} {
		steps, waits := Plan(c.have, c.want)
		if got := strings.Join(verbs(steps), ", "); got != c.steps || !strings.Contains(strings.Join(waits, ";"), c.wait) || (c.wait == "") != (len(waits) == 0) {
			t.Errorf("%s: %q %q, want %q %q", c.what, got, waits, c.steps, c.wait)
		}
	}
	got := card(Switchdev, Port{Flavour: Physical, Interface: "up0"}, vf, sf).Representors()
	if fmt.Sprint(got) != "map[p0:up0 pf0sf88:en9 pf0vf1:]" {
		t.Errorf("representors %v", got)
	}
}

// Whatever is wanted of whatever rates there are: carried out, nothing is left to do.
func TestPlanEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Observed{Device: Device{Name: "pci/x", Mode: Switchdev}}
		for i := range 3 {
			o.Ports = append(o.Ports, Port{Index: uint32(i), Flavour: VF, Function: i})
			o.Rates = append(o.Rates, Rate{Port: uint32(i)})
		}
		for range 3 {
			var w Wanted
			names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID[string]).Draw(t, "groups")
			for _, n := range names {
				w.Groups = append(w.Groups, Rate{Group: n, Max: rapid.Uint64Range(0, 2).Draw(t, "max")})
			}
			for i := range 3 {
				f := Function{Port: fmt.Sprintf("pf0vf%d", i), Rate: &FunctionRate{Max: rapid.Uint64Range(0, 2).Draw(t, "max")}}
				if len(names) > 0 && rapid.Bool().Draw(t, "member") {
					f.Rate.Group = groupPrefix + rapid.SampledFrom(names).Draw(t, "group")
				}
				w.Functions = append(w.Functions, f)
			}
			steps, _ := Plan(o, w)
			for _, s := range steps {
				carryOut(t, &o, s)
			}
			if again, waits := Plan(o, w); len(waits) != 0 || len(again) != 0 {
				t.Fatalf("left to do: %v %v", verbs(again), waits)
			}
		}
	})
}

func carryOut(t *rapid.T, o *Observed, s Step) {
	switch s.Do {
	case AddGroup:
		o.Rates = append(o.Rates, s.Rate)
	case RemoveGroup:
		if slices.ContainsFunc(o.Rates, func(r Rate) bool { return r.Parent == s.Rate.Group }) {
			t.Fatalf("group %s goes with members", s.Rate.Group)
		}
		o.Rates = slices.DeleteFunc(o.Rates, func(r Rate) bool { return r.Group == s.Rate.Group })
	case SetRate:
		for i := range o.Rates {
			if o.Rates[i].Group == s.Rate.Group && o.Rates[i].Port == s.Rate.Port {
				o.Rates[i] = s.Rate
			}
		}
	default:
		t.Fatalf("step %v", s)
	}
}

// What is in use is not changed under its user, and the tests would miss it if it were.
func TestChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	mutation.Prove(t, mutation.Marked(t, "^TestPlan$", "switchdev.go")...)
}
