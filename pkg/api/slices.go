package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// MIGRoom is how many slices of one profile a card has room for beside those that are in use.
type MIGRoom struct {
	Profile *MIGProfile
	Count   int
}

// Room lists what a card could still be cut into while the slices stay that are in use or
// cordoned; idle ones make room. The numbers are of one profile each: what one takes, others
// have not.
func (m *MIG) Room() (out []MIGRoom) {
	if !m.Enabled {
		return nil
	}
	var taken uint64
	there := map[int]int{}
	for _, i := range m.Instances {
		if i.Busy || i.Cordoned != "" {
			taken |= i.Placement.Mask()
			there[i.Profile]++
		}
	}
	for n := range m.Profiles {
		p, free := &m.Profiles[n], taken
		// Places of one profile are of one size: taking the first that is free finds the most.
		places := slices.SortedFunc(slices.Values(p.Placements), func(a, b MIGPlacement) int { return cmp.Compare(a.Start+a.Size, b.Start+b.Size) })
		r := MIGRoom{Profile: p}
		for _, at := range places {
			if free&at.Mask() == 0 && r.Count < p.Max-there[p.ID] {
				free |= at.Mask()
				r.Count++
			}
		}
		if r.Count > 0 {
			out = append(out, r)
		}
	}
	return out
}

// AcceleratorPart is what one service can hold of a card, or several in turns: all of it, or a slice.
type AcceleratorPart struct {
	// ID is the name by which it is claimed and held.
	ID      string
	Profile string // of a slice
	// MemoryMiB is 0 where it is not told; Compute is in slices of the card's compute, 0 for a whole card.
	MemoryMiB int64
	Compute   int
	By        []string // app/service
	// State is told in words: free, held, cordoned and why.
	State string
}

// Parts lists what services can hold of the box's accelerators, and who does. What a card
// could still be cut into is the State of a part without a profile.
func (i *Inventory) Parts() (out []AcceleratorPart) {
	by := map[string][]string{}
	for _, u := range i.Claims {
		for _, h := range u.Holders {
			if u.Class == ClaimGPU {
				by[u.ID] = append(by[u.ID], h.App+"/"+h.Service)
			}
		}
	}
	for n := range i.Accelerators {
		a := &i.Accelerators[n]
		if a.Sharing.Mode != SharingMIG || a.MIG == nil {
			p := AcceleratorPart{ID: a.ID, MemoryMiB: a.MemoryMiB, By: by[a.ID], State: "free"}
			switch why := a.cordoned(""); {
			case why != "":
				p.State = "cordoned: " + why
			case a.Sharing.Replicas > 1:
				p.State = fmt.Sprintf("%d of %d held", len(p.By), a.Sharing.Replicas)
			case len(p.By) > 0:
				p.State = "held"
			}
			out = append(out, p)
			continue
		}
		out = append(out, a.slices(by)...)
	}
	return out
}

func (a *Accelerator) slices(by map[string][]string) (out []AcceleratorPart) {
	for _, s := range a.MIG.Instances {
		p := AcceleratorPart{ID: a.ID + "/" + s.Placement.String(), Profile: s.Name, State: "free"}
		if at := slices.IndexFunc(a.MIG.Profiles, func(known MIGProfile) bool { return known.ID == s.Profile }); at >= 0 {
			p.MemoryMiB, p.Compute = a.MIG.Profiles[at].MemoryMiB, a.MIG.Profiles[at].Slices
		}
		p.By = by[p.ID]
		switch why := cmp.Or(a.cordoned(s.UUID), s.Cordoned); {
		case why != "":
			p.State = "cordoned: " + why
		case s.Compute < 0:
			p.State = "half made"
		case len(p.By) > 0:
			p.State = "held"
		case s.Busy:
			p.State = "a program runs on it that no app started"
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b AcceleratorPart) int { return strings.Compare(a.ID, b.ID) })
	var room []string
	for _, r := range a.MIG.Room() {
		room = append(room, fmt.Sprintf("%d × %s", r.Count, r.Profile.Name))
	}
	if a.cordoned("") == "" && len(room) > 0 {
		out = append(out, AcceleratorPart{ID: a.ID, MemoryMiB: a.MemoryMiB, State: "room for " + strings.Join(room, " or ")})
	}
	return out
}

// cordoned says why a card, or a slice of it, is given to no one; empty when it is.
func (a *Accelerator) cordoned(slice string) string {
	for _, f := range a.Findings {
		if (f.Slice == "" || f.Slice == slice) && f.Cordons() {
			return f.Warning.Message
		}
	}
	return ""
}

// Uncordon is a person's word about one card or slice.
type Uncordon struct {
	// ID is a card's, with all of its slices, or a slice's.
	ID string `json:"id"`
	// Until is the time of the newest finding that is ended, Unix seconds by the box's clock:
	// what is found later counts.
	Until int64 `json:"until"`
}

// maxUncordon bounds the words that are kept of one box: one for each slice of its cards.
const maxUncordon = 256

// Newest is when the newest was found of what keeps a card or slice from being given, Unix
// seconds; ok is false where nothing does.
func (i *Inventory) Newest(id string) (since int64, ok bool) {
	for n := range i.Accelerators {
		a := &i.Accelerators[n]
		for _, f := range a.Findings {
			if a.Names(&f, id) && f.Cordons() {
				since, ok = max(since, f.Warning.Since), true
			}
		}
	}
	return since, ok
}

// Names tells whether a finding is about what an ID says: a card with all of its slices, or
// one slice.
func (a *Accelerator) Names(f *AcceleratorFinding, id string) bool {
	if id == a.ID {
		return true
	}
	return f.Slice != "" && a.MIG != nil && slices.ContainsFunc(a.MIG.Instances, func(s MIGInstance) bool {
		return s.UUID == f.Slice && a.ID+"/"+s.Placement.String() == id
	})
}

// Cordons tells whether a finding keeps what it is about from being given.
func (f *AcceleratorFinding) Cordons() bool { return f.Action != "" && f.Action != "none" }

// Said adds a word to a list, in the place of one about the same. What is said of a card
// takes in what was said of its slices. The oldest go when there are too many.
func Said(list []Uncordon, word Uncordon) []Uncordon {
	out := slices.DeleteFunc(slices.Clone(list), func(u Uncordon) bool { return u.ID == word.ID || strings.HasPrefix(u.ID, word.ID+"/") })
	out = append(out, word)
	return out[max(0, len(out)-maxUncordon):]
}

func validateUncordon(list []Uncordon, at string, f *findings) {
	if len(list) > maxUncordon { // check: words about cards
		f.addf(at, "leave out old ones", "there are %d; the most is %d", len(list), maxUncordon)
		return
	}
	for i, u := range list {
		if !anyWord.MatchString(u.ID) || u.Until <= 0 { // check: a word about a card
			f.addf(index(at, i), "use edgectl device uncordon", "%s until %d is no word about a card", quote(u.ID), u.Until)
		}
	}
}
