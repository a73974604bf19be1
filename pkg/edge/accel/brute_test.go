package accel

import (
	"cmp"
	"encoding/json"
	"math/bits"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// told reads what go-nvml's mocks of cards tell of their profiles and places. That the
// recording is theirs is tested where C is allowed (cmd/gpud/card, TestRecording).
func told(t testing.TB, name string) *world {
	t.Helper()
	raw, err := os.ReadFile("testdata/told.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]*api.MIG
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	w := &world{told: all[name]}
	for p, prof := range w.told.Profiles {
		for _, at := range prof.Placements {
			w.slots = append(w.slots, seat{p, at})
		}
	}
	for _, a := range w.slots {
		var over uint64
		for j, b := range w.slots {
			if a.at.Start < b.at.Start+b.at.Size && b.at.Start < a.at.Start+a.at.Size {
				over |= 1 << j
			}
		}
		w.over = append(w.over, over)
	}
	for p, prof := range w.told.Profiles {
		var own uint64
		for i, s := range w.slots {
			if s.profile == p {
				own |= 1 << i
			}
		}
		w.own, w.max = append(w.own, own), append(w.max, prof.Max)
	}
	return w
}

// world is a card as the driver sees it: every slice that it could have is a bit. It shares
// nothing with the planner but the card's own words.
type world struct {
	told  *api.MIG
	slots []seat
	over  []uint64 // slices that a slice lies over, itself too
	own   []uint64 // slices of a profile
	max   []int
}

type seat struct {
	profile int
	at      api.MIGPlacement
}

// valid is the driver's rule: no two over each other, no more of a profile than it allows.
func (w *world) valid(layout uint64) bool {
	for rest := layout; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		if w.over[i]&layout != 1<<i {
			return false
		}
	}
	for p := range w.own {
		if bits.OnesCount64(layout&w.own[p]) > w.max[p] {
			return false
		}
	}
	return true
}

// states calls visit with every state that a card can be in: each valid layout, each of its
// slices busy or idle.
func (w *world) states(visit func(busy, idle uint64)) {
	var from func(i int, busy, idle uint64)
	from = func(i int, busy, idle uint64) {
		if i == len(w.slots) {
			visit(busy, idle)
			return
		}
		from(i+1, busy, idle)
		if w.valid(busy | idle | 1<<i) {
			from(i+1, busy|1<<i, idle)
			from(i+1, busy, idle|1<<i)
		}
	}
	from(0, 0, 0)
}

// mig is a state in the words of the product. Its slices are numbered by their bit.
func (w *world) mig(busy, idle uint64) *api.MIG {
	m := &api.MIG{Enabled: true, Told: true, Profiles: w.told.Profiles}
	for rest := busy | idle; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		p := w.told.Profiles[w.slots[i].profile]
		m.Instances = append(m.Instances, api.MIGInstance{ID: i, Profile: p.ID, Name: p.Name, Placement: w.slots[i].at, Busy: busy&(1<<i) != 0})
	}
	return m
}

// answers are the slices that a want may have.
func (w *world) answers(want Want) (list []int) {
	for i, s := range w.slots {
		p := w.told.Profiles[s.profile]
		if want.Profile == p.Name || want.Profile == "" && p.MemoryMiB >= want.MemoryMiB && p.Slices >= want.Slices {
			list = append(list, i)
		}
	}
	return list
}

// price is what an answer costs, in the order that PlanMIG's words give.
type price struct{ missed, destroyed, waste, created, lost int }

func (a price) compare(b price) int {
	return cmp.Or(cmp.Compare(a.missed, b.missed), cmp.Compare(a.destroyed, b.destroyed), cmp.Compare(a.waste, b.waste), cmp.Compare(a.created, b.created), cmp.Compare(a.lost, b.lost))
}

// price tries every subset of the idle slices to find how few must go.
func (w *world) price(busy, idle uint64, chosen []int, expected []Want) price {
	var given uint64
	k := price{}
	for _, i := range chosen {
		given |= 1 << i
		k.waste += w.slots[i].at.Size*maxWants + w.told.Profiles[w.slots[i].profile].Slices
	}
	k.created = bits.OnesCount64(given &^ idle)
	free := idle &^ given
	k.destroyed = bits.OnesCount64(free)
	for keep := free; ; keep = (keep - 1) & free {
		if n := bits.OnesCount64(free &^ keep); n < k.destroyed && w.valid(busy|given|keep) {
			k.destroyed = n
		}
		if keep == 0 {
			break
		}
	}
	k.missed = len(expected) - w.fit(busy|given, expected)
	for p := range w.own {
		if !w.open(p, busy|given) {
			k.lost++
		}
	}
	return k
}

