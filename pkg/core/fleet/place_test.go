package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/report"
	"tributary.dev/tributary/tests/wait"
)

func drawSeats(t *rapid.T) (seats []Seat) {
	for i := range rapid.IntRange(0, 8).Draw(t, "devices") {
		seats = append(seats, Seat{
			Name: fmt.Sprint("d", i), Site: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "site"),
			Has: rapid.Bool().Draw(t, "has"), Online: rapid.Bool().Draw(t, "online"), Lacks: rapid.SampledFrom([]string{"", "", "1 × cpu is wanted"}).Draw(t, "lacks"),
		})
	}
	return seats
}

// able tells whether a device may be picked, or kept, without doubt.
func able(s *Seat) bool { return s.Lacks == "" && (s.Has || s.Online) }

func TestChoose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seats, n := drawSeats(t), rapid.IntRange(1, 6).Draw(t, "replicas")
		chosen := Choose(seats, n)
		var can, stays, moved, spared int
		for i := range seats {
			s, in := &seats[i], slices.Contains(chosen, seats[i].Name)
			if able(s) {
				can++
			}
			switch {
			case in && !s.Has && !able(s):
				t.Fatalf("%+v was picked", *s)
			case in && !s.Has:
				moved++
			case !in && s.Has && able(s):
				spared++
			case in:
				stays++
			}
		}
		if len(chosen) > n || !slices.IsSorted(chosen) || len(slices.Compact(slices.Clone(chosen))) != len(chosen) {
			t.Fatalf("%v of %d", chosen, n)
		}
		if len(chosen) < min(n, can) {
			t.Fatalf("%d of %d, and %d can", len(chosen), n, can)
		}
		if moved > 0 && spared > 0 {
			t.Fatalf("it was moved: %v of %+v", chosen, seats)
		}
		// Once it is so, it stays so.
		for i := range seats {
			seats[i].Has = slices.Contains(chosen, seats[i].Name)
		}
		if again := Choose(seats, n); !slices.Equal(again, chosen) {
			t.Fatalf("%v became %v", chosen, again)
		}
	})
}

// Among devices that can, no site gets a second before another has its first.
func TestChooseSpreadsOverSites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seats, n := drawSeats(t), rapid.IntRange(1, 6).Draw(t, "replicas")
		sites := map[string]bool{}
		for i := range seats {
			seats[i].Has = false
			if able(&seats[i]) {
				sites[place(&seats[i])] = true
			}
		}
		got := map[string]bool{}
		for _, name := range Choose(seats, n) {
			i := slices.IndexFunc(seats, func(s Seat) bool { return s.Name == name })
			got[place(&seats[i])] = true
		}
		if len(got) < min(n, len(sites)) {
			t.Fatalf("%d of %d sites", len(got), len(sites))
		}
	})
}

func cpus(n int, holders ...api.DeviceHolder) (uses []api.DeviceUse) {
	for i := range n {
		u := api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimCPU, ID: fmt.Sprint("cpu", i), NUMA: -1, Units: 1}}
		if i < len(holders) {
			u.Holders = holders[i : i+1]
		}
		uses = append(uses, u)
	}
	return uses
}

// What is set aside is never more than there is, and given back it is there again.
func TestStock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 6).Draw(t, "cpus")
		s := stockOf(cpus(n), true)
		free, on := n, map[string]map[string][]api.Claim{}
		for i := range rapid.IntRange(1, 8).Draw(t, "steps") {
			if app := fmt.Sprint("app", i-1); on[app] != nil && rapid.Bool().Draw(t, "drop") {
				s.drop(app, on[app])
				for _, c := range on[app] {
					free += c[0].Count
				}
				delete(on, app)
			}
			claims := map[string][]api.Claim{}
			want := 0
			for j := range rapid.IntRange(1, 2).Draw(t, "services") {
				c := rapid.IntRange(1, 3).Draw(t, "count")
				claims[fmt.Sprint("s", j)] = []api.Claim{{Class: api.ClaimCPU, Count: c}}
				want += c
			}
			lacks := s.take(fmt.Sprint("app", i), claims)
			if (lacks == "") != (want <= free) {
				t.Fatalf("%d wanted, %d free: %q", want, free, lacks)
			}
			if lacks == "" {
				free -= want
				on[fmt.Sprint("app", i)] = claims
			}
		}
	})
}

