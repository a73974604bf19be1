package claim

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var owner = Owner{"app", "service"}

// some draws a box: cards, functions and pages over two nodes, some held by others.
func some(t *rapid.T) (devices []api.Claimable, held map[Owner][]Grant) {
	held = map[Owner][]Grant{}
	n := rapid.IntRange(0, 5).Draw(t, "devices")
	for i := range n {
		d := api.Claimable{
			Class: rapid.SampledFrom([]api.ClaimClass{api.ClaimVF, api.ClaimCPU, api.ClaimHugePages}).Draw(t, "class"),
			ID:    fmt.Sprint("d", i), NUMA: rapid.IntRange(-1, 1).Draw(t, "numa"), Units: 1,
			Driver: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "driver"),
		}
		if d.Class == api.ClaimHugePages {
			d.Units = rapid.IntRange(1, 4).Draw(t, "units")
		}
		if rapid.IntRange(0, 7).Draw(t, "faulty") == 0 {
			d.Fault = "it is broken"
		}
		d.Shares = rapid.SampledFrom([]int{0, 1, 2}).Draw(t, "shares")
		devices = append(devices, d)
		if rapid.IntRange(0, 4).Draw(t, "taken") == 0 {
			other := Owner{"other", fmt.Sprint(i)}
			held[other] = append(held[other], Grant{Class: d.Class, ID: d.ID, Units: rapid.IntRange(1, d.Units).Draw(t, "held")})
		}
	}
	return devices, held
}

func claimsOf(t *rapid.T) (wanted []api.Claim) {
	for range rapid.IntRange(1, 3).Draw(t, "claims") {
		c := api.Claim{
			Class: rapid.SampledFrom([]api.ClaimClass{api.ClaimVF, api.ClaimCPU, api.ClaimHugePages}).Draw(t, "wants"),
			Count: rapid.SampledFrom([]int{1, 1, 2, 3, api.AllOfThem}).Draw(t, "count"),
		}
		c.Driver = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "by")
		if numa := rapid.SampledFrom([]string{"", "", "same", "0", "1"}).Draw(t, "near"); numa != "" {
			c.Options = map[string]string{"numa": numa}
		}
		wanted = append(wanted, c)
	}
	return wanted
}

// units left of a device for owner, and whether it may be held at all.
func left(d *api.Claimable, held map[Owner][]Grant) (units int) {
	units = max(d.Units, 1)
	shares := max(d.Shares, 1)
	for other, grants := range held {
		for _, g := range grants {
			if other != owner && g.Class == d.Class && g.ID == d.ID {
				if d.Class == api.ClaimHugePages {
					units -= g.Units
				} else {
					shares--
				}
			}
		}
	}
	if shares <= 0 || d.Fault != "" {
		return 0
	}
	return max(units, 0)
}

// possible tells by trying everything whether the claims can be met at once.
func possible(devices []api.Claimable, held map[Owner][]Grant, wanted []api.Claim) bool {
	insist := false
	for _, c := range wanted {
		insist = insist || c.Options["numa"] == "same"
	}
	try := func(node int) bool {
		room := make([]int, len(devices))
		for i := range devices {
			if room[i] = left(&devices[i], held); node != anyNode && devices[i].NUMA >= 0 && devices[i].NUMA != node {
				room[i] = 0
			}
		}
		var fill func(n, need, from int) bool
		fill = func(n, need, from int) bool {
			if need == 0 {
				if n++; n == len(wanted) {
					return true
				}
				return fill(n, max(wanted[n].Count, 1), 0)
			}
			for i := from; i < len(devices); i++ {
				if wanted[n].Fits(&devices[i]) != "" || room[i] == 0 {
					continue
				}
				room[i]--
				if fill(n, need-1, i) {
					return true
				}
				room[i]++
			}
			return false
		}
		return fill(0, max(wanted[0].Count, 1), 0)
	}
	if !insist {
		return try(anyNode)
	}
	some := false
	for _, node := range []int{0, 1} {
		for i := range devices {
			if devices[i].NUMA == node {
				for _, c := range wanted {
					if c.Class == devices[i].Class {
						some = true
						if try(node) {
							return true
						}
					}
				}
			}
		}
	}
	return !some && try(anyNode)
}

