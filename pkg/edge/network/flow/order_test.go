package flow

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// stage is a kernel with a card before it: what is in the card is met first, whatever the
// preferences. The card has room for few, and refuses some whatever room it has.
type stage struct {
	t       *rapid.T
	room    int
	refuses map[string]bool // by name
	filters []Filter
	rules   map[string]Rule // by identity
}

// packets are all that there are: a protocol and a port of each.
const ports = 8

func matches(k *Key, p int) bool {
	proto, port := []uint8{6, 17}[p/ports], uint16(p%ports+1)
	return (k.Proto == nil || *k.Proto == proto) && (k.DstPorts == [2]uint16{} || k.DstPorts[0] <= port && port <= k.DstPorts[1])
}

// met gives, for each packet, the name of the rule that it meets first.
func met(keys []Rule) (out [2 * ports]string) {
	for p := range out {
		for i := range keys {
			if matches(&keys[i].Key, p) {
				out[p] = keys[i].Name
				break
			}
		}
	}
	return out
}

func (s *stage) met() [2 * ports]string {
	slices.SortFunc(s.filters, func(a, b Filter) int { return cmp.Compare(a.Pref, b.Pref) })
	var card, kernel []Rule
	for _, f := range s.filters {
		if f.InHardware {
			card = append(card, s.rules[f.ID])
		} else {
			kernel = append(kernel, s.rules[f.ID])
		}
	}
	return met(append(card, kernel...))
}

func (s *stage) do(step Step) {
	if step.Remove != nil {
		s.filters = slices.DeleteFunc(s.filters, func(f Filter) bool { return f.Pref == step.Remove.Pref })
		return
	}
	in := 0
	for _, f := range s.filters {
		if f.InHardware {
			in++
		}
	}
	r := step.Add
	s.rules[r.ID()] = *r
	s.filters = append(s.filters, Filter{Hook: r.Hook, Pref: step.Pref, Handle: 1, ID: r.ID(), InHardware: r.asks() && in < s.room && !s.refuses[r.Name]})
}

// Whatever a card takes and refuses, and however rules change, a packet meets at each step the
// rule that it met before or the one that it is to meet: the first, of those in the card too.
func TestCardsKeepTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &stage{t: t, refuses: map[string]bool{}, rules: map[string]Rule{}}
		for n := range 16 {
			s.refuses[fmt.Sprint(n)] = rapid.IntRange(0, 4).Draw(t, "refuses") == 0
		}
		keys := map[int]Key{}
		for range rapid.IntRange(1, 5).Draw(t, "changes") {
			s.room = rapid.IntRange(0, 8).Draw(t, "room")
			var want []Rule
			for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 15), 0, 10, rapid.ID[int]).Draw(t, "rules") {
				k, known := keys[n]
				if !known {
					k.EthType = ethIPv4
					if p := rapid.SampledFrom([]uint8{0, 6, 17}).Draw(t, "protocol"); p != 0 {
						k.Proto = &p
					}
					if from := rapid.IntRange(0, ports).Draw(t, "from"); from > 0 {
						k.DstPorts = [2]uint16{uint16(from), uint16(rapid.IntRange(from, ports).Draw(t, "to"))}
					}
					keys[n] = k
				}
				offload := rapid.SampledFrom([]string{api.OffloadPreferred, api.OffloadPreferred, api.OffloadRequired, api.OffloadOff}).Draw(t, "offload")
				want = append(want, Rule{Policy: "p", Name: fmt.Sprint(n), Hook: Hook{Link: 1}, Capable: true, Offload: offload, Key: k})
			}
			before, after := s.met(), met(want)
			rules, err := settle(want, settler{
				look: func() ([]Filter, error) { return slices.Clone(s.filters), nil },
				mark: func([]Filter, []Rule) {},
				step: func(step Step) {
					s.do(step)
					for p, name := range s.met() {
						// A rule of one name is the same before and after, in the card or not.
						if name != before[p] && name != after[p] {
							t.Fatalf("packet %d meets %q between %q and %q", p, name, before[p], after[p])
						}
					}
				},
				inCard: func(r *Rule, pref uint16) bool {
					i := slices.IndexFunc(s.filters, func(f Filter) bool { return f.Pref == pref })
					return i >= 0 && s.filters[i].InHardware
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if s.met() != after {
				t.Fatalf("packets meet %q, and not %q", s.met(), after)
			}
			for i := range rules {
				if rules[i].Soft != (rules[i].Behind != "") {
					t.Fatalf("%+v does not say what it is behind", rules[i])
				}
			}
		}
	})
}

// What could match the same packet is told as such; what cannot is not held back.
func TestOverlap(t *testing.T) {
	tcp, udp := uint8(6), uint8(17)
	net := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	for _, c := range []struct {
		a, b Key
		want bool
	}{
		{Key{}, Key{EthType: ethIPv4, Proto: &tcp}, true},
		{Key{EthType: ethIPv4}, Key{EthType: ethIPv6}, false},
		{Key{Proto: &tcp}, Key{Proto: &udp}, false},
		{Key{VLAN: 5}, Key{VLAN: 6}, false},
		{Key{VLAN: 5}, Key{EthType: ethIPv4}, true}, // cards differ in what they make of a tag
		{Key{Src: net("192.0.2.0/24")}, Key{Src: net("192.0.2.128/25")}, true},
		{Key{Src: net("192.0.2.0/25")}, Key{Src: net("192.0.2.128/25")}, false},
		{Key{DstPorts: [2]uint16{1, 80}}, Key{DstPorts: [2]uint16{80, 90}}, true},
		{Key{DstPorts: [2]uint16{1, 79}}, Key{DstPorts: [2]uint16{80, 90}}, false},
	} {
		if overlap(&c.a, &c.b) != c.want || overlap(&c.b, &c.a) != c.want {
			t.Errorf("%+v and %+v: %v", c.a, c.b, !c.want)
		}
	}
}

// Every warning says what to do.
func TestWarningsHaveRemedies(t *testing.T) {
	var states []api.FlowState
	for _, state := range []string{api.FlowInSoftware, api.FlowWaiting, api.FlowRefused} {
		states = append(states, api.FlowState{Policy: "p", Rule: "r", State: state, Why: "a reason"})
	}
	list := (&Keeper{}).warn(states, []error{errors.New("a fault")}, time.Now())
	if len(list) != 4 {
		t.Errorf("%d warnings: %v", len(list), list)
	}
	for _, w := range list {
		if w.Remedy == "" {
			t.Errorf("%s says not what to do", w.Name)
		}
	}
}
