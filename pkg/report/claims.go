package report

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/natural"
)

// What services can claim is told apart from who holds it:
//
//	claim/has/<class>[/<parent>]   the devices of one class, on one card where they are parts of it
//	claim/by/<app>/<service>       what one service holds
//
// A service that takes its devices is one entry of their names; what the box has is told
// once, and again when it changes.

// ClaimPrefix begins the keys that tell of it.
const ClaimPrefix = "claim/"

const (
	hasPrefix = ClaimPrefix + "has/"
	byPrefix  = ClaimPrefix + "by/"
)

// alike are devices of one class and parent that differ in their names alone.
type alike struct {
	Driver string            `cbor:"1,keyasint,omitempty"`
	NUMA   *int              `cbor:"2,keyasint,omitempty"` // nil: near none
	Facts  map[string]string `cbor:"3,keyasint,omitempty"`
	Units  int               `cbor:"4,keyasint,omitempty"` // none: 1
	Shares int               `cbor:"5,keyasint,omitempty"`
	Fault  string            `cbor:"6,keyasint,omitempty"`
	Makes  bool              `cbor:"7,keyasint,omitempty"`
	IDs    []string          `cbor:"8,keyasint"`
	Room   int               `cbor:"9,keyasint,omitempty"`
}

// part is what a service holds of one class.
type part struct {
	Class string   `cbor:"1,keyasint"`
	Units int      `cbor:"2,keyasint,omitempty"` // of each; none: 1
	IDs   []string `cbor:"3,keyasint"`
}

// Bounds of what is told; a box has fewer.
const (
	maxUses  = 8192
	maxAlike = 512 // names in one group; the next ones are another
)

// SplitClaims gives the entries of what a box has to claim and who holds it. What is gone
// is told by its holder alone. What is too long for a key or an entry is left out.
func SplitClaims(uses []api.DeviceUse) (map[string][]byte, error) {
	has, by := map[string][]alike{}, map[string][]part{}
	for i := range uses[:min(len(uses), maxUses)] {
		u := &uses[i]
		for _, h := range u.Holders {
			key := byPrefix + h.App + "/" + h.Service
			by[key] = withPart(by[key], u, h.Units)
		}
		if u.Fault == api.DeviceGone {
			continue
		}
		key := hasPrefix + string(u.Class)
		if u.Parent != "" {
			key += "/" + u.Parent
		}
		has[key] = withAlike(has[key], u)
	}
	out := map[string][]byte{}
	var failed error
	put := func(key string, value any) {
		raw, err := encMode.Marshal(value)
		failed = cmp.Or(failed, err)
		if len(key) <= maxText && len(raw) <= maxValue {
			out[key] = raw
		}
	}
	for key, v := range has {
		put(key, v)
	}
	for key, v := range by {
		put(key, v)
	}
	return out, failed
}

func withPart(parts []part, u *api.DeviceUse, units int) []part {
	if units == 1 {
		units = 0
	}
	for i := range parts {
		if p := &parts[i]; p.Class == string(u.Class) && p.Units == units && len(p.IDs) < maxAlike {
			p.IDs = append(p.IDs, u.ID)
			return parts
		}
	}
	return append(parts, part{string(u.Class), units, []string{u.ID}})
}

func withAlike(groups []alike, u *api.DeviceUse) []alike {
	next := alike{Driver: u.Driver, Facts: u.Facts, Units: u.Units, Shares: u.Shares, Fault: u.Fault, Makes: u.Makes, Room: u.Room, IDs: []string{u.ID}}
	if u.NUMA >= 0 {
		next.NUMA = &u.NUMA
	}
	if next.Units <= 1 {
		next.Units = 0
	}
	if next.Shares <= 1 {
		next.Shares = 0
	}
	for i := range groups {
		g := &groups[i]
		near := (g.NUMA == nil) == (next.NUMA == nil) && (g.NUMA == nil || *g.NUMA == *next.NUMA)
		if near && g.Driver == next.Driver && g.Units == next.Units && g.Shares == next.Shares && g.Fault == next.Fault && g.Makes == next.Makes && g.Room == next.Room && maps.Equal(g.Facts, next.Facts) && len(g.IDs) < maxAlike {
			g.IDs = append(g.IDs, u.ID)
			return groups
		}
	}
	return append(groups, next)
}

// JoinClaims reads what a device's reported state tells of claims, by class and name. Keys
// of entries that cannot be read are in bad.
func JoinClaims(entries map[string][]byte) (uses []api.DeviceUse, bad []string) {
	at := map[[2]string]int{}
	add := func(u api.DeviceUse) *api.DeviceUse {
		key := [2]string{string(u.Class), u.ID}
		i, ok := at[key]
		if !ok && len(uses) >= maxUses {
			return nil
		}
		if !ok {
			i = len(uses)
			at[key], uses = i, append(uses, u)
		}
		return &uses[i]
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		name, ok := strings.CutPrefix(key, hasPrefix)
		if !ok {
			continue
		}
		class, parent, _ := strings.Cut(name, "/")
		var groups []alike
		if !read(entries[key], &groups) || class == "" {
			bad = append(bad, key)
			continue
		}
		for i := range groups {
			g := &groups[i]
			for _, id := range g.IDs {
				u := api.DeviceUse{Makes: g.Makes, Room: max(g.Room, 0), Claimable: api.Claimable{Class: api.ClaimClass(class), ID: id, Driver: g.Driver, Parent: parent, NUMA: -1, Facts: g.Facts, Units: max(g.Units, 1), Shares: g.Shares, Fault: g.Fault}}
				if g.NUMA != nil {
					u.NUMA = *g.NUMA
				}
				add(u)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) { // after all that is there
		name, ok := strings.CutPrefix(key, byPrefix)
		if !ok {
			continue
		}
		app, service, _ := strings.Cut(name, "/")
		var parts []part
		if !read(entries[key], &parts) || app == "" || service == "" {
			bad = append(bad, key)
			continue
		}
		for _, p := range parts {
			for _, id := range p.IDs {
				u := add(api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimClass(p.Class), ID: id, NUMA: -1, Units: 1, Fault: api.DeviceGone}})
				if u != nil {
					u.Holders = append(u.Holders, api.DeviceHolder{App: app, Service: service, Units: max(p.Units, 1)})
				}
			}
		}
	}
	slices.SortStableFunc(uses, func(a, b api.DeviceUse) int {
		return cmp.Or(strings.Compare(string(a.Class), string(b.Class)), natural.Compare(a.ID, b.ID))
	})
	return uses, bad
}
