package accel

import (
	"errors"
	"flag"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
)

var every = flag.Bool("every", false, "ask every question in every state of an H100 too: minutes")

// TestEveryState holds the planner against brute force in every state that an A100 and an
// H100 can be in: each layout that the driver allows, each slice of it busy or idle. In each,
// profiles are asked for by name (all of them on an A100 and with -every, else they take
// turns), and pairs of profiles and needs take turns. -short looks at every 97th state.
func TestEveryState(t *testing.T) {
	for _, name := range []string{"a100", "h100"} {
		t.Run(name, func(t *testing.T) {
			w := told(t, name)
			var single, pairs [][]Want
			for i, a := range w.told.Profiles {
				single = append(single, []Want{{Profile: a.Name}})
				for _, b := range w.told.Profiles[i:] {
					pairs = append(pairs, []Want{{Profile: a.Name}, {Profile: b.Name}})
				}
			}
			pairs = append(pairs, []Want{{MemoryMiB: 9000, Slices: 1}}, []Want{{Slices: 2}, {MemoryMiB: 4000}}, []Want{{MemoryMiB: 1 << 30}})
			step := 1
			if testing.Short() {
				step = 97
			}
			began, n, asked := time.Now(), 0, 0
			w.states(func(busy, idle uint64) {
				n++
				if n%step != 0 {
					return
				}
				questions := single
				if name == "h100" && !*every {
					questions = single[n%len(single):][:1]
				}
				for _, wants := range questions {
					w.check(t, busy, idle, wants, nil)
				}
				w.check(t, busy, idle, pairs[n/step%len(pairs)], nil)
				asked += len(questions) + 1
			})
			t.Logf("%d states, %d questions, %.1f s", n, asked, time.Since(began).Seconds())
		})
	}
}

// TestTogether asks any state of any card for several slices at once, by name and by need,
// with others to come. rapid makes them up.
func TestTogether(t *testing.T) {
	worlds := map[string]*world{"a100": told(t, "a100"), "h100": told(t, "h100"), "b200": told(t, "b200")}
	together := func(r *rapid.T) {
		w := worlds[rapid.SampledFrom([]string{"a100", "h100", "b200"}).Draw(r, "card")]
		busy, idle := anyState(r, w)
		wants := rapid.SliceOfN(anyWant(w), 0, 3).Draw(r, "wants")
		expected := rapid.SliceOfN(anyWant(w), 0, 2).Draw(r, "expected")
		w.check(r, busy, idle, wants, expected)
	}
	for range 20 { // rapid's own count is small under -short
		rapid.Check(t, together)
	}
}

func anyState(r *rapid.T, w *world) (busy, idle uint64) {
	for range rapid.IntRange(0, 7).Draw(r, "slices") {
		bit := uint64(1) << rapid.IntRange(0, len(w.slots)-1).Draw(r, "slice")
		switch {
		case (busy|idle)&bit != 0 || !w.valid(busy|idle|bit):
		case rapid.Bool().Draw(r, "busy"):
			busy |= bit
		default:
			idle |= bit
		}
	}
	return busy, idle
}

func anyWant(w *world) *rapid.Generator[Want] {
	return rapid.Custom(func(r *rapid.T) Want {
		if rapid.Bool().Draw(r, "by need") {
			return Want{MemoryMiB: int64(rapid.SampledFrom([]int{0, 4864, 5000, 10000, 20480, 40000, 90000}).Draw(r, "memory")), Slices: rapid.IntRange(0, 4).Draw(r, "compute")}
		}
		return Want{Profile: rapid.SampledFrom(w.told.Profiles).Draw(r, "profile").Name}
	})
}

// TestSameAnswer: in which order a card tells its slices, profiles and places is its affair.
func TestSameAnswer(t *testing.T) {
	w := told(t, "a100")
	rapid.Check(t, func(r *rapid.T) {
		busy, idle := anyState(r, w)
		wants := rapid.SliceOfN(anyWant(w), 0, 4).Draw(r, "wants")
		m := w.mig(busy, idle)
		first, err1 := PlanMIG(m, wants, nil)
		m.Profiles = slices.Clone(m.Profiles)
		slices.Reverse(m.Instances)
		slices.Reverse(m.Profiles)
		for i := range m.Profiles {
			m.Profiles[i].Placements = slices.Clone(m.Profiles[i].Placements)
			slices.Reverse(m.Profiles[i].Placements)
		}
		second, err2 := PlanMIG(m, wants, nil)
		if !reflect.DeepEqual(first, second) || (err1 == nil) != (err2 == nil) {
			t.Fatalf("%+v %v, then %+v %v", first, err1, second, err2)
		}
	})
}

