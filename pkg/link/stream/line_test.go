package stream

import (
	"net/url"
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

// A card's name becomes part of a path on the box.
func TestLineNames(t *testing.T) {
	for name, good := range map[string]bool{"rshim0": true, "rshim12": true, "": false, "../mem": false, "rshim": false, "rshim0/../..": false, "rshim123": false, "ttyS0": false} {
		c, err := FromQuery(Line, url.Values{"line": {name}})
		if (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
		if again, err := FromQuery(Line, c.Query()); good && (err != nil || again.Line != name) {
			t.Errorf("%q does not come through a query: %+v, %v", name, again, err)
		}
	}
}

func TestLineNamesCount(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "line", Test: "^TestLineNames$", File: "command.go", From: "!lineName.MatchString(c.Line) { // check: line", To: "!lineName.MatchString(c.Line) && !GONE {", Says: "../mem"})
}
