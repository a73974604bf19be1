package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func cut() *Inventory {
	// Of a card with eight memory slices: three idle, held and cordoned ones, and one that a
	// stranger's program runs on.
	m := &MIG{Enabled: true, Told: true, Profiles: []MIGProfile{
		{ID: 1, Name: "1g.5gb", Slices: 1, MemoryMiB: 4864, Max: 7, Placements: []MIGPlacement{{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1}}},
		{ID: 2, Name: "3g.20gb", Slices: 3, MemoryMiB: 19968, Max: 2, Placements: []MIGPlacement{{0, 4}, {4, 4}}},
	}, Instances: []MIGInstance{
		{UUID: "MIG-1", ID: 1, Profile: 1, Name: "1g.5gb", Placement: MIGPlacement{0, 1}, Busy: true},
		{UUID: "MIG-2", ID: 2, Profile: 1, Name: "1g.5gb", Placement: MIGPlacement{1, 1}, Busy: true},
		{UUID: "MIG-3", ID: 3, Profile: 1, Name: "1g.5gb", Placement: MIGPlacement{2, 1}, Cordoned: "memory failed"},
		{UUID: "MIG-4", ID: 4, Profile: 1, Name: "1g.5gb", Placement: MIGPlacement{5, 1}},
	}}
	finding := AcceleratorFinding{Warning: Warning{Name: "gpu-xid", Message: "memory failed", Since: 50}, Slice: "MIG-3", Action: "cordon"}
	return &Inventory{Accelerators: []Accelerator{
		{ID: "GPU-0", MemoryMiB: 40960, Sharing: Sharing{Mode: SharingMIG}, MIG: m, Findings: []AcceleratorFinding{finding}},
		{ID: "GPU-1", MemoryMiB: 81920, Sharing: Sharing{Mode: SharingTimeSlicing, Replicas: 3}},
		{ID: "GPU-2", Sharing: Sharing{Mode: SharingExclusive}, Findings: []AcceleratorFinding{{Warning: Warning{Message: "it is lost", Since: 70}, Action: "move"}, {Warning: Warning{Message: "noted", Since: 90}, Action: "none"}}},
	}, Claims: []DeviceUse{
		{Claimable: Claimable{Class: ClaimGPU, ID: "GPU-0/0+1"}, Holders: []DeviceHolder{{App: "a", Service: "s"}}},
		{Claimable: Claimable{Class: ClaimGPU, ID: "GPU-1"}, Holders: []DeviceHolder{{App: "b", Service: "s"}, {App: "c", Service: "s"}}},
		{Claimable: Claimable{Class: ClaimVF, ID: "GPU-2"}, Holders: []DeviceHolder{{App: "d", Service: "s"}}},
	}}
}