// What is answered is sound, and there is an answer whenever brute force finds one.
func TestAllocateAgainstBruteForce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		devices, held := some(t)
		wanted := claimsOf(t)
		got, err := Allocate(devices, held, owner, wanted)
		if want := possible(devices, held, wanted); (err == nil) != want {
			t.Fatalf("got %v, %v; possible: %v", got, err, want)
		}
		if err != nil {
			var m *Missing
			if !errors.As(err, &m) || m.Claim < 0 || m.Claim >= len(wanted) || m.Words == "" {
				t.Fatalf("the refusal is %v", err)
			}
			return
		}
		checkSound(t, devices, held, wanted, got)
		again, err := Allocate(devices, map[Owner][]Grant{owner: got}, owner, wanted)
		if err != nil {
			t.Fatalf("what is held is not given again: %v", err)
		}
		have := map[Grant]bool{}
		for _, g := range again {
			have[g] = true
		}
		for _, g := range got {
			if c := wanted[g.Claim]; c.Count != api.AllOfThem && !have[g] {
				t.Fatalf("%v was held, now %v", got, again)
			}
		}
		for range 3 { // maps are in it: the same question has one answer
			same, err := Allocate(devices, held, owner, wanted)
			if err != nil || !reflect.DeepEqual(same, got) {
				t.Fatalf("%v, then %v (%v)", got, same, err)
			}
		}
	})
}

func checkSound(t *rapid.T, devices []api.Claimable, held map[Owner][]Grant, wanted []api.Claim, got []Grant) {
	used := map[string]int{}
	count := make([]int, len(wanted))
	nodes := map[int]bool{}
	insist := false
	for _, g := range got {
		used[g.ID] += g.Units
		count[g.Claim] += g.Units
		for i := range devices {
			d := &devices[i]
			if d.ID != g.ID || d.Class != g.Class {
				continue
			}
			if why := wanted[g.Claim].Fits(d); why != "" {
				t.Fatalf("%v does not fit: %s", g, why)
			}
			if used[g.ID] > left(d, held) {
				t.Fatalf("%v is handed out twice, or has a fault", g)
			}
			if d.NUMA >= 0 {
				nodes[d.NUMA] = true
			}
		}
	}
	for n, c := range wanted {
		insist = insist || c.Options["numa"] == "same"
		if c.Count == api.AllOfThem && count[n] == 0 || c.Count != api.AllOfThem && count[n] != c.Count {
			t.Fatalf("claim %d wants %d and got %d", n, c.Count, count[n])
		}
	}
	if insist && len(nodes) > 1 {
		t.Fatalf("devices of %d nodes", len(nodes))
	}
}

func TestPrefersOneNodeAndTheLeastThatSuffices(t *testing.T) {
	gpu := func(id string, numa int, memory string) api.Claimable {
		return api.Claimable{Class: api.ClaimGPU, ID: id, NUMA: numa, Units: 1, Facts: map[string]string{"memory": memory, "sharing": "exclusive"}}
	}
	vf := func(id string, numa int) api.Claimable {
		return api.Claimable{Class: api.ClaimVF, ID: id, NUMA: numa, Units: 1}
	}
	devices := []api.Claimable{gpu("g0", 0, "81920"), gpu("g1", 0, "16384"), gpu("g2", 1, "16384"), vf("f10", 1), vf("f9", 1)}
	got, err := Allocate(devices, nil, owner, []api.Claim{{Class: api.ClaimGPU, Count: 1, Options: map[string]string{"memory": "8000"}}})
	if err != nil || got[0].ID != "g1" {
		t.Errorf("got %v, %v; the smallest card suffices", got, err)
	}
	got, err = Allocate(devices, nil, owner, []api.Claim{{Class: api.ClaimGPU, Count: 1}, {Class: api.ClaimVF, Count: 1}})
	if err != nil || got[0].ID != "g2" || got[1].ID != "f9" {
		t.Errorf("got %v, %v; card and function of one node are there", got, err)
	}
}

