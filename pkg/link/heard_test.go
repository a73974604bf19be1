package link_test

import (
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// A device counts as heard with each word of the relay that vouches for it, and no more
// once the relay is silent, or says that the device is gone.
func TestHeard(t *testing.T) {
	g := newGrove(t)
	agg := g.add(api.DeviceID{1}, nil, link.NewMemStore(), nil)
	field := g.add(api.DeviceID{2}, agg, link.NewMemStore(), nil)
	other := g.add(api.DeviceID{3}, agg, link.NewMemStore(), nil)
	ago := func(b *growth) time.Duration { return g.now.Sub(g.core.Heard(b.id)) }
	const beat = 70 * time.Second // a minute, spread a little
	for range 20 {
		g.wait(time.Minute)
		for _, b := range []*growth{agg, field, other} {
			if !g.core.Reachable(b.id) || ago(b) > beat {
				t.Fatalf("%s was heard %s ago", b.id, ago(b))
			}
		}
	}

	gone := g.now
	g.remove(field)
	agg.ChildDown(g.now, field.id)
	g.wait(10 * time.Minute)
	if g.core.Reachable(field.id) {
		t.Fatal("still reachable")
	}
	if p := g.away[field.id]; p.IsZero() || p.After(gone.Add(beat)) || p.Before(gone.Add(-beat)) {
		t.Errorf("last heard at %s, was gone at %s", p, gone)
	}
	if ago(other) > beat {
		t.Errorf("the other was heard %s ago", ago(other))
	}

	gone = g.now
	g.remove(agg)
	g.remove(other)
	g.core.ChildDown(g.now, agg.id)
	g.wait(10 * time.Minute)
	for _, b := range []*growth{agg, other} {
		if p := g.away[b.id]; p.After(gone) || p.Before(gone.Add(-beat)) || ago(b) < 10*time.Minute {
			t.Errorf("%s was last heard at %s, gone at %s", b.id, p, gone)
		}
	}
}
