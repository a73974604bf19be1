package natural

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestCompare(t *testing.T) {
	// 007a10 begins with the value 7, so it stands among the sevens.
	want := []string{"", "7", "07", "007a10", "10", "Core 2", "Core 10", "eth", "eth2", "eth2.7", "eth2.10", "eth10", "ethx", "sda", "x99999999999999999998", "x99999999999999999999"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, Compare)
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestOrder(t *testing.T) {
	name := rapid.StringMatching(`[ab0-9]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := name.Draw(t, "a"), name.Draw(t, "b"), name.Draw(t, "c")
		sign := func(n int) int { return min(max(n, -1), 1) }
		if sign(Compare(a, b)) != -sign(Compare(b, a)) || (Compare(a, b) == 0) != (a == b) {
			t.Fatalf("%q and %q", a, b)
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatalf("%q, %q, %q go round", a, b, c)
		}
	})
}
