package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/claim"
)

// Seat is one device that an app may be placed on.
type Seat struct {
	// Name tells devices apart, Site where it stands; a device without a site stands alone.
	Name, Site string
	// Has says that the app is on it now, Online that it is heard of.
	Has, Online bool
	// Lacks says why the app cannot run on it; empty when it can.
	Lacks string
}

// Choose picks n devices for an app, or as many as can be had: a plain function.
//
// Where the app is and can be, it stays, whether the device is heard of or not: a box that
// is cut off goes on running it. New ones are picked from those that are heard of and can,
// at the sites with the fewest. Where it is and cannot be, it stays until another device
// takes it over.
func Choose(seats []Seat, n int) []string {
	seats = slices.SortedFunc(slices.Values(seats), func(a, b Seat) int { return strings.Compare(a.Name, b.Name) })
	var out []string
	at := map[string]int{} // devices chosen, by site
	take := func(s *Seat) { out, at[place(s)] = append(out, s.Name), at[place(s)]+1 }
	each := func(which func(*Seat) bool) {
		for i := range seats {
			if len(out) < n && which(&seats[i]) {
				take(&seats[i])
			}
		}
	}
	each(func(s *Seat) bool { return s.Has && s.Lacks == "" && s.Online })
	each(func(s *Seat) bool { return s.Has && s.Lacks == "" && !s.Online })
	fresh := slices.DeleteFunc(slices.Clone(seats), func(s Seat) bool { return s.Has || !s.Online || s.Lacks != "" })
	for len(out) < n && len(fresh) > 0 {
		best := 0
		for i := range fresh {
			if at[place(&fresh[i])] < at[place(&fresh[best])] {
				best = i
			}
		}
		take(&fresh[best])
		fresh = slices.Delete(fresh, best, best+1)
	}
	each(func(s *Seat) bool { return s.Has && s.Lacks != "" })
	slices.Sort(out)
	return out
}

// place is the site of a device, or the device itself.
func place(s *Seat) string {
	if s.Site == "" {
		return "\x00" + s.Name
	}
	return s.Site
}

// missingWhere tells people why no more devices were picked, most frequent first.
func missingWhere(seats []Seat) string {
	names := map[string][]string{}
	for _, s := range seats {
		why := s.Lacks
		switch {
		case why == "" && s.Has:
			continue
		case why == "" && !s.Online:
			why = "it is not heard of"
		case why == "":
			continue
		}
		names[why] = append(names[why], s.Name)
	}
	if len(names) == 0 {
		return "the fleet has no more devices"
	}
	reasons := slices.SortedFunc(maps.Keys(names), func(a, b string) int { return cmp.Or(len(names[b])-len(names[a]), strings.Compare(a, b)) })
	var out []string
	for _, why := range reasons[:min(len(reasons), 4)] {
		list := names[why]
		slices.Sort(list)
		who := strings.Join(list[:min(len(list), 3)], ", ")
		if more := len(list) - 3; more > 0 {
			who += fmt.Sprintf(" and %d more", more)
		}
		out = append(out, who+": "+why)
	}
	return strings.Join(out, "; ")
}

// stock is what one device has to give while placements are decided: what it told, less
// what apps will take that are on it and have not yet.
type stock struct {
	told    bool
	devices []api.Claimable
	held    map[claim.Owner][]claim.Grant
	room    []api.DeviceUse         // what it could still make
	makes   map[api.ClaimClass]bool // an older box that does not tell what
}

func stockOf(uses []api.DeviceUse, told bool) *stock {
	s := &stock{told: told, held: map[claim.Owner][]claim.Grant{}, makes: map[api.ClaimClass]bool{}}
	for i := range uses {
		u := &uses[i]
		if u.Room > 0 { // no device yet: its facts stand in the words of what is missing
			not := u.Claimable
			not.Fault = "is not made yet"
			s.room, s.devices = append(s.room, *u), append(s.devices, not)
			continue
		}
		if u.Fault != api.DeviceGone {
			s.devices = append(s.devices, u.Claimable)
		}
		if u.Makes {
			s.makes[u.Class] = true
		}
		for _, h := range u.Holders {
			owner := claim.Owner{App: h.App, Service: h.Service}
			s.held[owner] = append(s.held[owner], claim.Grant{Class: u.Class, ID: u.ID, Units: h.Units})
		}
	}
	return s
}

// take sets aside what an app claims, all of it or nothing, and says what is missing. What
// its services hold already is theirs, and what the box makes when it is asked to counts as
// had: the box alone can tell.
func (s *stock) take(app string, claims map[string][]api.Claim) (lacks string) {
	var taken []claim.Owner
	for _, service := range slices.Sorted(maps.Keys(claims)) {
		owner, wanted := ownerOf(app, service), claims[service]
		if len(s.held[owner]) > 0 || len(wanted) == 0 {
			continue
		}
		if !s.told {
			lacks = "it has not told what it has"
			break
		}
		grants, err := claim.Allocate(s.devices, s.held, owner, s.known(wanted))
		if err != nil { // not by what is there; what can be made may answer some of it
			room := slices.Clone(s.room)
			if grants, err = claim.Allocate(s.devices, s.held, owner, s.certain(wanted)); err != nil {
				s.room = room
			}
		}
		if err != nil {
			lacks = err.Error()
			break
		}
		s.held[owner], taken = grants, append(taken, owner)
	}
	if lacks != "" {
		for _, owner := range taken {
			delete(s.held, owner)
		}
	}
	return lacks
}

func ownerOf(app, service string) claim.Owner { return claim.Owner{App: app, Service: service} }

// known are the claims that are decided here: an older box makes what it does not tell of.
func (s *stock) known(wanted []api.Claim) []api.Claim {
	return slices.DeleteFunc(slices.Clone(wanted), func(c api.Claim) bool { return s.makes[c.Class] })
}

// certain are those of them that only devices can answer which are there. What the box has
// room for to make is set aside for the others.
func (s *stock) certain(wanted []api.Claim) (out []api.Claim) {
	for _, c := range s.known(wanted) {
		if !s.makeable(&c) {
			out = append(out, c)
		}
	}
	return out
}

func (s *stock) makeable(c *api.Claim) bool {
	lack := max(c.Count, 1)
	after := slices.Clone(s.room)
	for i := range after {
		if u := &after[i]; lack > 0 && u.Room > 0 && c.Fits(&u.Claimable) == "" {
			n := min(lack, u.Room)
			u.Room, lack = u.Room-n, lack-n
		}
	}
	if lack == 0 {
		s.room = after
	}
	return lack == 0
}