// open says whether one more of a profile finds room.
func (w *world) open(p int, taken uint64) bool {
	for rest := w.own[p] &^ taken; rest != 0; rest &= rest - 1 {
		if w.valid(taken | rest&-rest) {
			return true
		}
	}
	return false
}

func bitsOf(set uint64) (list []int) {
	for ; set != 0; set &= set - 1 {
		list = append(list, bits.TrailingZeros64(set))
	}
	return list
}

func (w *world) fit(taken uint64, expected []Want) int {
	if len(expected) == 0 {
		return 0
	}
	most := w.fit(taken, expected[1:])
	for _, i := range w.answers(expected[0]) {
		if taken&(1<<i) == 0 && w.valid(taken|1<<i) {
			most = max(most, 1+w.fit(taken|1<<i, expected[1:]))
		}
	}
	return most
}

// best tries every way to answer all wants.
func (w *world) best(busy, idle uint64, wants, expected []Want) (least price, ok bool) {
	chosen := make([]int, 0, len(wants))
	var try func(given uint64)
	try = func(given uint64) {
		if len(chosen) == len(wants) {
			if k := w.price(busy, idle, chosen, expected); !ok || k.compare(least) < 0 {
				least, ok = k, true
			}
			return
		}
		for _, i := range w.answers(wants[len(chosen)]) {
			if (busy|given)&(1<<i) == 0 && w.valid(busy|given|1<<i) {
				chosen = append(chosen, i)
				try(given | 1<<i)
				chosen = chosen[:len(chosen)-1]
			}
		}
	}
	try(0)
	return least, ok
}

// check holds a plan, or that there is none, against all that could be; it does the steps by
// the driver's rule.
func (w *world) check(t rapid.TB, busy, idle uint64, wants, expected []Want) {
	t.Helper()
	m := w.mig(busy, idle)
	got, err := PlanMIG(m, wants, expected)
	want, possible := w.best(busy, idle, wants, expected)
	if (err == nil) != possible {
		t.Fatalf("busy %v, idle %v, wants %v: possible is %v, the planner says %v", w.names(busy), w.names(idle), wants, possible, err)
	}
	if err != nil {
		return
	}
	now := busy | idle
	for _, s := range got.Steps {
		bit := uint64(1) << w.slot(s.Profile, s.At)
		if s.Op == OpDestroy {
			if idle&bit == 0 || now&bit == 0 {
				t.Fatalf("busy %v, idle %v, wants %v: %v", w.names(busy), w.names(idle), wants, s)
			}
			now &^= bit
			continue
		}
		if now |= bit; !w.valid(now) {
			t.Fatalf("busy %v, idle %v, wants %v: the driver refuses %v of %v", w.names(busy), w.names(idle), wants, s, got.Steps)
		}
	}
	if now&busy != busy {
		t.Fatalf("busy %v, wants %v: a busy slice is gone", w.names(busy), wants)
	}
	var chosen []int
	var given uint64
	for i, p := range got.Places {
		at := w.slot(p.Profile, p.At)
		if !slices.Contains(w.answers(wants[i]), at) || now&(1<<at) == 0 || (given|busy)&(1<<at) != 0 || (p.Instance >= 0) != (idle&(1<<at) != 0) {
			t.Fatalf("busy %v, idle %v: %v is met by %+v", w.names(busy), w.names(idle), wants[i], p)
		}
		given |= 1 << at
		chosen = append(chosen, at)
	}
	if k := w.price(busy, idle, chosen, expected); k != want || got.Expected != len(expected)-k.missed {
		t.Fatalf("busy %v, idle %v, wants %v, expected %v: the plan %v costs %+v, the best %+v", w.names(busy), w.names(idle), wants, expected, got, k, want)
	}
	if gone := bits.OnesCount64(idle &^ now); gone != want.destroyed {
		t.Fatalf("busy %v, idle %v, wants %v: %d removed, %d suffice", w.names(busy), w.names(idle), wants, gone, want.destroyed)
	}
}

func (w *world) slot(profile int, at api.MIGPlacement) int {
	return slices.IndexFunc(w.slots, func(s seat) bool { return w.told.Profiles[s.profile].ID == profile && s.at == at })
}

func (w *world) names(set uint64) (list []string) {
	for _, i := range bitsOf(set) {
		list = append(list, w.told.Profiles[w.slots[i].profile].Name+"@"+w.slots[i].at.String())
	}
	return list
}