func TestStockOfWhatIsMadeAndUntold(t *testing.T) {
	slice := map[string][]api.Claim{"s": {{Class: api.ClaimGPU, Count: 1, Options: map[string]string{"profile": "1g.10gb"}}}}
	card := []api.DeviceUse{{Claimable: api.Claimable{Class: api.ClaimGPU, ID: "GPU-1", Units: 1}, Makes: true}}
	if lacks := stockOf(card, true).take("a", slice); lacks != "" {
		t.Errorf("a card that can be divided: %s", lacks)
	}
	card[0].Makes = false
	if lacks := stockOf(card, true).take("a", slice); !strings.Contains(lacks, "gpu") {
		t.Errorf("a card that cannot: %q", lacks)
	}
	// A card that is not cut yet tells what it has room for, and no other.
	room := []api.DeviceUse{{Claimable: api.Claimable{Class: api.ClaimGPU, ID: "GPU-1/1g.10gb", Parent: "GPU-1", Units: 1, Facts: map[string]string{"sharing": "mig", "profile": "1g.10gb"}}, Room: 2}}
	s := stockOf(room, true)
	for i, app := range []string{"a", "b", "c"} {
		if lacks := s.take(app, slice); (lacks == "") != (i < 2) {
			t.Errorf("app %d of a card with room for two slices: %q", i, lacks)
		}
	}
	other := map[string][]api.Claim{"s": {{Class: api.ClaimGPU, Count: 1, Options: map[string]string{"profile": "9g.90gb"}}}}
	if lacks := stockOf(room, true).take("a", other); lacks != "1 × gpu (profile 9g.90gb) is wanted; 0 free, 0 held by others; of 1 others its profile is 1g.10gb, not 9g.90gb" {
		t.Errorf("what the card has no room for: %q", lacks)
	}
	if c := api.CapacityOf(room); len(c) != 0 {
		t.Errorf("what is not made yet counts as %+v", c)
	}
	if lacks := stockOf(nil, false).take("a", slice); lacks != "it has not told what it has" {
		t.Errorf("a box that never told: %q", lacks)
	}
	if lacks := stockOf(nil, false).take("a", nil); lacks != "" {
		t.Errorf("an app that claims nothing: %q", lacks)
	}
}

// told is the report of a box with so many isolated processors, of which services hold some.
func told(t *testing.T, online bool, uses []api.DeviceUse, apps ...api.AppStatus) *Report {
	entries, err := report.SplitClaims(uses)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range apps {
		parts, err := report.Split(a)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(entries, parts)
	}
	entries[keyVersion] = encode("1")
	return &Report{Entries: entries, Parent: "core", Online: online, LastSeen: time.Now()}
}

func TestPlacementByCapacity(t *testing.T) {
	c := newCore(t, "")
	now := time.Now() // it stands still: no grace ends here
	c.change = func(cfg *Config) { cfg.Now = func() time.Time { return now } }
	role := map[string]string{"role": "ran"}
	var ids []api.DeviceID
	for n := range byte(4) {
		ids = append(ids, c.device(n+1, role))
	}
	claims := map[string][]api.Claim{"du": {{Class: api.ClaimCPU, Count: 2}}}
	c.put(api.KindApp, "ran", nil, api.AppSpec{Compose: "1"}, api.AppObjectStatus{Repo: "default/ran", Bundle: fmt.Sprintf("sha256:%064x", 1), Claims: claims})
	fleet := func(replicas int) {
		c.put(api.KindFleet, "ran", nil, api.FleetSpec{Selector: api.Selector{MatchLabels: role}, Placed: []api.Placement{{App: "ran", Replicas: replicas}}}, nil)
	}
	fleet(2)
	c.run()
	on := func(want ...int) func() bool {
		return func() bool {
			for i, id := range ids {
				s := c.published[id]
				if s == nil {
					return false
				}
				if _, has := s.Manifest.Items[manifest.PrefixApp+"ran"]; has != slices.Contains(want, i+1) {
					return false
				}
			}
			return true
		}
	}
	status := func(what string, ok func(*api.FleetStatus) bool) {
		t.Helper()
		var s api.FleetStatus
		wait.Until(t, what, func() bool {
			o, err := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindFleet, Name: "ran"})
			s = api.FleetStatus{}
			return err == nil && decode(o.Status, &s) == nil && len(s.Placed) == 1 && ok(&s)
		})
	}
	c.report(ids[0], told(t, true, cpus(1)))
	status("nobody can, and it says who lacks what", func(s *api.FleetStatus) bool {
		m := s.Placed[0].Message
		return s.Placed[0].Placed == 0 && strings.Contains(m, "d1: 2 × cpu is wanted") && strings.Contains(m, "d2") && strings.Contains(m, "it has not told what it has")
	})
	c.report(ids[1], told(t, true, cpus(2, api.DeviceHolder{App: "other", Service: "x", Units: 1})))
	c.report(ids[2], told(t, true, cpus(2)))
	c.until("on the one that has two free", on(3))
	running := api.AppStatus{Name: "ran", State: api.Running, Services: []api.ServiceStatus{{Name: "du", State: api.Running}}}
	du := api.DeviceHolder{App: "ran", Service: "du", Units: 1}
	c.report(ids[2], told(t, true, cpus(2, du, du), running))
	c.report(ids[3], told(t, true, cpus(8)))
	c.until("on the second that can", on(3, 4))
	status("all of it is placed", func(s *api.FleetStatus) bool {
		return s.Placed[0].Placed == 2 && s.Placed[0].Running == 1 && s.Placed[0].Message == "" && s.Devices == 4
	})

	// Neither a box that is cut off, nor one that lacks for a moment, nor a restart of the core moves it.
	c.report(ids[2], told(t, false, cpus(2, du, du), running))
	c.report(ids[3], told(t, true, nil))
	c.report(ids[1], told(t, true, cpus(8)))
	status("the others were heard", func(*api.FleetStatus) bool {
		o, err := c.db.Get(t.Context(), api.Key{Tenant: "default", Kind: api.KindDevice, Name: "d2"})
		var s api.DeviceStatus
		return err == nil && decode(o.Status, &s) == nil && len(s.Capacity) == 1 && s.Capacity[0].Free == 8
	})
	if !c.now(on(3, 4)) {
		t.Error("it was moved")
	}
	fleet(1)
	c.until("fewer replicas, where it is heard of", on(4))
	c.stop()
	c.published = map[api.DeviceID]*manifest.Signed{}
	c.run()
	c.until("the same after a restart", on(4))
}

