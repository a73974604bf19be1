package uplink

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestChoiceStory(t *testing.T) {
	ways := []Way{{"lte", 10, 50, true}, {"eth0", 0, 100, true}, {"eth1", 0, 200, true}}
	works := map[string]bool{"eth0": true, "eth1": true, "lte": true}
	var c Choice
	run := func(d time.Duration) string {
		for ; d > 0; d -= 10 * time.Second {
			c = c.Tick(ways, 10*time.Second, works[c.Best])
		}
		return c.Best
	}
	expect := func(what, want, got string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s leads out, want %s (%+v)", what, got, want, c)
		}
	}
	expect("at first the cheapest of the smallest metric, whatever the costly one's metric is", "eth0", run(time.Minute))
	works["eth0"] = false
	expect("half a minute without the parent is borne", "eth0", run(30*time.Second))
	expect("then the next is tried", "eth1", run(time.Minute))
	works["eth1"] = false
	expect("and the costly one last", "lte", run(70*time.Second))
	expect("the better ones are tried again now and then", "lte", run(8*time.Minute))
	works["eth1"] = true
	run(40 * time.Minute)
	expect("one that works again is gone back to", "eth1", run(10*time.Second))
	works["eth0"] = true
	run(3 * time.Hour)
	expect("and so is the best", "eth0", run(10*time.Second))
	if len(c.Failed) != 0 {
		t.Errorf("%v count as failed still", c.Failed)
	}
	ways[1].Up = false // the cable
	expect("without its cable it is not waited for", "eth1", run(10*time.Second))
	ways[1].Up = true
	expect("and with it taken at once", "eth0", run(10*time.Second))
}

// TestChoiceHolds: whatever happens to the uplinks, the way out is one that is up; with one
// that works it is found within the time that the others take to fail; a costly one leads out
// only when each cheaper one is down, has failed, or is being tried no longer.
func TestChoiceHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "uplinks")
		ways := make([]Way, n)
		works := map[string]bool{}
		for i := range ways {
			ways[i] = Way{Name: string(rune('a' + i)), Cost: rapid.Int64Range(0, 2).Draw(t, "cost"), Metric: rapid.IntRange(1, 3).Draw(t, "metric"), Up: true}
		}
		var c Choice
		tick := func() {
			passed := time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, "passed"))
			c = c.Tick(ways, passed, works[c.Best])
			up := usable(ways)
			if len(up) == 0 != (c.Best == "") || c.Best != "" && !slices.Contains(up, c.Best) {
				t.Fatalf("%+v of %v", c, up)
			}
			for _, name := range up {
				if name == c.Best {
					break
				}
				if !c.Failed[name] {
					t.Fatalf("%s leads out, and %s, which is better, has not failed: %+v", c.Best, name, c)
				}
			}
			if c.Hold > mostHold {
				t.Fatalf("%+v", c)
			}
		}
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "which")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				ways[i].Up = !ways[i].Up
			case 1:
				works[ways[i].Name] = !works[ways[i].Name]
			}
			tick()
		}
		// From here one works: found after each other one has had its minute, twice over, since a
		// try of the best may come between.
		for i := range ways {
			ways[i].Up, works[ways[i].Name] = true, false
		}
		good := ways[rapid.IntRange(0, n-1).Draw(t, "good")].Name
		works[good] = true
		for range 2 * n * (int(deaf/(10*time.Second)) + 1) {
			c = c.Tick(ways, 10*time.Second, works[c.Best])
			if c.Best == good {
				return
			}
		}
		t.Fatalf("the parent is reached by %s, and the way out is %+v", good, c)
	})
}