func TestParts(t *testing.T) {
	var got []string
	for _, p := range cut().Parts() {
		got = append(got, fmt.Sprint(p.ID, "|", p.Profile, "|", p.MemoryMiB, "|", p.Compute, "|", strings.Join(p.By, " "), "|", p.State))
	}
	want := []string{
		"GPU-0/0+1|1g.5gb|4864|1|a/s|held",
		"GPU-0/1+1|1g.5gb|4864|1||a program runs on it that no app started",
		"GPU-0/2+1|1g.5gb|4864|1||cordoned: memory failed",
		"GPU-0/5+1|1g.5gb|4864|1||free",
		"GPU-0||40960|0||room for 4 × 1g.5gb or 1 × 3g.20gb",
		"GPU-1||81920|0|b/s c/s|2 of 3 held",
		"GPU-2||0|0||cordoned: it is lost",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNewest(t *testing.T) {
	for id, want := range map[string]int64{"GPU-0": 50, "GPU-0/2+1": 50, "GPU-0/0+1": 0, "GPU-1": 0, "GPU-2": 70, "GPU-9": 0, "": 0} {
		if got, ok := cut().Newest(id); got != want || ok != (want > 0) {
			t.Errorf("%s: %d, %v", id, got, ok)
		}
	}
}

func TestSaid(t *testing.T) {
	list := []Uncordon{{"GPU-0/2+1", 1}, {"GPU-00", 2}}
	list = Said(list, Uncordon{"GPU-0", 3})
	if want := []Uncordon{{"GPU-00", 2}, {"GPU-0", 3}}; !slices.Equal(list, want) {
		t.Errorf("%v", list)
	}
	for i := range 2 * maxUncordon {
		list = Said(list, Uncordon{fmt.Sprint("GPU-", i), 9})
	}
	var f findings
	if validateUncordon(list, "uncordon", &f); len(list) != maxUncordon || len(f.list) > 0 {
		t.Errorf("%d words, %v", len(list), f)
	}
}

func TestUncordonRefused(t *testing.T) {
	for name, list := range map[string][]Uncordon{"a word about a card": {{"GPU-0", 0}}, "words about cards": make([]Uncordon, maxUncordon+1), "no card": {{"", 5}}} {
		var f findings
		validateUncordon(list, "uncordon", &f)
		if len(f.list) != 1 {
			t.Errorf("%s: %v", name, f)
		}
	}
}

// One daemon has a service's ear: of two cards by mps it would see one.
func TestOneCardByMPS(t *testing.T) {
	mps := Claim{Class: ClaimGPU, Count: 1, Options: map[string]string{"sharing": "mps"}}
	turns := Claim{Class: ClaimGPU, Count: 2, Options: map[string]string{"sharing": "time-slicing"}}
	two, all := mps, mps
	two.Count, all.Count = 2, AllOfThem
	if err := CheckClaims([]Claim{turns, mps}); err != nil {
		t.Errorf("one card by mps beside others: %v", err)
	}
	for _, list := range [][]Claim{{two}, {mps, mps}, {turns, all}} {
		if err := CheckClaims(list); err == nil || !strings.Contains(err.Message, "one card by mps") {
			t.Errorf("%+v: %v", list, err)
		}
	}
}

// TestPartsOfAnotherWay: words that the way of sharing does not have would be passed over, or waited for in vain.
func TestPartsOfAnotherWay(t *testing.T) {
	for _, good := range []map[string]string{
		{"profile": "1g.10gb+me"}, {"compute": "2", "memory": "9000"}, {"sharing": "mig", "profile": "3g.20gb"}, {"sharing": "mps", "threads": "50", "memory-limit": "8192"},
	} {
		if err := CheckClaim(&Claim{Class: ClaimGPU, Count: 1, Options: good}); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []struct {
		options      map[string]string
		field, words string
	}{
		{map[string]string{"threads": "50"}, "options.threads", "threads is of a claim by mps, and this one is exclusive"},
		{map[string]string{"sharing": "time-slicing", "memory-limit": "8192"}, "options.memory-limit", "is of a claim by mps"},
		{map[string]string{"sharing": "exclusive", "profile": "1g.5gb"}, "options.profile", "is of a claim by mig"},
		{map[string]string{"sharing": "mps", "compute": "1"}, "options.compute", "is of a claim by mig"},
		{map[string]string{"sharing": "mps", "memory-limit": "0"}, "options.memory-limit", "is no value"},
		{map[string]string{"compute": "0"}, "options.compute", "is no value"},
		{map[string]string{"profile": "1g5gb"}, "options.profile", "is no value"},
		{map[string]string{"profile": "half"}, "options.profile", "is no value"},
	} {
		if err := CheckClaim(&Claim{Class: ClaimGPU, Count: 1, Options: bad.options}); err == nil || err.Field != bad.field || !strings.Contains(err.Message, bad.words) || err.Remedy == "" {
			t.Errorf("%v: %v, want %s: …%s…", bad.options, err, bad.field, bad.words)
		}
	}
}

// TestClaimsTooMany: devices are looked for one by one, pages are counted.
func TestClaimsTooMany(t *testing.T) {
	for class, most := range map[ClaimClass]int{ClaimGPU: 1 << 10, ClaimVF: 1 << 10, ClaimCPU: 1 << 10, ClaimHugePages: 1 << 20} {
		if err := CheckClaim(&Claim{Class: class, Count: most}); err != nil {
			t.Errorf("%d × %s: %v", most, class, err)
		}
		for _, bad := range []int{0, -2, most + 1} {
			if err := CheckClaim(&Claim{Class: class, Count: bad}); err == nil || err.Field != "count" {
				t.Errorf("%d × %s: %v", bad, class, err)
			}
		}
	}
}
