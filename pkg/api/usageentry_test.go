package api

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestEntryIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var dev DeviceID
		copy(dev[:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "device"))
		epoch, seq := rapid.Uint64Range(0, 1<<63-1).Draw(t, "epoch"), rapid.Uint64Range(0, 1<<63-1).Draw(t, "seq")
		n := rapid.IntRange(0, 1<<20).Draw(t, "n")
		id := RecordEntryID(dev, epoch, seq, n)
		dev2, epoch2, seq2, n2, err := ParseRecordEntryID(id)
		if err != nil || dev2 != dev || epoch2 != epoch || seq2 != seq || n2 != n {
			t.Fatalf("%s: %v %d %d %d, %v", id, dev2, epoch2, seq2, n2, err)
		}
		s1, s2 := rapid.StringMatching(`[a/%2F]{0,6}`).Draw(t, "source"), rapid.StringMatching(`[a/%2F]{0,6}`).Draw(t, "other")
		i1, i2 := rapid.StringMatching(`[a/%]{0,6}`).Draw(t, "id"), rapid.StringMatching(`[a/%]{0,6}`).Draw(t, "other id")
		if (s1 != s2 || i1 != i2) && EventEntryID(s1, i1) == EventEntryID(s2, i2) {
			t.Fatalf("%q %q and %q %q are one", s1, i1, s2, i2)
		}
	})
	for _, bad := range []string{"", "r/", "r/aaaaaaaaaaaaa/1/2", "r/aaaaaaaaaaaaa/01/2/3", "r/aaaaaaaaaaaaa/1/-2/3", "e/aaaaaaaaaaaaa/1/2/3", "r/aaaaaaaaaaaaa/1/2/x"} {
		if _, _, _, _, err := ParseRecordEntryID(bad); CodeOf(err) != Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMetersHaveUnits(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Meters() {
		if seen[m.Name] || m.Unit == "" || m.Says == "" || MeterUnit(m.Name) != m.Unit || strings.ToLower(m.Name) != m.Name {
			t.Errorf("%+v", m)
		}
		seen[m.Name] = true
	}
	if MeterUnit("none") != "" {
		t.Error("a meter that is none has a unit")
	}
}
