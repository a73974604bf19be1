package report

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// someUses draws a box's devices and holders as claims.Book tells them: in order, each once.
func someUses(t *rapid.T) (uses []api.DeviceUse) {
	for i := range rapid.IntRange(0, 12).Draw(t, "devices") {
		u := api.DeviceUse{Claimable: api.Claimable{
			Class: rapid.SampledFrom([]api.ClaimClass{api.ClaimCPU, api.ClaimGPU, api.ClaimVF, api.ClaimHugePages}).Draw(t, "class"),
			ID:    fmt.Sprint("d", i), NUMA: rapid.IntRange(-1, 2).Draw(t, "node"), Units: 1,
			Driver: rapid.SampledFrom([]string{"", "igbvf"}).Draw(t, "driver"), Parent: rapid.SampledFrom([]string{"", "enp3s0", "a/b"}).Draw(t, "parent"),
			Fault:  rapid.SampledFrom([]string{"", "it is offline"}).Draw(t, "fault"),
			Shares: rapid.SampledFrom([]int{0, 4}).Draw(t, "shares"),
		}, Makes: rapid.Bool().Draw(t, "makes"), Room: rapid.IntRange(0, 3).Draw(t, "room")}
		if u.Class == api.ClaimHugePages {
			u.Units, u.Facts = rapid.IntRange(1, 2000).Draw(t, "units"), map[string]string{"size": "2M"}
		}
		for n := range rapid.IntRange(0, 2).Draw(t, "holders") {
			u.Holders = append(u.Holders, api.DeviceHolder{App: fmt.Sprint("app", n), Service: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service"), Units: rapid.IntRange(1, u.Units).Draw(t, "held")})
		}
		if len(u.Holders) > 0 && rapid.IntRange(0, 5).Draw(t, "gone") == 0 {
			u = api.DeviceUse{Claimable: api.Claimable{Class: u.Class, ID: u.ID, NUMA: -1, Units: 1, Fault: api.DeviceGone}, Holders: u.Holders}
		}
		uses = append(uses, u)
	}
	slices.SortStableFunc(uses, func(a, b api.DeviceUse) int { return strings.Compare(string(a.Class), string(b.Class)) })
	return uses
}

func TestClaimsAreTheSameAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		uses := someUses(t)
		entries, err := SplitClaims(uses)
		if err != nil {
			t.Fatal(err)
		}
		again, bad := JoinClaims(entries)
		if len(bad) > 0 || len(again) != len(uses) || len(uses) > 0 && !reflect.DeepEqual(again, uses) {
			t.Fatalf("%+v\nbecame\n%+v, unread %v", uses, again, bad)
		}
	})
}

// What one service takes is one small entry, whatever else the box has.
func TestATakenDeviceIsOneSmallEntry(t *testing.T) {
	var uses []api.DeviceUse
	for n := range 64 {
		uses = append(uses, api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimCPU, ID: fmt.Sprint("cpu", n), NUMA: n / 32, Units: 1, Facts: map[string]string{"isolated": "true"}}})
	}
	before, err := SplitClaims(uses)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		uses[n].Holders = []api.DeviceHolder{{App: "ran", Service: "du", Units: 1}}
	}
	after, err := SplitClaims(uses)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for key, v := range after {
		if string(before[key]) == string(v) {
			continue
		}
		changed++
		if len(key)+len(v) > 64 {
			t.Errorf("%s takes %d bytes", key, len(key)+len(v))
		}
	}
	if changed != 1 || len(after) != len(before)+1 {
		t.Errorf("%d entries changed: %v", changed, slices.Collect(maps.Keys(after)))
	}
}

func TestManyDevicesAreToldInGroups(t *testing.T) {
	var uses []api.DeviceUse
	for n := range 2 * maxAlike {
		uses = append(uses, api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimVF, ID: fmt.Sprintf("0000:03:%04d", n), NUMA: 0, Units: 1, Parent: "enp3s0"}})
	}
	entries, err := SplitClaims(uses)
	if err != nil {
		t.Fatal(err)
	}
	if again, bad := JoinClaims(entries); len(again) != len(uses) || bad != nil {
		t.Errorf("%d of %d, unread %v", len(again), len(uses), bad)
	}
}

func FuzzJoinClaims(f *testing.F) {
	entries, err := SplitClaims([]api.DeviceUse{
		{Claimable: api.Claimable{Class: api.ClaimHugePages, ID: "2M@0", Units: 512, Facts: map[string]string{"size": "2M"}}, Holders: []api.DeviceHolder{{App: "ran", Service: "du", Units: 8}}},
		{Claimable: api.Claimable{Class: api.ClaimVF, ID: "0000:03:10.0", Parent: "enp3s0", NUMA: 1, Units: 1}},
	})
	if err != nil {
		f.Fatal(err)
	}
	for key, v := range entries {
		f.Add(key, v)
	}
	f.Add("claim/has/", []byte{0x80})
	f.Add("claim/by/a", []byte{0x80})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		uses, _ := JoinClaims(map[string][]byte{key: value})
		if len(uses) > maxUses {
			t.Errorf("%d devices of one entry", len(uses))
		}
		for _, u := range uses {
			if u.Units < 1 || slices.ContainsFunc(u.Holders, func(h api.DeviceHolder) bool { return h.Units < 1 || h.App == "" || h.Service == "" }) {
				t.Errorf("%+v", u)
			}
		}
	})
}
