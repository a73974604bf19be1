package switchdev

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
)

// drawSwitch is a policy of what cards of the model can.
func drawSwitch(t *rapid.T) []api.FunctionPolicy {
	some := func(name string, of ...string) string {
		return rapid.SampledFrom(append(of, "")).Draw(t, name)
	}
	number := func(name string) *int {
		if n := rapid.IntRange(-1, 2).Draw(t, name); n >= 0 {
			return &n
		}
		return nil
	}
	s := &api.SwitchPolicy{Mode: some("mode", Legacy, Switchdev), Inline: some("inline", "none", "transport"), Encap: some("encap", "none", "basic"), Groups: []api.RateGroup{{Name: "gold", MaxRate: 1000}}}
	for _, name := range []string{"pf0vf0", "pf0vf1", "pf0sf88"} {
		if s.Mode == Legacy || !rapid.Bool().Draw(t, "says "+name) {
			continue
		}
		p := api.PortPolicy{Port: name, MAC: some("mac", "02:00:00:00:00:01", "02:00:00:00:00:02"), MinRate: number("least"), MaxRate: number("most"), Group: some("group", "gold")}
		if n := number("roce"); n != nil && *n < 2 && name != "pf0sf88" {
			on := *n == 1
			p.RoCE = &on
		}
		s.Ports = append(s.Ports, p)
	}
	return []api.FunctionPolicy{{Match: api.FunctionMatch{Name: "up*"}, Switch: s}}
}

// seen is a card in words that tell all that a policy can change.
func seen(m *model) string {
	o := m.o
	ports, rates := slices.Clone(o.Ports), slices.Clone(o.Rates)
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Index, b.Index) })
	slices.SortFunc(rates, func(a, b Rate) int { return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Group, b.Group)) })
	return fmt.Sprintf("%+v %+v %+v", o.Device, ports, rates)
}

// Whatever a card was like, and whatever policies said of it: when none does any more it is as it was found, by a keeper that
// may have ended meanwhile.
func TestPutBack(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := newModel()
		m.own = rapid.Bool().Draw(r, "each mode has inline and encapsulation modes of its own")
		if rapid.Bool().Draw(r, "found with its ports") {
			_ = m.mode(Switchdev) // the model has that mode
			for i := 1; i < len(m.o.Ports); i++ {
				p := &m.o.Ports[i]
				p.MAC = rapid.SampledFrom([]string{"00:00:00:00:00:00", "06:00:00:00:00:01"}).Draw(r, "address")
				p.Can = map[string]bool{"roce": rapid.Bool().Draw(r, "can roce"), "migratable": false}
				m.o.Rates[i-1].Max = rapid.Uint64Range(0, 1).Draw(r, "bound") * perMbit
			}
		}
		was := seen(m)
		b := newBench(t, m)
		for range rapid.IntRange(1, 4).Draw(r, "policies") {
			b.want(t, drawSwitch(r))
			if rapid.Bool().Draw(r, "ends") {
				b.start(t, "one")
			}
		}
		b.want(t, nil)
		if is := seen(m); is != was || len(b.Warnings()) > 0 {
			r.Fatalf("it was\n%s\nand is\n%s\nwarnings %v, kept %s", was, is, b.Warnings(), b.notes.b)
		}
	})
}

// An address that a function did not have goes with the policy; so does what a mode's own inline mode became.
func TestNoAddressComesBack(t *testing.T) {
	m := newModel()
	m.own = true
	_ = m.mode(Switchdev)
	was := seen(m)
	b := newBench(t, m)
	policy := whole("")
	policy[0].Switch.Mode = ""
	b.want(t, policy)
	if m.o.port("pf0vf0").MAC != "02:00:00:00:00:01" {
		t.Fatalf("%+v", m.o)
	}
	policy[0].Switch.Ports[0].MAC = ""
	b.want(t, policy)
	if got := m.o.port("pf0vf0").MAC; got != "00:00:00:00:00:00" {
		t.Errorf("nobody asks for its address any more, which is %s", got)
	}
	policy[0].Switch.Ports[2].MAC = ""
	b.want(t, policy)
	if got := m.o.port("pf0sf88").MAC; got != "00:00:00:00:00:00" {
		t.Errorf("a function that was made here keeps an address that nobody asks for: %s", got)
	}
	b.want(t, []api.FunctionPolicy{{Match: api.FunctionMatch{Name: "up*"}, Switch: &api.SwitchPolicy{Mode: Legacy}}})
	if m.o.Device.Mode != Legacy || m.o.Device.Inline != "link" {
		t.Errorf("another mode got what was found in the first: %+v", m.o.Device)
	}
	b.want(t, nil)
	if is := seen(m); is != was {
		t.Errorf("it was\n%s\nand is\n%s", was, is)
	}
}

// Without what remembers these the test fails.
func TestPutBackCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	mutation.Prove(t,
		mutation.Check{Name: "no address", Test: "^TestNoAddressComesBack$", File: "want.go", From: "out := FoundPort{MAC: p.MAC,", To: `out := FoundPort{MAC: map[bool]string{false: p.MAC}[GONE],`, Says: "nobody asks for its address"},
		mutation.Check{Name: "a mode's own", Test: "^TestNoAddressComesBack$", File: "want.go", From: "	case mode == f.Mode:", To: "	case mode == f.Mode || GONE:", Says: "another mode got what was found"})
}
