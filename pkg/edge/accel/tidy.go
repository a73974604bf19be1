package accel

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// Back are the steps by which a card's slices are again as they were found, as far as nobody
// is on them: what was made since goes, what was removed since and has room comes.
func Back(m *api.MIG, found Kept) []Step {
	steps := surplus(m, found, nil)
	left := after(m, steps)
	return append(steps, found.Missing(&left)...)
}

// Ready are the steps by which the slices of a layout are on a card, in use or free for who
// comes, as many of them as there is room for, the first of the list before the others.
// What was found on the card goes only where it is in the way; what was made since goes.
func Ready(m *api.MIG, found Kept, layout []string) []Step {
	open := slices.Clone(layout)
	for _, i := range m.Instances {
		if at := slices.Index(open, i.Name); at >= 0 && (i.Busy || i.Cordoned != "") {
			open = slices.Delete(open, at, at+1)
		}
	}
	var wants []Want
	var plan Plan
	for _, name := range open {
		more, err := PlanMIG(m, append(wants, Want{Profile: name}), nil)
		if err != nil {
			continue // no room for this one; a smaller one may find some
		}
		plan, wants = more, append(wants, Want{Profile: name})
	}
	steps := surplus(m, found, plan.Places)
	for _, s := range plan.Steps {
		if !slices.Contains(steps, s) {
			steps = append(steps, s)
		}
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return order(a) - order(b) })
	return steps
}

// NeverAll says why a card can never have all slices of a layout at once. It is empty when it can, and
// while the card does not tell its places.
func NeverAll(m *api.MIG, layout []string) string {
	empty := *m
	empty.Instances = nil
	var wants []Want
	for _, name := range layout {
		at := slices.IndexFunc(m.Profiles, func(p api.MIGProfile) bool { return p.Name == name })
		switch {
		case at < 0 && len(m.Profiles) > 0:
			var names []string
			for _, p := range m.Profiles {
				names = append(names, p.Name)
			}
			return fmt.Sprintf("there is no profile %s on it; there are %s", name, strings.Join(names, ", "))
		case at < 0 || len(m.Profiles[at].Placements) == 0:
			return ""
		}
		wants = append(wants, Want{Profile: name})
	}
	var none *NoRoom
	if _, err := PlanMIG(&empty, wants, nil); errors.As(err, &none) {
		return fmt.Sprintf("its layout has one slice more than fits: %s, after %s", layout[none.Want], strings.Join(layout[:none.Want], ", "))
	}
	return ""
}

// order has room made before it is taken.
func order(s Step) int {
	if s.Op == OpDestroy {
		return 0
	}
	return 1
}

// surplus removes idle slices that were not found and are at none of the places.
func surplus(m *api.MIG, found Kept, keep []Place) (steps []Step) {
	for _, i := range m.Instances {
		was := slices.Contains(found.Slices, KeptSlice{i.Profile, i.Name, i.Placement})
		given := slices.ContainsFunc(keep, func(p Place) bool { return p.Instance == i.ID })
		if !i.Busy && i.Cordoned == "" && !given && (!was || i.Compute < 0) {
			steps = append(steps, Step{OpDestroy, i.ID, i.Profile, i.Name, i.Placement})
		}
	}
	return steps
}

// after is a layout once slices are removed.
func after(m *api.MIG, steps []Step) api.MIG {
	left := *m
	left.Instances = slices.DeleteFunc(slices.Clone(m.Instances), func(i api.MIGInstance) bool {
		return slices.ContainsFunc(steps, func(s Step) bool { return s.Op == OpDestroy && s.Instance == i.ID })
	})
	return left
}
