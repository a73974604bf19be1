package api

import "testing"

func TestParseParent(t *testing.T) {
	for text, want := range map[string]ParentRef{
		"core.example":            {Address: "core.example:8883"},
		"10.0.0.1:99":             {Address: "10.0.0.1:99"},
		"10.0.0.1:99,98":          {Address: "10.0.0.1:99", HTTPSPort: 98},
		"10.0.0.1,98":             {Address: "10.0.0.1:8883", HTTPSPort: 98},
		"[fd00::1]:8883,8443":     {Address: "[fd00::1]:8883", HTTPSPort: 8443},
		"fd00::1":                 {Address: "[fd00::1]:8883"},
		"h:0":                     {},
		"h:1,70000":               {},
		"":                        {},
		":8883":                   {},
		"h:8883,":                 {},
		"core.example:8883,https": {},
	} {
		if got, err := ParseParent(text); (err != nil) != (want == ParentRef{}) || err == nil && got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
