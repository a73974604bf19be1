package fleet

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/report"
)

// grace is how long a device may lack what an app on it claims before another device may
// take the app over: boxes start, cards are reset.
const grace = 2 * time.Minute

// maxLacks bounds what is told of apps that wait, and maxNamed the devices named of each.
const (
	maxLacks = 16
	maxNamed = 5
)

// placed tells whether an app is on a device by its newest manifest, or will be by its next.
func (e *entry) placed(app string) bool {
	_, has := e.state.Items[manifest.PrefixApp+app]
	return has || slices.Contains(e.Placed, app)
}

// claimed takes in what a device told of claims; true when that is something new.
func (e *entry) claimed(entries map[string][]byte) (changed bool, bad []string) {
	h, told := sha256.New(), false
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		if strings.HasPrefix(key, report.ClaimPrefix) {
			told = true
			fmt.Fprintf(h, "%d:%s%d:%s", len(key), key, len(entries[key]), entries[key])
		}
	}
	sum := [sha256.Size]byte{}
	if told {
		h.Sum(sum[:0])
	}
	told = told || len(entries) > 0 // it spoke, and has nothing to claim
	if sum == e.usesSum && told == e.told {
		return false, nil
	}
	e.usesSum, e.told = sum, told
	e.uses, bad = report.JoinClaims(entries)
	return true, bad
}

// places tells whether a tenant has placements.
func (t *tenant) places() bool {
	for _, spec := range t.Fleets {
		if len(spec.Placed) > 0 {
			return true
		}
	}
	return len(t.short) > 0
}

// place decides for all tenants where it has to be decided anew, and adds the devices that
// get or lose an app.
func (w *worlds) place(now time.Time, d dirty) {
	for _, t := range w.tenants {
		if t.unplaced {
			t.unplaced = false
			t.place(now, d)
		}
	}
}

// review has placements decided anew that wait for a device's grace to end.
func (w *worlds) review() (due bool) {
	for _, t := range w.tenants {
		if t.waits {
			t.unplaced, due = true, true
		}
	}
	return due
}

// want is one placement of a fleet.
type wantPlaced struct {
	fleet string
	api.Placement
	seats []Seat
	on    []*entry // of each seat
}

// place reads fleets, apps, and what devices told; it writes Placed of devices, and t.short.
func (t *tenant) place(now time.Time, d dirty) {
	if !t.places() {
		return
	}
	stocks := map[*entry]*stock{}
	stockOn := func(e *entry) *stock {
		s := stocks[e]
		if s == nil {
			s = stockOf(e.uses, e.told)
			stocks[e] = s
		}
		return s
	}
	wants := t.wanted()
	t.reserve(wants, stockOn)
	next := map[*entry][]string{}
	t.short, t.waits = map[string]map[string]string{}, false
	for i := range wants {
		p := &wants[i]
		var claims map[string][]api.Claim
		if a := t.Apps[p.App]; a != nil {
			claims = a.Claims
		}
		for n, e := range p.on {
			s := &p.seats[n]
			s.Lacks = stockOn(e).take(p.App, claims)
			if s.Has {
				s.Lacks = t.patient(e, p.App, s.Lacks, now)
			}
		}
		chosen := Choose(p.seats, p.Replicas)
		for n, e := range p.on {
			if slices.Contains(chosen, e.Name) {
				next[e] = append(next[e], p.App)
			} else if s := &p.seats[n]; s.Lacks == "" && !s.Has {
				stockOn(e).drop(p.App, claims)
			}
		}
		if len(chosen) < p.Replicas {
			if t.short[p.fleet] == nil {
				t.short[p.fleet] = map[string]string{}
			}
			t.short[p.fleet][p.App] = missingWhere(p.seats)
		}
	}
	for _, e := range t.devices {
		apps := slices.Compact(slices.Sorted(slices.Values(next[e])))
		if !slices.Equal(apps, e.Placed) {
			e.Placed = apps
			d[e] = true
		}
	}
}

// wanted lists the placements of all fleets with the devices that they may choose.
func (t *tenant) wanted() (out []wantPlaced) {
	for _, name := range slices.Sorted(maps.Keys(t.Fleets)) {
		spec := t.Fleets[name]
		for _, p := range spec.Placed {
			w := wantPlaced{fleet: name, Placement: p}
			for _, device := range slices.Sorted(maps.Keys(t.devices)) {
				e := t.devices[device]
				if e.rendered() && spec.Selector.Matches(e.Labels) {
					w.on = append(w.on, e)
					w.seats = append(w.seats, Seat{Name: e.Name, Site: e.Spec.Site, Has: e.placed(p.App), Online: e.online})
				}
			}
			out = append(out, w)
		}
	}
	return out
}

