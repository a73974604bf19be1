package switchdev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/tests/wait"
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
	vf := Port{Index: 2, Flavour: VF, Function: 1, MAC: "02:00:00:00:00:01"}
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
		{"under users", card(Legacy), Wanted{Mode: Switchdev, InUse: []string{"web/a"}}, "", "in use are web/a"},
		{"back, with rates", withRates, Wanted{Mode: Legacy}, "rate, remove group, mode", ""},
		{"a function that is not there", card(Switchdev), Wanted{Functions: []Function{{Flavour: VF, Number: 1}}}, "", "no port for virtual function 1"},
		{"another address", card(Switchdev, vf), Wanted{Functions: []Function{{Flavour: VF, Number: 1, MAC: "02:00:00:00:00:09"}}}, "mac", ""},
		{"one more scalable function", card(Switchdev, vf), Wanted{Functions: []Function{{Flavour: SF, Number: 88}}}, "add port", ""},
		{"a scalable function that runs, with another address", card(Switchdev, sf), Wanted{Functions: []Function{{Flavour: SF, Number: 88, MAC: "02:00:00:00:00:09"}}}, "deactivate, mac, activate", ""},
		{"one less", card(Switchdev, sf), Wanted{Functions: []Function{}}, "deactivate, remove port", ""},
		{"one less that is in use", card(Switchdev, sf), Wanted{Functions: []Function{}, InUse: []string{"en9"}}, "", "en9 is in use"},
		{"rates", card(Switchdev, vf), Wanted{Functions: []Function{{Flavour: VF, Number: 1, Max: 3, Group: "gold"}}, Groups: []Rate{{Group: "gold", Max: 5}}}, "add group, rate", ""},
		{"the same rates", withRates, Wanted{Functions: []Function{{Flavour: VF, Number: 1, Max: 3, Group: "gold"}}, Groups: []Rate{{Group: "gold", Max: 5}}}, "", ""},
		{"no group any more", withRates, Wanted{Functions: []Function{{Flavour: VF, Number: 1}}}, "rate, remove group", ""},
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
				f := Function{Flavour: VF, Number: i, Max: rapid.Uint64Range(0, 2).Draw(t, "max")}
				if len(names) > 0 && rapid.Bool().Draw(t, "member") {
					f.Group = rapid.SampledFrom(names).Draw(t, "group")
				}
				w.Functions = append(w.Functions, f)
			}
			steps, _ := Plan(o, w)
			for _, s := range steps {
				carryOut(t, &o, s)
			}
			if again, waits := Plan(o, w); len(waits) != 0 || slices.ContainsFunc(again, func(s Step) bool { return s.Do != SetRate }) {
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

// A simulated card goes into switchdev mode, shows the representors of its virtual functions,
// takes rates and groups of them, and goes back.
func TestCard(t *testing.T) {
	const bus, card = "/sys/bus/netdevsim", "/sys/bus/netdevsim/devices/netdevsim8"
	if _, err := os.Stat(bus); err != nil || os.Getenv("INSIDE_GUEST") == "" {
		t.Skip("needs a guest with netdevsim: run make vmtest RUN=TestFlows")
	}
	for _, w := range [][2]string{{bus + "/new_device", "8 1"}, {card + "/sriov_numvfs", "2"}} {
		if err := os.WriteFile(filepath.FromSlash(w[0]), []byte(w[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.WriteFile(bus+"/del_device", []byte("8"), 0) })
	d, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	look := func() Observed {
		all, err := d.Look()
		i := slices.IndexFunc(all, func(o Observed) bool { return o.Device.Name == "netdevsim/netdevsim8" })
		if err != nil || i < 0 {
			t.Fatalf("%v %v", all, err)
		}
		return all[i]
	}
	become := func(w Wanted) Observed {
		t.Helper()
		wait.Seen(t, "a card as it is wanted", func() (any, bool) {
			o := look()
			steps, waits := Plan(o, w)
			for _, s := range steps {
				if err := d.Do(o.Device.Name, s); err != nil {
					return fmt.Sprint(o, err), false
				}
			}
			return fmt.Sprint(o, verbs(steps), waits), len(steps) == 0 && len(waits) == 0
		})
		return look()
	}
	o := become(Wanted{Mode: Switchdev, Groups: []Rate{{Group: "gold", Max: 125_000_000}}, Functions: []Function{
		{Flavour: VF, Number: 0, Max: 12_500_000, Group: "gold"}, {Flavour: VF, Number: 1, Min: 1_250_000, Max: 25_000_000}}})
	reps := o.Representors()
	if o.Device.Mode != Switchdev || reps["pf0vf0"] == "" || reps["pf0vf1"] == "" || reps["p0"] == "" {
		t.Errorf("%+v", o)
	}
	for _, want := range []Rate{{Group: "tributary-gold", Max: 125_000_000}, {Port: portOf(o, 0), Max: 12_500_000, Parent: "tributary-gold"}, {Port: portOf(o, 1), Min: 1_250_000, Max: 25_000_000}} {
		if !slices.Contains(o.Rates, want) {
			t.Errorf("no %+v in %+v", want, o.Rates)
		}
	}
	if o = become(Wanted{Mode: Legacy}); o.Device.Mode != Legacy || o.Representors()["pf0vf0"] != "" {
		t.Errorf("%+v", o)
	}
}

func portOf(o Observed, vf int) uint32 {
	p, _ := find(o, Function{Flavour: VF, Number: vf})
	return p.Index
}
