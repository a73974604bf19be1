package uplink

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// deaf is how long the parent may be out of reach by one uplink before the next is tried.
	deaf = time.Minute
	// proven is how long it must have been reached for an uplink that had failed to count as
	// good again.
	proven = 30 * time.Second
	// firstHold is how long the box stays with a lesser uplink before it tries the better one
	// that had failed; it doubles with each such try, up to mostHold.
	firstHold = 5 * time.Minute
	mostHold  = 2 * time.Hour
	// preferred is the metric of the route by the chosen uplink: below all others.
	preferred = 1
	// maxCost bounds the cost of an uplink.
	maxCost = 1000
)

// Way is an uplink by which the parent may be reached.
type Way struct {
	Name   string
	Cost   int64 // the cheapest come first
	Metric int   // and of those the smallest metric
	Up     bool  // it has an address and a gateway
}

// Choice is which uplink leads out, when there are several. It is a plain value; Tick tells
// what comes next.
type Choice struct {
	Best string
	// Silent is how long the parent is out of reach by Best, Well how long within reach.
	Silent, Well time.Duration
	// Failed are those by which it was not reached, Held how long the box is with a lesser
	// one, and Hold how long it stays.
	Failed     map[string]bool
	Held, Hold time.Duration
}

// Tick hears of the uplinks, and whether the parent was reached in the time that passed.
func (c Choice) Tick(ways []Way, passed time.Duration, online bool) Choice {
	ready := usable(ways)
	if len(ready) == 0 {
		return Choice{}
	}
	c.Failed, passed = maps.Clone(c.Failed), max(passed, 0)
	for name := range c.Failed {
		if !slices.Contains(ready, name) {
			delete(c.Failed, name) // when it comes back it may lead elsewhere
		}
	}
	if !slices.Contains(ready, c.Best) {
		return c.to(c.first(ready))
	}
	if online {
		c.Silent, c.Well = 0, c.Well+passed
	} else {
		c.Silent, c.Well = c.Silent+passed, 0
	}
	if c.Well >= proven {
		delete(c.Failed, c.Best)
		if c.Best == ready[0] {
			c.Hold = 0
		}
	}
	if c.Silent >= deaf && len(ready) > 1 {
		return c.fail(ready)
	}
	return c.better(ready, passed)
}

// usable are the names of the uplinks that could lead out, the best first.
func usable(ways []Way) (names []string) {
	ways = slices.Clone(ways)
	slices.SortStableFunc(ways, func(a, b Way) int {
		return cmp.Or(cmp.Compare(a.Cost, b.Cost), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Name, b.Name))
	})
	for _, w := range ways {
		if w.Up {
			names = append(names, w.Name)
		}
	}
	return names
}

// to turns to another uplink.
func (c Choice) to(name string) Choice {
	c.Best, c.Silent, c.Well, c.Held = name, 0, 0, 0
	return c
}

// first is the best of those that have not failed, or the best of all.
func (c Choice) first(ready []string) string {
	for _, name := range ready {
		if !c.Failed[name] {
			return name
		}
	}
	return ready[0]
}

// fail goes on to the next; when all have failed, around once more.
func (c Choice) fail(ready []string) Choice {
	if c.Failed == nil {
		c.Failed = map[string]bool{}
	}
	c.Failed[c.Best] = true
	next := c.first(ready)
	if c.Failed[next] {
		next = ready[(slices.Index(ready, c.Best)+1)%len(ready)]
	}
	c.Hold = min(max(2*c.Hold, firstHold), mostHold)
	return c.to(next)
}

// better goes back to a better uplink: at once to one that is new, after a while to one that
// had failed.
func (c Choice) better(ready []string, passed time.Duration) Choice {
	at := slices.Index(ready, c.Best)
	for _, name := range ready[:at] {
		if !c.Failed[name] {
			return c.to(name)
		}
	}
	if c.Held += passed; at > 0 && c.Held >= c.Hold {
		for _, name := range ready[:at] {
			delete(c.Failed, name) // each gets its turn
		}
		return c.to(ready[0])
	}
	return c
}

// choose keeps the way out on the uplink by which the parent is reached.
func (r *runner) choose(ctx context.Context) {
	tick := time.NewTicker(r.cfg.Choose)
	defer tick.Stop()
	var c Choice
	var on *netlink.Route
	defer func() {
		if on != nil {
			_ = netlink.RouteDel(on) // with its settings; it may have gone with its card
		}
	}()
	for last := r.cfg.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := r.cfg.Now()
		ways, gateways := r.ways()
		next := c.Tick(ways, now.Sub(last), len(usable(ways)) < 2 || r.cfg.Online(ctx)) // one way needs no question
		last = now
		if next.Best != c.Best && c.Best != "" && next.Best != "" {
			r.cfg.Say("network: the way out is %s now, was %s", next.Best, c.Best)
		}
		c = next
		on = r.prefer(on, c.Best, gateways[c.Best], len(usable(ways)) > 1)
	}
}

// ways are the uplinks with what is known of them.
func (r *runner) ways() (ways []Way, gateways map[string]netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gateways = map[string]netip.Addr{}
	for _, s := range r.seen {
		g, err := netip.ParseAddr(s.Gateway)
		ways = append(ways, Way{Name: s.Name, Cost: s.Cost, Metric: s.Metric, Up: s.Up && err == nil})
		gateways[s.Name] = g
	}
	return ways, gateways
}

// prefer puts a route by the chosen uplink before all others, and takes the one before away.
func (r *runner) prefer(old *netlink.Route, name string, gateway netip.Addr, several bool) *netlink.Route {
	var want *netlink.Route
	if i, err := net.InterfaceByName(name); err == nil && several && gateway.IsValid() {
		want = &netlink.Route{LinkIndex: i.Index, Gw: gateway.AsSlice(), Priority: preferred, Flags: int(netlink.FLAG_ONLINK)}
	}
	if old != nil && (want == nil || old.LinkIndex != want.LinkIndex || !old.Gw.Equal(want.Gw)) {
		_ = netlink.RouteDel(old) // it may have gone with its card
	}
	if want != nil {
		if err := netlink.RouteReplace(want); err != nil {
			r.cfg.Say("network: the way out by %s: %v", name, err)
			want = nil
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.best != name {
		r.best = name
		if err := r.write(); err != nil {
			r.cfg.Say("network: %v", err)
		}
	}
	return want
}