// reserve sets aside what devices give to apps that are on them already, before any other
// app is placed.
func (t *tenant) reserve(wants []wantPlaced, stockOn func(*entry) *stock) {
	for i := range wants {
		for n, e := range wants[i].on {
			if a := t.Apps[wants[i].App]; a != nil && wants[i].seats[n].Has {
				stockOn(e).take(wants[i].App, a.Claims)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Fleets)) {
		spec := t.Fleets[name]
		if !slices.ContainsFunc(spec.Apps, func(app string) bool { return t.Apps[app] != nil && len(t.Apps[app].Claims) > 0 }) {
			continue
		}
		for e := range t.onDevices(spec) {
			for _, app := range spec.Apps {
				if a := t.Apps[app]; a != nil {
					stockOn(e).take(app, a.Claims)
				}
			}
		}
	}
}

func (t *tenant) onDevices(spec *api.FleetSpec) map[*entry]bool {
	out := map[*entry]bool{}
	for _, e := range t.devices {
		if e.rendered() && spec.Selector.Matches(e.Labels) {
			out[e] = true
		}
	}
	return out
}

// patient gives a device time that has an app and lacks something: what runs there shows
// that it does not, and what it has not told is no reason.
func (t *tenant) patient(e *entry, app, lacks string, now time.Time) string {
	if lacks == "" || !e.told || slices.Contains(e.running, app) {
		delete(e.lacking, app)
		return ""
	}
	since, known := e.lacking[app]
	if !known {
		if e.lacking == nil {
			e.lacking = map[string]time.Time{}
		}
		e.lacking[app], since = now, now
	}
	if now.Sub(since) < grace {
		t.waits = true
		return ""
	}
	return lacks
}

// drop gives back what take set aside.
func (s *stock) drop(app string, claims map[string][]api.Claim) {
	for service := range claims {
		delete(s.held, ownerOf(app, service))
	}
}

// expected are the apps of a fleet that a device that it picks shall run.
func (e *entry) expected(spec *api.FleetSpec) []string {
	if len(spec.Placed) == 0 {
		return spec.Apps
	}
	out := slices.Clone(spec.Apps)
	for _, p := range spec.Placed {
		if slices.Contains(e.Placed, p.App) {
			out = append(out, p.App)
		}
	}
	return out
}

// countPlaced takes a device into the sums of a fleet's placements.
func countPlaced(list []api.PlacementStatus, e *entry) {
	for i := range list {
		if p := &list[i]; slices.Contains(e.Placed, p.App) {
			p.Placed++
			if slices.Contains(e.running, p.App) {
				p.Running++
			}
		}
	}
}

// lack is what an app waits for on a device, as the device says it.
type lack struct{ app, message string }

// lacks lists what a device's apps wait for.
func lacks(s *api.DeviceStatus) (out []lack) {
	for _, a := range s.Apps {
		for _, v := range a.Services {
			if v.Lacks {
				out = append(out, lack{a.Name, v.Name + ": " + v.Message})
			}
		}
	}
	return out
}

// countLacks adds what a device's apps wait for to a fleet's list, where the fleet has them.
func countLacks(list []api.Lack, e *entry, apps []string) []api.Lack {
	for _, l := range e.lacks {
		if !slices.Contains(apps, l.app) {
			continue
		}
		n := slices.IndexFunc(list, func(o api.Lack) bool { return o.App == l.app && o.Message == l.message })
		if n < 0 {
			if len(list) == maxLacks {
				continue
			}
			n, list = len(list), append(list, api.Lack{App: l.app, Message: l.message})
		}
		list[n].Count++
		list[n].Devices = append(list[n].Devices, e.Name)
	}
	return list
}

// settleLacks brings the list into order, and names few devices of each.
func settleLacks(list []api.Lack) {
	for i := range list {
		slices.Sort(list[i].Devices)
		list[i].Devices = list[i].Devices[:min(len(list[i].Devices), maxNamed)]
	}
	slices.SortFunc(list, func(a, b api.Lack) int { return strings.Compare(a.App+"\x00"+a.Message, b.App+"\x00"+b.Message) })
}
