package spool

import (
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// However often intervals are summed for room: all use is there, and none reaches across a
// cut point.
func TestSumsEndAtCutPoints(t *testing.T) {
	if most := coarsest(t, []bool{false, false, true, false, false, false, true, false}); most != 3 {
		t.Errorf("three days became %d records", most)
	}
	rapid.Check(t, func(t *rapid.T) {
		coarsest(t, rapid.SliceOfN(rapid.Bool(), 1, 60).Draw(t, "cuts"))
	})
}

// coarsest sums up one record for each of cuts, which says whether it ends at a cut point,
// until nothing more can be summed, and tells how many there are then.
func coarsest(t rapid.TB, cuts []bool) int {
	t.Helper()
	var items []linked
	ends := map[int64]bool{} // cut points
	for i, cut := range cuts {
		u := api.Usage{From: int64(i) * 10, To: int64(i+1) * 10, Cut: cut, Uses: []api.ContainerUse{{App: "a", CPUMicros: 1, More: map[string]uint64{"vf": 2}}}}
		ends[u.To] = cut
		payload, err := record.EncodeUsage(u)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, linked{record.Record{Seq: uint64(i + 1), Last: uint64(i + 1), Kind: api.RecordUsage, Payload: payload}, record.Hash{byte(i), 1}})
	}
	for before := len(items) + 1; len(items) < before; {
		before = len(items)
		items = rewrite(items, rules{level: sumUsage})
	}
	next, all := uint64(1), uint64(0)
	for _, it := range items {
		u, err := record.DecodeUsage(it.Payload)
		if err != nil || it.Seq != next || u.Cut != ends[u.To] {
			t.Fatalf("record %d after %d: %+v, %v", it.Seq, next-1, u, err)
		}
		for at := u.From + 10; at < u.To; at += 10 {
			if ends[at] {
				t.Fatalf("%d to %d goes across %d", u.From, u.To, at)
			}
		}
		if all += u.Uses[0].CPUMicros; u.Uses[0].More["vf"] != 2*u.Uses[0].CPUMicros {
			t.Fatalf("%+v", u.Uses[0])
		}
		next = it.Last + 1
	}
	if all != uint64(len(cuts)) || next != all+1 {
		t.Fatalf("%d of %d intervals are there, up to %d", all, len(cuts), next-1)
	}
	return len(items)
}
