package catalog

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func device(tenant, name, site string, state string, labels map[string]string, seen int64) *api.Object {
	spec := api.DeviceSpec{Site: site, Approved: state != "unapproved", Retired: state == "retired"}
	at := time.UnixMilli(seen)
	s := api.DeviceStatus{Online: state != "offline", LastSeen: &at}
	if state == "critical" || state == "degraded" {
		s.Health = []api.Warning{{Name: "x", Severity: api.Severity(state)}}
	}
	o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: tenant, Name: name, Labels: labels}}
	o.Spec, _ = json.Marshal(spec)
	o.Status, _ = json.Marshal(s)
	return o
}

// Pages one after another give what all lines, picked and sorted at once, would: each once, in order, and no other.
func TestPagesAreTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New()
		var all []*api.Object
		n := rapid.IntRange(0, 40).Draw(t, "n")
		for i := range n {
			o := device(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "tenant"), fmt.Sprintf("d%02d", i), rapid.SampledFrom([]string{"", "hill", "port"}).Draw(t, "site"),
				rapid.SampledFrom([]string{"healthy", "critical", "offline", "unapproved"}).Draw(t, "state"), map[string]string{"n": fmt.Sprint(i % 3)}, int64(rapid.IntRange(0, 5).Draw(t, "seen")))
			all = append(all, o)
			c.Changed(o, int64(i+1))
		}
		q := Query{Kinds: []string{api.KindDevice}, Sort: rapid.SampledFrom([]string{"name", "-name", "site", "-site", "state", "seen", "-seen", ""}).Draw(t, "sort"), Limit: rapid.IntRange(1, 9).Draw(t, "limit"),
			Sites: rapid.SampledFrom([][]string{nil, {"hill"}}).Draw(t, "sites"), States: rapid.SampledFrom([][]string{nil, {"critical", "offline"}}).Draw(t, "states"),
			Only: rapid.SampledFrom([]func(*api.Object) bool{nil, func(o *api.Object) bool { return o.Metadata.Tenant == "a" }}).Draw(t, "only")}
		var want []*line
		for _, o := range all {
			l := lineOf(o)
			if (len(q.Sites) == 0 || l.site == "hill") && (len(q.States) == 0 || l.state == "critical" || l.state == "offline") && (q.Only == nil || l.key.Tenant == "a") {
				want = append(want, l)
			}
		}
		sort, down := strings.CutPrefix(q.Sort, "-")
		slices.SortFunc(want, func(a, b *line) int { return a.at(sort).compare(b.at(sort), down) })
		var got []api.Key
		for {
			p, err := c.Find(q)
			if err != nil {
				t.Fatal(err)
			}
			if p.Total != len(want) {
				t.Fatalf("it says that %d fit, and %d do", p.Total, len(want))
			}
			for _, h := range p.Hits {
				got = append(got, h.Key)
			}
			if q.After = p.Next; p.Next == "" {
				break
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d lines in pages, want %d", len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i].key {
				t.Fatalf("at %d stands %v, want %v", i, got[i], want[i].key)
			}
		}
	})
}

func TestFind(t *testing.T) {
	c := New()
	c.Reset([]*api.Object{device("a", "edge-1", "hill", "healthy", map[string]string{"role": "shop"}, 1), device("a", "edge-2", "hill", "offline", nil, 2), device("b", "other", "", "healthy", nil, 3)}, 7)
	selector, err := api.ParseSelector("role=shop")
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		q    Query
		want string
	}{
		"by text in any case": {Query{Text: "EDGE hill"}, "edge-1 edge-2"}, "by a label": {Query{Selector: selector}, "edge-1"}, "by tenant": {Query{Tenant: "b"}, "other"},
		"by state": {Query{States: []string{"offline"}}, "edge-2"}, "what nobody has": {Query{Text: "nothing"}, ""},
	} {
		x.q.Kinds, x.q.Limit = []string{api.KindDevice}, 10
		p, err := c.Find(x.q)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, h := range p.Hits {
			names = append(names, h.Key.Name)
		}
		if strings.Join(names, " ") != x.want {
			t.Errorf("%s: %v, want %s", name, names, x.want)
		}
	}
	p, _ := c.Find(Query{Kinds: []string{api.KindDevice}, States: []string{"offline"}, Limit: 1})
	if p.States["healthy"] != 2 || p.States["offline"] != 1 || p.Total != 1 {
		t.Errorf("counts by state are of what fits but for its state: %+v", p)
	}
	c.Deleted(api.Key{Tenant: "a", Kind: api.KindDevice, Name: "edge-1"}, 8)
	if p, _ := c.Find(Query{Kinds: []string{api.KindDevice}, Limit: 9}); p.Total != 2 {
		t.Errorf("what is deleted is found: %+v", p)
	}
	for _, q := range []Query{{Sort: "age"}, {After: "?"}, {After: encode(position{}, "site"), Sort: "name"}} {
		if _, err := c.Find(q); api.CodeOf(err) != api.Invalid {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// A reader hears of kinds, once for many changes, and nothing of what it may not see.
func TestReader(t *testing.T) {
	c := New()
	r := c.Read(func(o *api.Object) bool { return o.Metadata.Tenant == "a" })
	defer r.Close()
	c.Changed(device("b", "x", "", "healthy", nil, 1), 1)
	select {
	case <-r.Wake():
		t.Fatal("it hears of what it may not see")
	default:
	}
	c.Changed(device("a", "y", "", "healthy", nil, 1), 2)
	c.Changed(device("a", "z", "", "healthy", nil, 1), 3)
	<-r.Wake()
	if kinds, rev := r.Take(); !slices.Equal(kinds, []string{api.KindDevice}) || rev != 3 {
		t.Fatal(kinds, rev)
	}
	c.Deleted(api.Key{Tenant: "a", Kind: api.KindDevice, Name: "y"}, 4)
	<-r.Wake()
	if kinds, _ := r.Take(); len(kinds) != 1 {
		t.Fatal("it does not hear of what is gone")
	}
}

// FuzzCursor: whatever somebody sends as a cursor is refused or read, and no more.
func FuzzCursor(f *testing.F) {
	f.Add(encode(position{N: 3, S: "s", T: "t", K: "k", M: "m"}, "name"))
	f.Fuzz(func(t *testing.T, text string) {
		p, err := cursor(text, "name")
		if err == nil && p != nil {
			if again, err := cursor(encode(*p, "name"), "name"); err != nil || *again != *p {
				t.Fatal(again, err)
			}
		}
	})
}

// BenchmarkFind is a page deep in 100,000 devices, filtered and sorted.
func BenchmarkFind(b *testing.B) {
	c := New()
	for i := range 100_000 {
		c.Changed(device("a", fmt.Sprintf("d%06d", i), fmt.Sprint("s", i%500), []string{"healthy", "offline", "critical"}[i%3], map[string]string{"role": "shop"}, int64(i)), int64(i))
	}
	after := encode(position{N: 50_000, T: "a", K: api.KindDevice, M: "d050000"}, "seen")
	for b.Loop() {
		if _, err := c.Find(Query{Kinds: []string{api.KindDevice}, Text: "shop", States: []string{"healthy"}, Sort: "seen", After: after, Limit: 50}); err != nil {
			b.Fatal(err)
		}
	}
}