// A device that lacks for long loses the app to one that can.
func TestPlacementMovesInTheEnd(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w := newWorlds()
	te := w.tenant("default")
	spec := &api.FleetSpec{Selector: api.Selector{MatchLabels: map[string]string{"role": "ran"}}, Placed: []api.Placement{{App: "ran", Replicas: 1}}}
	te.Fleets["ran"] = spec
	te.Apps["ran"] = &App{Claims: map[string][]api.Claim{"du": {{Class: api.ClaimCPU, Count: 1}}}}
	add := func(name string, uses []api.DeviceUse) *entry {
		e := &entry{Device: Device{Tenant: "default", Name: name, Labels: map[string]string{"role": "ran"}, Spec: api.DeviceSpec{Approved: true}}, online: true, told: true, uses: uses}
		te.devices[name] = e
		return e
	}
	a, b := add("a", cpus(1)), add("b", cpus(1))
	decide := func() {
		te.unplaced = true
		w.place(now, dirty{})
	}
	decide()
	if len(a.Placed) != 1 || len(b.Placed) != 0 {
		t.Fatalf("%v %v", a.Placed, b.Placed)
	}
	a.uses = nil
	decide()
	if len(a.Placed) != 1 || !w.review() {
		t.Fatal("it was moved at once, or is not looked at again")
	}
	now = now.Add(grace)
	decide()
	if len(a.Placed) != 0 || len(b.Placed) != 1 || w.review() {
		t.Fatalf("%v %v", a.Placed, b.Placed)
	}
	b.uses, b.running = nil, []string{"ran"}
	decide()
	now = now.Add(2 * grace)
	decide()
	if len(b.Placed) != 1 {
		t.Error("an app was moved that runs")
	}
	// Two apps do not count on the same processor.
	b.running = nil
	a.uses, b.uses = cpus(1), cpus(1)
	te.Apps["twin"] = te.Apps["ran"]
	spec.Placed = append(spec.Placed, api.Placement{App: "twin", Replicas: 2})
	decide()
	if !slices.Equal(a.Placed, []string{"twin"}) || !slices.Equal(b.Placed, []string{"ran"}) || !strings.Contains(te.short["ran"]["twin"], "b: 1 × cpu is wanted; 0 free, 1 held by others") {
		t.Errorf("%v %v %v", a.Placed, b.Placed, te.short)
	}
}

func TestLacksAreTold(t *testing.T) {
	waits := api.DeviceStatus{Apps: []api.AppStatus{{Name: "ran", Services: []api.ServiceStatus{{Name: "du", Message: "2 × vf is wanted; this box has no vf", Lacks: true}, {Name: "log"}}}}}
	var list []api.Lack
	for n := range 8 {
		e := &entry{Device: Device{Name: fmt.Sprint("d", n)}, lacks: lacks(&waits)}
		list = countLacks(list, e, []string{"ran"})
		list = countLacks(list, e, []string{"other"})
	}
	settleLacks(list)
	if len(list) != 1 || list[0].Count != 8 || len(list[0].Devices) != maxNamed || list[0].Message != "du: 2 × vf is wanted; this box has no vf" {
		t.Errorf("%+v", list)
	}
}
