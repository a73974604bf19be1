package accel

import (
	"context"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// errCut is a power cut: of the cutter, before or after the step was done.
var errCut = &api.Error{Code: api.Unavailable, Message: "cut"}

// bench is a card and a disk. It follows the driver's rule, and is cut off when left is 0.
type bench struct {
	w        *world
	mig      api.MIG
	left     int
	after    bool // the step that is cut off is done nevertheless
	halfMade bool // … or half of it
	journal  map[string][]Step
	next     int
}

func (b *bench) Layout(context.Context, string) (*api.MIG, error) {
	m := b.mig
	m.Instances = slices.Clone(m.Instances)
	return &m, nil
}

func (b *bench) cut() bool {
	b.left--
	return b.left < 0
}

func (b *bench) set() (set uint64) {
	for _, i := range b.mig.Instances {
		set |= 1 << b.w.slot(i.Profile, i.Placement)
	}
	return set
}

func (b *bench) Create(_ context.Context, _ string, profile int, at api.MIGPlacement) error {
	cut := b.cut()
	if cut && !b.after {
		return errCut
	}
	bit := uint64(1) << b.w.slot(profile, at)
	if !b.w.valid(b.set()|bit) || b.set()&bit != 0 {
		return api.Errorf(api.Conflict, "the driver refuses")
	}
	b.next++
	made := api.MIGInstance{ID: b.next, Profile: profile, Name: b.w.told.Profiles[b.w.slots[b.w.slot(profile, at)].profile].Name, Placement: at}
	if cut && b.halfMade {
		made.Compute = -1
	}
	b.mig.Instances = append(b.mig.Instances, made)
	if cut {
		return errCut
	}
	return nil
}

func (b *bench) Destroy(_ context.Context, _ string, instance int) error {
	cut := b.cut()
	if cut && !b.after {
		return errCut
	}
	for i, inst := range b.mig.Instances {
		if inst.ID == instance {
			if inst.Busy {
				return api.Errorf(api.Conflict, "in use")
			}
			b.mig.Instances = slices.Delete(b.mig.Instances, i, i+1)
			break
		}
	}
	if cut {
		return errCut
	}
	return nil
}

func (b *bench) SetMIG(_ context.Context, _ string, on bool) (*api.MIG, error) {
	b.mig.Enabled = on
	return b.Layout(context.Background(), "")
}

func (b *bench) Get(card string) ([]Step, error) { return b.journal[card], nil }

func (b *bench) Put(card string, steps []Step) error {
	b.journal[card] = steps
	return nil
}

func layoutOf(m *api.MIG) (list []KeptSlice) { return Keep("c", m, Kept{}).Slices }

// TestChangeSurvives cuts a change off again and again, before, after and in the middle of
// any step; going on each time, the card comes to be as without a cut, busy slices untouched.
func TestChangeSurvives(t *testing.T) {
	w := told(t, "a100")
	survives := func(r *rapid.T) {
		busy, idle := anyState(r, w)
		wants := rapid.SliceOfN(anyWant(w), 1, 3).Draw(r, "wants")
		first := &bench{w: w, mig: *w.mig(busy, idle), left: 1 << 30, journal: map[string][]Step{}, next: 100}
		plan, err := PlanMIG(&first.mig, wants, nil)
		if err != nil {
			return
		}
		b := &bench{w: w, mig: *w.mig(busy, idle), journal: map[string][]Step{}, next: 100}
		if err := Change(r.Context(), first, first, "c", plan.Steps); err != nil {
			r.Fatal(err)
		}
		for cuts := 0; ; cuts++ {
			b.left, b.after, b.halfMade = rapid.IntRange(0, 2).Draw(r, "steps"), rapid.Bool().Draw(r, "after"), rapid.Bool().Draw(r, "half")
			if cuts > 10 {
				b.left = 1 << 30
			}
			if cuts == 0 {
				err = Change(r.Context(), b, b, "c", plan.Steps)
			} else {
				err = Resume(r.Context(), b, b, "c")
			}
			if err == nil {
				break
			}
			if !errors.Is(err, errCut) {
				r.Fatal(err)
			}
		}
		if got, want := layoutOf(&b.mig), layoutOf(&first.mig); !slices.Equal(got, want) {
			r.Fatalf("%v after cuts, %v without", got, want)
		}
		if b.set()&busy != busy || slices.ContainsFunc(b.mig.Instances, func(i api.MIGInstance) bool { return i.Compute < 0 }) {
			r.Fatalf("%+v", b.mig.Instances)
		}
		if b.journal["c"] != nil {
			r.Fatal("the entry is still there")
		}
	}
	for range 10 {
		rapid.Check(t, survives)
	}
}

// TestChangeGivesUp: what is busy meanwhile stays, what came to lie in the way too, and the
// entry goes, so that it is planned again.
func TestChangeGivesUp(t *testing.T) {
	w := told(t, "a100")
	small := uint64(1) << w.slot(0, api.MIGPlacement{Start: 0, Size: 1})
	b := &bench{w: w, mig: *w.mig(0, small), left: 9, journal: map[string][]Step{}, next: 100}
	p, err := PlanMIG(&b.mig, []Want{{Profile: "7g.40gb"}}, nil)
	if err != nil || len(p.Steps) != 2 {
		t.Fatal(p, err)
	}
	b.mig.Instances[0].Busy = true
	if err := Change(t.Context(), b, b, "c", p.Steps); api.CodeOf(err) != api.Conflict || b.journal["c"] != nil || b.left != 9 { // nothing was tried
		t.Errorf("%v, %+v", err, b)
	}
	other := &bench{w: w, mig: *w.mig(1<<w.slot(0, api.MIGPlacement{Start: 3, Size: 1}), 0), left: 9, journal: map[string][]Step{}}
	if err := Change(t.Context(), other, other, "c", p.Steps); api.CodeOf(err) != api.Conflict || other.journal["c"] != nil {
		t.Errorf("%v, %+v", err, other)
	}
}

// TestRestore: after a reboot a card has its slices again, and MIG mode where it lost it.
func TestRestore(t *testing.T) {
	w := told(t, "a100")
	had := w.mig(1<<w.slot(2, api.MIGPlacement{Start: 4, Size: 4}), 1<<w.slot(0, api.MIGPlacement{Start: 0, Size: 1}))
	kept := Keep("c", had, Kept{})
	off := &api.MIG{Profiles: slices.Clone(had.Profiles)}
	for i := range off.Profiles {
		off.Profiles[i].Placements = nil
	}
	again := Keep("c", off, kept)
	if again.Enabled || len(again.Slices) != 0 || len(again.Profiles[0].Placements) == 0 {
		t.Errorf("places are forgotten while MIG is off: %+v", again)
	}
	kept.Fill(off)
	if len(off.Profiles[0].Placements) == 0 {
		t.Error("the last places told are not shown")
	}
	for _, cut := range []int{99, 0, 1} {
		b := &bench{w: w, mig: api.MIG{Profiles: had.Profiles}, left: cut, journal: map[string][]Step{}}
		if err := Restore(t.Context(), b, b, kept); cut == 99 && err != nil {
			t.Fatal(err)
		}
		b.left = 99
		if err := Restore(t.Context(), b, b, kept); err != nil {
			t.Fatal(err)
		}
		if got := layoutOf(&b.mig); !b.mig.Enabled || !slices.Equal(got, layoutOf(had)) {
			t.Errorf("cut at %d: %v", cut, got)
		}
	}
}
