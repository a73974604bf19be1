package mqtt

import (
	"time"

	"tributary.dev/tributary/pkg/api"
)

// DefaultSteady is how long a better parent must have answered before a device goes back
// to it.
const DefaultSteady = 3 * time.Minute

// Bounds of climbing, as multiples of the steady time s.
const (
	askFirst  = 6   // the first question after s/6
	askOften  = 4   // a parent that answers is asked every s/4 at most
	askSeldom = 10  // one that does not, at last every 10 s
	holdMost  = 120 // a parent that is not trusted must have answered for 120 s (6 h) at most
	stay      = 10  // a session of 10 times its hold restores the trust

	distrustMost = 7 // 2⁷ > holdMost
)

// climb decides when a device that is attached to a lesser parent goes back to a better
// one. A better parent is asked whether it answers: seldom, and less often the longer it
// has been silent. Only when it has answered each time over the whole hold is a session
// tried with it. The hold is doubled by each session that the parent refuses, and by each
// that it soon drops, so that a parent which comes and goes is left alone. It looks at no
// clock: times and chance (r in [0, 1)) are passed in.
type climb struct {
	steady time.Duration
	rungs  map[api.ParentRef]*rung
}

// rung is what is known of one better parent.
type rung struct {
	next     time.Time // when to ask it
	since    time.Time // of the first answer since it was last silent; zero: silent
	silences int       // in a row
	distrust int       // how often its hold was doubled
}

func (c *climb) hold(g *rung) time.Duration {
	return min(c.steady<<min(g.distrust, distrustMost), holdMost*c.steady)
}

// begin starts the watch from a session with a lesser parent: what answered before that
// counts no more, how far a parent is trusted does. Parents that are not in listed are
// forgotten.
func (c *climb) begin(listed, better []api.ParentRef, now time.Time, r float64) {
	old := c.rungs
	c.rungs = map[api.ParentRef]*rung{}
	for _, p := range listed {
		if g := old[p]; g != nil {
			c.rungs[p] = g
		}
	}
	for _, p := range better {
		g := c.rung(p)
		g.since, g.silences, g.next = time.Time{}, 0, now.Add(spread(c.steady/askFirst, r))
	}
}

func (c *climb) rung(p api.ParentRef) *rung {
	g := c.rungs[p]
	if g == nil {
		if c.rungs == nil {
			c.rungs = map[api.ParentRef]*rung{}
		}
		g = &rung{}
		c.rungs[p] = g
	}
	return g
}

// next tells which of some parents is to be asked next, and when; the first at a tie.
func (c *climb) next(better []api.ParentRef) (p api.ParentRef, at time.Time) {
	for i, q := range better {
		if t := c.rung(q).next; i == 0 || t.Before(at) {
			p, at = q, t
		}
	}
	return p, at
}

// answered notes that p answers now. move tells that it has done so for long enough.
func (c *climb) answered(p api.ParentRef, now time.Time, r float64) (move bool) {
	g := c.rung(p)
	g.silences = 0
	if g.since.IsZero() {
		g.since = now
	}
	g.next = now.Add(spread(c.hold(g)/askOften, r))
	return now.Sub(g.since) >= c.hold(g)
}

// silent notes that p does not answer now.
func (c *climb) silent(p api.ParentRef, now time.Time, r float64) {
	g := c.rung(p)
	g.since = time.Time{}
	g.silences++
	g.next = now.Add(spread(min(c.steady/askFirst<<min(g.silences, 6), askSeldom*c.steady), r))
}

// refused notes that p answered for long enough and then took no session.
func (c *climb) refused(p api.ParentRef, now time.Time, r float64) {
	g := c.rung(p)
	g.distrust = min(g.distrust+1, distrustMost)
	g.since, g.next = time.Time{}, now.Add(spread(c.hold(g)/askOften, r))
}

// ended notes how long a session with p lasted, which the device had climbed to or not.
func (c *climb) ended(p api.ParentRef, climbed bool, lasted time.Duration) {
	g := c.rung(p)
	switch {
	case lasted >= stay*c.hold(g):
		g.distrust = 0
	case climbed:
		g.distrust = min(g.distrust+1, distrustMost)
	}
}

// spread takes up to a half off by chance, so that a site's devices do not come together.
func spread(d time.Duration, r float64) time.Duration { return d/2 + time.Duration(r*float64(d/2)) }

// above are the parents of the list that are better than the one at index at. Other
// addresses of the same box, which is who, are no better.
func above(parents []api.ParentRef, at int, who string) (out []api.ParentRef) {
	for _, p := range parents[:min(at, len(parents))] {
		if p.Device == "" || p.Device != who {
			out = append(out, p)
		}
	}
	return out
}