func plan(t *testing.T, m *api.MIG, wants, expected []Want) Plan {
	t.Helper()
	p, err := PlanMIG(m, wants, expected)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func steps(p Plan) (list []string) {
	for _, s := range p.Steps {
		list = append(list, s.String())
	}
	return list
}

// TestRoomIsLeft: small slices go where they are least in the way, and what is to come
// weighs more than an idle slice.
func TestRoomIsLeft(t *testing.T) {
	w := told(t, "a100")
	small := Want{Profile: "1g.5gb"}
	if got := steps(plan(t, w.mig(0, 0), []Want{small}, nil)); !slices.Equal(got, []string{"create 1g.5gb at 6+1"}) {
		t.Errorf("on an empty card: %v", got)
	}
	seven := slices.Repeat([]Want{small}, 7)
	if got := plan(t, w.mig(0, 0), seven, nil); len(got.Steps) != 7 {
		t.Errorf("seven: %v", got.Steps)
	}
	at0 := uint64(1) << w.slot(0, api.MIGPlacement{Start: 0, Size: 1})
	if got := plan(t, w.mig(0, at0), []Want{small}, nil); len(got.Steps) != 0 || got.Places[0].Instance < 0 {
		t.Errorf("an idle slice is given: %+v", got)
	}
	got := plan(t, w.mig(0, at0), []Want{small}, []Want{{Profile: "4g.20gb"}, {Profile: "7g.40gb"}})
	if got.Expected != 1 || !slices.Equal(steps(got), []string{"destroy 1g.5gb at 0+1", "create 1g.5gb at 6+1"}) && !slices.Equal(steps(got), []string{"create 1g.5gb at 6+1"}) {
		t.Errorf("a 4g.20gb is to come: %v, room for %d", steps(got), got.Expected)
	}
	half := w.mig(0, at0)
	half.Instances[0].Compute = -1
	if got := steps(plan(t, half, []Want{small}, nil)); !slices.Equal(got, []string{"create 1g.5gb at 6+1"}) {
		t.Errorf("a slice that a crash left without compute is given: %v", got)
	}
}

// TestWords: who gets no slice is told what stands in the way.
func TestWords(t *testing.T) {
	w := told(t, "a100")
	held := w.mig(1<<w.slot(2, api.MIGPlacement{Start: 4, Size: 4}), 0)
	cordoned := w.mig(0, 1)
	cordoned.Instances[0].Cordoned = "XID 94"
	off := w.mig(0, 0)
	off.Profiles = slices.Clone(off.Profiles)
	for i := range off.Profiles {
		off.Profiles[i].Placements = nil
	}
	for _, c := range []struct {
		m     *api.MIG
		wants []Want
		index int
		words string
	}{
		{held, []Want{{Who: "shop/model", Profile: "7g.40gb"}}, 0, "shop/model: no room for 7g.40gb without moving 3g.20gb at 4+4 (busy)"},
		{held, []Want{{Profile: "3g.20gb"}, {Profile: "3g.20gb"}}, 1, "no room for 3g.20gb beside the 1 asked for before it"},
		{cordoned, []Want{{Profile: "7g.40gb"}}, 0, "(cordoned: XID 94)"},
		{w.mig(0, 0), []Want{{Profile: "1g.10gb+me"}}, 0, "the card has no 1g.10gb+me; it can be cut into 1g.5gb"},
		{w.mig(0, 0), []Want{{MemoryMiB: 50000}}, 0, "the card has no a slice of 50000 MiB"},
		{off, []Want{{Profile: "1g.5gb"}}, 0, "tells no places for 1g.5gb while MIG is off"},
		{&api.MIG{}, []Want{{Profile: "1g.5gb"}}, 0, "MIG may be off"},
	} {
		_, err := PlanMIG(c.m, c.wants, nil)
		var none *NoRoom
		if !errors.As(err, &none) || none.Want != c.index || !strings.Contains(none.Words, c.words) {
			t.Errorf("%v: %v, want …%s…", c.wants, err, c.words)
		}
	}
	if _, err := PlanMIG(w.mig(0, 0), make([]Want, 65), nil); api.CodeOf(err) != api.TooLarge {
		t.Error(err)
	}
}

// TestProofNeedsItsChecks takes the package's checks out, one at a time.
func TestProofNeedsItsChecks(t *testing.T) {
	checks := mutation.Marked(t, "^TestTogether$|^TestEveryState$", "plan.go")
	mutation.Prove(t, append(checks, mutation.Marked(t, "^TestShare$|^TestChangeGivesUp$", "share.go", "change.go")...)...)
}
