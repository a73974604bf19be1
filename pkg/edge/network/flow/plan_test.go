package flow

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// table is a kernel for the test: filters by preference, and which packets each rule matches.
type table struct {
	filters []Filter
	matches map[string]uint16 // by identity: a bit for each packet there is
}

// verdicts gives, for each packet of a hook, the rule that it meets first.
func verdicts(order []string, matches map[string]uint16) (out [16]string) {
	for p := range out {
		for _, id := range order {
			if matches[id]>>p&1 == 1 {
				out[p] = id
				break
			}
		}
	}
	return out
}

func (k *table) order(h Hook) (ids []string) {
	slices.SortFunc(k.filters, func(a, b Filter) int { return cmp.Compare(a.Pref, b.Pref) })
	for _, f := range k.filters {
		if f.Hook == h && f.ID != "" {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

func (k *table) do(t *rapid.T, s Step) {
	if s.Add != nil {
		if s.Pref < prefFirst || s.Pref > prefLast || slices.ContainsFunc(k.filters, func(f Filter) bool { return f.Hook == s.Add.Hook && f.Pref == s.Pref }) {
			t.Fatalf("preference %d is taken or out of range", s.Pref)
		}
		k.filters = append(k.filters, Filter{Hook: s.Add.Hook, Pref: s.Pref, Handle: 1, ID: s.Add.ID()})
		return
	}
	n := len(k.filters)
	k.filters = slices.DeleteFunc(k.filters, func(f Filter) bool { return f == *s.Remove })
	if len(k.filters) != n-1 {
		t.Fatalf("%+v is not there", s.Remove)
	}
}

// From any rules to any others, every packet meets at each step the rule that it met before, or
// the one that it meets afterwards; rules that stay in order are not touched; and a second plan
// has nothing to do.
func TestPlanLeavesNoGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := &table{matches: map[string]uint16{}}
		hooks := []Hook{{1, false}, {1, true}, {2, false}}
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			var want []Rule
			used := map[string]bool{}
			for range rapid.IntRange(0, 12).Draw(t, "rules") {
				r := Rule{Name: fmt.Sprint(rapid.IntRange(0, 15).Draw(t, "rule")), Hook: rapid.SampledFrom(hooks).Draw(t, "hook")}
				if used[r.ID()] {
					continue
				}
				used[r.ID()] = true
				want = append(want, r)
				if _, known := k.matches[r.ID()]; !known { // what it matches is part of what it says
					k.matches[r.ID()] = rapid.Uint16().Draw(t, "packets")
				}
			}
			before := map[Hook][16]string{}
			after := map[Hook][16]string{}
			for _, h := range hooks {
				before[h] = verdicts(k.order(h), k.matches)
				var ids []string
				for _, r := range want {
					if r.Hook == h {
						ids = append(ids, r.ID())
					}
				}
				after[h] = verdicts(ids, k.matches)
			}
			steps, err := Plan(k.filters, want)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range steps {
				k.do(t, s)
				for _, h := range hooks {
					for p, v := range verdicts(k.order(h), k.matches) {
						if v != before[h][p] && v != after[h][p] {
							t.Fatalf("packet %d meets %x between %x and %x", p, v, before[h][p], after[h][p])
						}
					}
				}
			}
			for _, h := range hooks {
				if verdicts(k.order(h), k.matches) != after[h] {
					t.Fatalf("at %v stands another order than wanted", h)
				}
			}
			if again, err := Plan(k.filters, want); err != nil || len(again) != 0 {
				t.Fatalf("a second plan has %d steps, %v", len(again), err)
			}
		}
	})
}

// Where there is no number left between two rules, all are put elsewhere; where there is none
// left at all, that is said, and nothing is touched.
func TestPlanWhenCrowded(t *testing.T) {
	rule := func(n int) Rule { return Rule{Name: fmt.Sprint(n), Hook: Hook{Link: 1}} }
	a, b, c := rule(1), rule(2), rule(3)
	have := []Filter{{Hook: a.Hook, Pref: 100 + prefFirst, ID: a.ID()}, {Hook: a.Hook, Pref: 101 + prefFirst, ID: b.ID()}}
	steps, err := Plan(have, []Rule{a, c, b})
	if err != nil || len(steps) != 5 || steps[4].Remove == nil || steps[0].Pref >= 100+prefFirst || steps[0].Add.ID() != a.ID() {
		t.Errorf("%v %v", steps, err)
	}
	var full []Filter
	for p := prefFirst; p <= prefLast; p++ {
		full = append(full, Filter{Hook: a.Hook, Pref: uint16(p), ID: fmt.Sprint(p)})
	}
	if steps, err := Plan(full, []Rule{a}); !errors.Is(err, ErrNoRoom) || len(steps) != 0 {
		t.Errorf("%d steps, %v", len(steps), err)
	}
	// Others' filters are not ours to remove.
	if steps, err := Plan([]Filter{{Hook: a.Hook, Pref: 5}}, nil); err != nil || len(steps) != 0 {
		t.Errorf("%v %v", steps, err)
	}
}

// A rule that is put in front leaves the others as they are.
func TestPlanTouchesLittle(t *testing.T) {
	var want []Rule
	for n := range 500 {
		want = append(want, Rule{Name: fmt.Sprint(n), Hook: Hook{Link: 1}})
	}
	steps, err := Plan(nil, want)
	if err != nil || len(steps) != 500 {
		t.Fatal(len(steps), err)
	}
	var have []Filter
	for _, s := range steps {
		have = append(have, Filter{Hook: s.Add.Hook, Pref: s.Pref, ID: s.Add.ID()})
	}
	for _, at := range []int{0, 250, 500} {
		now := slices.Insert(slices.Clone(want), at, Rule{Name: "new", Hook: Hook{Link: 1}})
		if steps, err := Plan(have, now); err != nil || len(steps) != 1 {
			t.Errorf("one more at %d: %d steps, %v", at, len(steps), err)
		}
	}
}