// A function that may see what is not for it, or has RDMA, goes to who asked for that while
// there are others.
func TestRightsGoToWhoAsksForThem(t *testing.T) {
	vf := func(id, trust, rdma, speed string) api.Claimable {
		return api.Claimable{Class: api.ClaimVF, ID: id, NUMA: -1, Units: 1, Facts: map[string]string{"trust": trust, "rdma": rdma, "speed": speed}}
	}
	devices := []api.Claimable{vf("f0", "true", "false", "1000"), vf("f1", "false", "true", "1000"), vf("f2", "false", "false", "100000")}
	for _, c := range []struct {
		options map[string]string
		want    string
	}{{nil, "f2"}, {map[string]string{"trust": "true"}, "f0"}, {map[string]string{"rdma": "true"}, "f1"}} {
		got, err := Allocate(devices, nil, owner, []api.Claim{{Class: api.ClaimVF, Count: 1, Options: c.options}})
		if err != nil || len(got) != 1 || got[0].ID != c.want {
			t.Errorf("%v got %v, %v; %s is there", c.options, got, err, c.want)
		}
	}
}

// A box that starts with fewer pages than it gave has them in no two hands: who comes first by
// name keeps its own, the other waits.
func TestFewerPagesThanAreHeld(t *testing.T) {
	pages := func(n int) []api.Claimable {
		return []api.Claimable{{Class: api.ClaimHugePages, ID: "2M@0", NUMA: 0, Units: n, Facts: map[string]string{"size": "2M"}}}
	}
	wanted := []api.Claim{{Class: api.ClaimHugePages, Count: 256, Options: map[string]string{"size": "2M"}}}
	grant := []Grant{{Class: api.ClaimHugePages, ID: "2M@0", Units: 256}}
	first, second := Owner{"a", "one"}, Owner{"b", "one"}
	held := map[Owner][]Grant{first: grant, second: grant}
	for _, c := range []struct {
		units      int
		one, other bool
	}{{512, true, true}, {300, true, false}, {256, true, false}, {200, false, false}} {
		for o, want := range map[Owner]bool{first: c.one, second: c.other} {
			got, err := Allocate(pages(c.units), held, o, wanted)
			if (err == nil) != want || want && !reflect.DeepEqual(got, grant) {
				t.Errorf("of %d pages %s got %v, %v", c.units, o, got, err)
			}
		}
	}
	// Fewer are asked for: what is held is kept as far as that.
	wanted[0].Count = 100
	got, err := Allocate(pages(300), held, first, wanted)
	if err != nil || len(got) != 1 || got[0].Units != 100 {
		t.Errorf("100 of 256 that are held: %v, %v", got, err)
	}
}

// What cannot be had is said with numbers and reasons.
func TestMissingSaysWhatHinders(t *testing.T) {
	devices := []api.Claimable{
		{Class: api.ClaimGPU, ID: "g0", Driver: "nvidia", Units: 1, Facts: map[string]string{"sharing": "exclusive"}},
		{Class: api.ClaimGPU, ID: "g1", Driver: "nvidia", Units: 1, Facts: map[string]string{"sharing": "exclusive"}, Fault: "it fell off the bus"},
		{Class: api.ClaimGPU, ID: "g2", Driver: "amdgpu", Units: 1, Facts: map[string]string{"sharing": "exclusive"}},
		{Class: api.ClaimHugePages, ID: "2M@0", Units: 5, Facts: map[string]string{"size": "2M"}},
	}
	held := map[Owner][]Grant{{"a", "b"}: {{Class: api.ClaimGPU, ID: "g0", Units: 1}}}
	for _, c := range []struct {
		claim api.Claim
		want  []string
	}{
		{api.Claim{Class: api.ClaimGPU, Driver: "nvidia", Count: 1}, []string{"1 × gpu (nvidia) is wanted", "0 free, 1 held by others", "it fell off the bus", "its driver is amdgpu"}},
		{api.Claim{Class: api.ClaimVF, Count: 1}, []string{"this box has no vf"}},
		{api.Claim{Class: api.ClaimHugePages, Count: 9}, []string{"5 pages are free"}},
	} {
		_, err := Allocate(devices, held, owner, []api.Claim{c.claim})
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %v lacks %q", c.claim, err, w)
			}
		}
	}
}
