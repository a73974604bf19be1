package api

import (
	"strings"
	"testing"
)

func TestCheckSharing(t *testing.T) {
	good := []Sharing{
		{Mode: SharingExclusive}, {Mode: SharingMIG}, {Mode: SharingMIG, Layout: []string{"3g.40gb", "1g.10gb+me", "1c.3g.40gb"}},
		{Mode: SharingTimeSlicing, Replicas: 2}, {Mode: SharingMPS, Replicas: 48, MemoryMiB: 8192, ThreadsPercent: 50},
	}
	for _, s := range good {
		if err := CheckSharing(&s); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
	}
	bad := []struct {
		s     Sharing
		field string
		words string
	}{
		{Sharing{}, "mode", "no way to share"},
		{Sharing{Mode: "halves"}, "mode", "no way to share"},
		{Sharing{Mode: SharingTimeSlicing}, "replicas", "among 0 services"},
		{Sharing{Mode: SharingMPS, Replicas: 49}, "replicas", "among 49 services"},
		{Sharing{Mode: SharingMIG, Replicas: 2}, "replicas", "knows no replicas"},
		{Sharing{Mode: SharingTimeSlicing, Replicas: 2, MemoryMiB: 1}, "memoryMiB", "limits neither"},
		{Sharing{Mode: SharingMPS, Replicas: 2, MemoryMiB: -1}, "memoryMiB", "no limit"},
		{Sharing{Mode: SharingMPS, Replicas: 2, ThreadsPercent: 101}, "threadsPercent", "no limit"},
		{Sharing{Mode: SharingExclusive, Layout: []string{"1g.5gb"}}, "layout", "no slices"},
		{Sharing{Mode: SharingMIG, Layout: []string{"1g.5gb", "half"}}, "layout[1]", "no MIG profile"},
		{Sharing{Mode: SharingMIG, Layout: make([]string, 17)}, "layout", "too long"},
	}
	for _, b := range bad {
		err := CheckSharing(&b.s)
		if err == nil || err.Field != b.field || !strings.Contains(err.Message, b.words) || err.Remedy == "" {
			t.Errorf("%+v: %v, want %s: …%s…", b.s, err, b.field, b.words)
		}
	}
}

func TestCheckMIG(t *testing.T) {
	at := func(start, size int) MIGPlacement { return MIGPlacement{Start: start, Size: size} }
	profile := MIGProfile{ID: 0, Name: "1g.5gb", Slices: 1, MemoryMiB: 4864, Max: 7, Placements: []MIGPlacement{at(0, 1), at(6, 1)}}
	if err := CheckMIG(&MIG{Profiles: []MIGProfile{profile}, Instances: []MIGInstance{{ID: 1, Placement: at(0, 4)}, {ID: 2, Placement: at(4, 4)}}}); err != nil {
		t.Fatal(err)
	}
	outside := profile
	outside.Placements = []MIGPlacement{at(60, 8)}
	for words, m := range map[string]*MIG{
		"told twice":    {Profiles: []MIGProfile{profile, profile}},
		"no such place": {Profiles: []MIGProfile{outside}},
		"over another":  {Instances: []MIGInstance{{ID: 1, Placement: at(0, 4)}, {ID: 2, Placement: at(3, 1)}}},
		"is at":         {Instances: []MIGInstance{{ID: 1, Placement: at(-1, 4)}}},
		"profiles":      {Profiles: make([]MIGProfile, 33)},
		"has 0 slices":  {Profiles: []MIGProfile{{ID: 1}}},
	} {
		if err := CheckMIG(m); err == nil || !strings.Contains(err.Message, words) {
			t.Errorf("%v, want …%s…", err, words)
		}
	}
}

// TestPoliciesInVain: one that could never count is a mistake, and an empty list of cards is not every card.
func TestPoliciesInVain(t *testing.T) {
	all, some := AcceleratorPolicy{Sharing: Sharing{Mode: SharingMIG}}, AcceleratorPolicy{Model: "*A100*", Sharing: Sharing{Mode: SharingExclusive}}
	named, none := all, all
	named.IDs, none.IDs = []string{"GPU-1"}, []string{}
	for _, good := range [][]AcceleratorPolicy{nil, {all}, {some, all}, {named, some, named, all}} {
		if err := CheckAcceleratorPolicies(good); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []struct {
		list         []AcceleratorPolicy
		field, words string
	}{
		{[]AcceleratorPolicy{all, some}, "[1]", "never counts"},
		{[]AcceleratorPolicy{some, all, all}, "[2]", "never counts"},
		{[]AcceleratorPolicy{some, none}, "[1].ids", "would name every card"},
	} {
		if err := CheckAcceleratorPolicies(bad.list); err == nil || err.Field != bad.field || !strings.Contains(err.Message, bad.words) || err.Remedy == "" {
			t.Errorf("%+v: %v, want %s: …%s…", bad.list, err, bad.field, bad.words)
		}
	}
}
