package lease

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// memory is a keeper in memory, with a clock of its own.
type memory struct {
	now      time.Duration
	replicas map[string]struct {
		Replica
		holder  string
		expires time.Duration
	}
	leases map[string]struct {
		holder  string
		fence   uint64
		expires time.Duration
	}
	granted map[string]string // holder, by name and fence
	fault   func(string)
}

func newMemory(fault func(string)) *memory {
	m := &memory{granted: map[string]string{}, fault: fault}
	m.replicas = map[string]struct {
		Replica
		holder  string
		expires time.Duration
	}{}
	m.leases = map[string]struct {
		holder  string
		fence   uint64
		expires time.Duration
	}{}
	return m
}

func (m *memory) renew(_ context.Context, self Replica, holder string, life time.Duration) (view, error) {
	r := m.replicas[self.Name]
	r.Replica, r.holder, r.expires = self, holder, m.now+life
	m.replicas[self.Name] = r
	v := view{rows: map[string]row{}}
	for _, name := range slices.Sorted(maps.Keys(m.replicas)) {
		if m.replicas[name].expires > m.now {
			v.live = append(v.live, m.replicas[name].Replica)
		}
	}
	for name, l := range m.leases {
		if l.holder == holder {
			l.expires = m.now + life
			m.leases[name] = l
		}
		v.rows[name] = row{name: name, holder: l.holder, fence: l.fence, out: l.expires <= m.now}
	}
	return v, nil
}

func (m *memory) take(_ context.Context, holder string, life time.Duration, rows []row) error {
	for _, r := range rows {
		l := m.leases[r.name]
		if l.fence != r.fence || l.holder != "" && l.expires > m.now && !strings.HasPrefix(l.holder, replicaOf(holder)+lifeMark) {
			continue
		}
		l.holder, l.fence, l.expires = holder, l.fence+1, m.now+life
		m.leases[r.name] = l
		key := fmt.Sprint(r.name, " ", l.fence)
		if m.granted[key] != "" {
			m.fault("granted twice: " + key)
		}
		m.granted[key] = holder
	}
	return nil
}

func (m *memory) give(_ context.Context, holder string, names []string) error {
	for _, name := range names {
		if l := m.leases[name]; l.holder == holder {
			l.holder, l.expires = "", 0
			m.leases[name] = l
		}
	}
	return nil
}

func (m *memory) leave(ctx context.Context, holder string) error {
	for name := range m.leases {
		_ = m.give(ctx, holder, []string{name})
	}
	for name, r := range m.replicas {
		if r.holder == holder {
			delete(m.replicas, name)
		}
	}
	return nil
}

var slots = []string{"devices/0", "devices/1", "devices/2", "devices/3", "devices/4", "devices/5", "devices/6", "devices/7"}

func duties() []Duty {
	idle := func(ctx context.Context, _ Held) error { <-ctx.Done(); return ctx.Err() }
	return []Duty{{Names: slots, Spread: true, Run: idle}, {Names: []string{"render"}, Run: idle}, {Names: []string{"tidy"}, Run: idle}}
}

func room(k keeper, name string, life int) *Room {
	r := New(Config{Self: Replica{Name: name}, Unique: fmt.Sprint(life)})
	r.keeper = k
	for _, d := range duties() {
		r.Add(d)
	}
	return r
}

// held is what a room works by.
func (r *Room) heldNow() Held {
	out := Held{}
	for _, d := range r.duties {
		if d.cancel != nil {
			maps.Copy(out, d.held)
		}
	}
	return out
}

func (r *Room) kill() {
	for _, d := range r.duties {
		d.halt()
	}
}

