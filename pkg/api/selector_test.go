package api

import (
	"testing"

	"pgregory.net/rapid"
)

func TestParseSelector(t *testing.T) {
	labels := map[string]string{"tier": "access", "hw.tributary/arch": "arm64", "empty": ""}
	for text, want := range map[string]bool{
		"":                              false, // picks nothing
		"tier=access":                   true,
		"tier==access":                  true,
		"tier!=access":                  false,
		"other!=x":                      true,
		"tier in (field, access)":       true,
		"tier notin (field,access)":     false,
		"tier, hw.tributary/arch=arm64": true,
		"!missing":                      true,
		"!tier":                         false,
		"missing":                       false,
		"empty=":                        true,
	} {
		s, err := ParseSelector(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got := s.Matches(labels); got != want {
			t.Errorf("%q matches = %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{"=x", "a b", "a in b", "a within (b)", "a in (b", "a=b=c", "!", "in (a)", "a in ((b))"} {
		if _, err := ParseSelector(text); CodeOf(err) != Invalid {
			t.Errorf("%q: error %v, want code invalid", text, err)
		}
	}
}

// A selector survives being written and read.
func TestSelectorText(t *testing.T) {
	word := rapid.StringMatching(`[a-z][a-z0-9./-]{0,8}`)
	rapid.Check(t, func(t *rapid.T) {
		s := Selector{MatchLabels: rapid.MapOfN(word, word, 0, 3).Draw(t, "labels")}
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			r := Requirement{Key: word.Draw(t, "key"), Operator: rapid.SampledFrom([]string{OpIn, OpNotIn, OpExists, OpDoesNotExist}).Draw(t, "op")}
			if r.Operator == OpIn || r.Operator == OpNotIn {
				r.Values = rapid.SliceOfN(word, 1, 3).Draw(t, "values")
			}
			s.MatchExpressions = append(s.MatchExpressions, r)
		}
		again, err := ParseSelector(s.String())
		if err != nil {
			t.Fatal(err)
		}
		labels := rapid.MapOfN(word, word, 0, 4).Draw(t, "object")
		if s.Matches(labels) != again.Matches(labels) {
			t.Fatalf("%q means something else when read again", s)
		}
	})
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"a=b,c!=d", "a in (b,c)", "!x", "a notin ()", "((", ",,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err != nil {
			return
		}
		if _, err := ParseSelector(s.String()); err != nil {
			t.Fatalf("%q wrote %q: %v", text, s, err)
		}
	})
}
