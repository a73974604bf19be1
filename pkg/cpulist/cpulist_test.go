package cpulist

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfDistinct(rapid.IntRange(0, 200), func(n int) int { return n }).Draw(t, "cpus")
		list, mask := Format(want), FormatMask(want)
		slices.Sort(want)
		if got := Parse(list); !slices.Equal(got, want) {
			t.Fatalf("%q is %v, not %v", list, got, want)
		}
		if got := ParseMask(mask); !slices.Equal(got, want) {
			t.Fatalf("%q is %v, not %v", mask, got, want)
		}
	})
}

func TestForms(t *testing.T) {
	for list, want := range map[string][]int{"": nil, "0-3,8": {0, 1, 2, 3, 8}, "3-1,x,-1,5\n": {5}, "0-99999999": nil} {
		if got := Parse(list); !slices.Equal(got, want) {
			t.Errorf("%q is %v", list, got)
		}
	}
	if got := FormatMask([]int{0, 33}); got != "2,00000001" {
		t.Error(got)
	}
	if got := ParseMask("zz"); got != nil {
		t.Error(got)
	}
}

func FuzzLists(f *testing.F) {
	f.Add("0-3,8")
	f.Add("ff,00000001")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		if again := Parse(Format(Parse(text))); !slices.Equal(again, slices.Compact(slices.Sorted(slices.Values(Parse(text))))) {
			t.Errorf("%q", text)
		}
		if again := ParseMask(FormatMask(ParseMask(text))); !slices.Equal(again, ParseMask(text)) {
			t.Errorf("%q", text)
		}
	})
}