// Whatever cores do (come, stop, die, stand still for any time), no two work by the same fence,
// who lost a lease cannot pass for its holder, and once they are left alone every lease is held
// by one that lives, evenly, and stays there.
func TestLeases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory(func(s string) { t.Fatal(s) })
		lives := 0
		rooms := map[string]*Room{}
		defer func() {
			for _, r := range rooms {
				r.kill()
			}
		}()
		step := func(name string) {
			if r := rooms[name]; r != nil {
				if err := r.step(context.Background()); err != nil {
					t.Fatal(err)
				}
				for lease, fence := range r.heldNow() {
					if now := m.leases[lease]; now.holder != r.holder || now.fence != fence {
						t.Fatalf("%s works by %s, which it has just seen to be %q's", r.holder, lease, now.holder)
					}
				}
			}
		}
		names := []string{"a", "b", "c"}
		name := rapid.SampledFrom(names)
		check := func() {
			for _, r := range rooms {
				for lease, fence := range r.heldNow() {
					if m.granted[fmt.Sprint(lease, " ", fence)] != r.holder {
						t.Fatalf("%s works by the fence %d of %s, which is not its own", r.holder, fence, lease)
					}
					if now := m.leases[lease]; now.fence < fence {
						t.Fatalf("the fence of %s went back from %d to %d", lease, fence, now.fence)
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"come": func(t *rapid.T) {
				n := name.Draw(t, "name")
				if rooms[n] == nil {
					lives++
					rooms[n] = room(m, n, lives)
				}
			},
			"look": func(t *rapid.T) { step(name.Draw(t, "name")) },
			"die": func(t *rapid.T) {
				n := name.Draw(t, "name")
				if r := rooms[n]; r != nil {
					r.kill()
					delete(rooms, n)
				}
			},
			"stop": func(t *rapid.T) {
				n := name.Draw(t, "name")
				if r := rooms[n]; r != nil {
					r.leave()
					delete(rooms, n)
				}
			},
			"time": func(t *rapid.T) {
				m.now += time.Duration(rapid.IntRange(1, 2*int(Life)).Draw(t, "ns"))
			},
			"": func(*rapid.T) { check() },
		})
		if len(rooms) == 0 {
			lives++
			rooms["a"] = room(m, "a", lives)
		}
		rounds := func(n int) {
			for range n {
				m.now += Life / beats
				for _, n := range names {
					step(n)
				}
				check()
			}
		}
		rounds(3 * beats)
		before := maps.Clone(m.granted)
		load := map[string]int{}
		for _, lease := range append(slices.Clone(slots), "render", "tidy") {
			var holders []string
			for _, r := range rooms {
				if _, ok := r.heldNow()[lease]; ok {
					holders = append(holders, r.holder)
				}
			}
			if len(holders) != 1 || m.leases[lease].holder != holders[0] {
				t.Fatalf("%s is worked by %v", lease, holders)
			}
			if strings.HasPrefix(lease, "devices/") {
				load[holders[0]]++
			}
		}
		for _, r := range rooms {
			if n := load[r.holder]; n < len(slots)/len(rooms) || n > (len(slots)+len(rooms)-1)/len(rooms) {
				t.Fatalf("%s has %d of %d slots, of %d cores", r.holder, n, len(slots), len(rooms))
			}
		}
		rounds(beats)
		if !maps.Equal(before, m.granted) {
			t.Fatal("leases go back and forth")
		}
	})
}

// Every name has one replica that lives, as many as any other or one more, and all see the same.
func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := rapid.SliceOfNDistinct(rapid.StringMatching("[a-z]{1,4}"), 1, 9, rapid.ID).Draw(t, "live")
		n := rapid.IntRange(0, 40).Draw(t, "n")
		var names []string
		for i := range n {
			names = append(names, fmt.Sprint("devices/", i))
		}
		of := spread(names, live)
		load := map[string]int{}
		for _, name := range names {
			if !slices.Contains(live, of[name]) {
				t.Fatalf("%s is with %q", name, of[name])
			}
			load[of[name]]++
		}
		for _, r := range live {
			if load[r] < n/len(live) || load[r] > (n+len(live)-1)/len(live) {
				t.Fatalf("%s has %d of %d", r, load[r], n)
			}
		}
		other := slices.Clone(live)
		slices.Reverse(other)
		if !maps.Equal(of, spread(names, other)) {
			t.Fatal("in another order it is another")
		}
	})
}

// A core that is alone does everything, with no database.
func TestAlone(t *testing.T) {
	r := New(Config{Self: Replica{Name: "one"}})
	held := make(chan Held, 1)
	r.Add(Duty{Names: slots, Spread: true, Run: func(ctx context.Context, h Held) error { held <- h; <-ctx.Done(); return ctx.Err() }})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	if h := <-held; len(h) != len(slots) {
		t.Errorf("it holds %v", h)
	}
	stop()
	if err := <-done; err != context.Canceled {
		t.Error(err)
	}
}
