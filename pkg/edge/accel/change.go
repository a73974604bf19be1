package accel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// Cutter changes cards, one step at a time: *gpud.Keeper. Each may fail with
// api.Unavailable and have been done nevertheless; Layout then says.
type Cutter interface {
	Layout(ctx context.Context, card string) (*api.MIG, error)
	Create(ctx context.Context, card string, profile int, at api.MIGPlacement) error
	// Destroy fails with api.Conflict while anything runs on the slice.
	Destroy(ctx context.Context, card string, instance int) error
	SetMIG(ctx context.Context, card string, on bool) (*api.MIG, error)
}

// Journal keeps, over crashes and power cuts, what a card is being made into. Put returns
// when it is on the disk; nil takes the entry away.
type Journal interface {
	Get(card string) ([]Step, error)
	Put(card string, steps []Step) error
}

// Change does the steps of a plan, written down before the first is done. When it returns an
// error other than api.Unavailable or the context's, the entry is gone and another plan is to
// be made, from the layout as it is then; otherwise Resume goes on with it.
func Change(ctx context.Context, c Cutter, j Journal, card string, steps []Step) error {
	if len(steps) == 0 {
		return nil
	}
	if err := j.Put(card, steps); err != nil {
		return fmt.Errorf("writing down what card %s is made into: %w", card, err)
	}
	return Resume(ctx, c, j, card)
}

// Resume goes on with a change that a crash cut short; without one it does nothing. It may
// be called as often as one likes, but by one goroutine for a card.
func Resume(ctx context.Context, c Cutter, j Journal, card string) error {
	steps, err := j.Get(card)
	if err != nil || len(steps) == 0 {
		return err
	}
	err = resume(ctx, c, card, steps)
	if api.CodeOf(err) == api.Unavailable || ctx.Err() != nil {
		return err // the entry stays
	}
	return errors.Join(err, j.Put(card, nil))
}

func resume(ctx context.Context, c Cutter, card string, steps []Step) error {
	// Each round does a step or finds it done; a slice that was left half made adds one.
	for range 2*len(steps) + 1 {
		m, err := c.Layout(ctx, card)
		if err != nil {
			return err
		}
		step, err := Next(m, steps)
		if err != nil || step == nil {
			return err
		}
		if step.Op == OpDestroy {
			err = c.Destroy(ctx, card, step.Instance)
		} else {
			err = c.Create(ctx, card, step.Profile, step.At)
		}
		if err != nil {
			return err
		}
	}
	return api.Errorf(api.Internal, "card %s says that slices were made and removed, and does not show it", card)
}

// Next is the first step that the layout does not show as done; nil when all are. It is an
// error of code Conflict when the card is no longer as the plan found it: who plans again
// sees what is there.
func Next(m *api.MIG, steps []Step) (*Step, error) {
	for _, s := range steps {
		if s.Op != OpDestroy {
			continue
		}
		// Numbers are given out again: the same slice is the one in the same place too.
		i := slices.IndexFunc(m.Instances, func(i api.MIGInstance) bool {
			return i.ID == s.Instance && i.Profile == s.Profile && i.Placement == s.At
		})
		if i < 0 {
			continue
		}
		if m.Instances[i].Busy { // check: busy meanwhile
			return nil, &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%s at %s was idle, and something runs on it now", s.Name, s.At), Remedy: "it is planned again"}
		}
		return &s, nil
	}
	for _, s := range steps {
		if s.Op != OpCreate {
			continue
		}
		done, half, err := made(m, s)
		if err != nil {
			return nil, err
		}
		if half != nil {
			return &Step{OpDestroy, half.ID, half.Profile, half.Name, half.Placement}, nil
		}
		if !done {
			return &s, nil
		}
	}
	return nil, nil
}

// made finds what a step was to make: done, or half done (without compute), or in the way.
func made(m *api.MIG, s Step) (done bool, half *api.MIGInstance, err error) {
	for _, i := range m.Instances {
		switch {
		case i.Placement.Mask()&s.At.Mask() == 0:
		case i.Profile != s.Profile || i.Placement != s.At: // check: in the way
			return false, nil, &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%s at %s came to be where %s at %s was planned", i.Name, i.Placement, s.Name, s.At), Remedy: "it is planned again"}
		case i.Compute < 0:
			return false, &i, nil
		default:
			return true, nil, nil
		}
	}
	return false, nil, nil
}

// Kept is what a card was cut into, to be made again after a reboot: slices do not outlast
// one, and MIG mode does on some cards only.
type Kept struct {
	Card    string      `json:"card"`
	Enabled bool        `json:"enabled"`
	Slices  []KeptSlice `json:"slices,omitempty"`
	// Profiles are as the card told them last, places too: it may tell none while MIG is off.
	Profiles []api.MIGProfile `json:"profiles,omitempty"`
}

// KeptSlice is one slice, by what is the same after a reboot.
type KeptSlice struct {
	Profile int              `json:"profile"`
	Name    string           `json:"name"`
	At      api.MIGPlacement `json:"at"`
}

// Keep is what is worth keeping of a card. Before is what was kept: what the card does not
// tell now stays as it told it.
func Keep(card string, m *api.MIG, before Kept) Kept {
	k := Kept{Card: card, Enabled: m.Enabled, Profiles: m.Profiles}
	if !m.Told && len(before.Profiles) > 0 {
		k.Profiles = before.Profiles
	}
	for _, i := range m.Instances {
		k.Slices = append(k.Slices, KeptSlice{i.Profile, i.Name, i.Placement})
	}
	slices.SortFunc(k.Slices, func(a, b KeptSlice) int { return byStart(a.At, b.At) })
	return k
}

// Fill gives a layout the places that the card told last, where it tells none now, so that
// people and the core see what the card can be cut into while MIG is off.
func (k Kept) Fill(m *api.MIG) {
	if !m.Told && len(k.Profiles) > 0 {
		m.Profiles = k.Profiles
	}
}

// Missing are the steps by which a card has again the slices that it had: those that are not
// there and that nothing lies in the way of. It removes nothing.
func (k Kept) Missing(m *api.MIG) (steps []Step) {
	var taken uint64
	for _, i := range m.Instances {
		taken |= i.Placement.Mask()
	}
	for _, s := range k.Slices {
		if taken&s.At.Mask() == 0 {
			steps = append(steps, Step{OpCreate, -1, s.Profile, s.Name, s.At})
		}
	}
	return steps
}

// Restore makes a card again what it was, before any service starts: MIG mode first, then
// what a change had left undone, then the slices.
func Restore(ctx context.Context, c Cutter, j Journal, k Kept) error {
	m, err := c.Layout(ctx, k.Card)
	if err != nil {
		return err
	}
	if k.Enabled && !m.Enabled {
		if m, err = c.SetMIG(ctx, k.Card, true); err != nil {
			return err
		}
		if !m.Enabled {
			return &api.Error{Code: api.Conflict, Message: "card " + k.Card + " turns MIG on at its next reset only", Remedy: "restart the box, or reset the card while nothing uses it"}
		}
	}
	if err := Resume(ctx, c, j, k.Card); err != nil {
		return err
	}
	if m, err = c.Layout(ctx, k.Card); err != nil {
		return err
	}
	return Change(ctx, c, j, k.Card, k.Missing(m))
}
