// Package storetest answers: does an implementation of the store keep its contract?
package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Clock is a clock that moves when told.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now tells the time.
func (c *Clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// NewClock starts a clock at a fixed time.
func NewClock() *Clock { return &Clock{now: time.Unix(1_800_000_000, 0)} }

// Objects is the suite of store.Store. open gives an empty store with a history of
// historyLimit changes.
func Objects(t *testing.T, historyLimit int, open func(t *testing.T) store.Store) {
	for name, run := range map[string]func(*testing.T, store.Store){
		"put and get":                            putAndGet,
		"optimistic concurrency":                 concurrency,
		"one of many writers wins each revision": writers,
		"status":                                 statuses,
		"probed":                                 probed,
		"dry run":                                dryRun,
		"list":                                   lists,
		"quotas":                                 quotas,
	} {
		t.Run(name, func(t *testing.T) { run(t, open(t)) })
	}
	t.Run("watch", func(t *testing.T) { watch(t, historyLimit, open) })
	t.Run("a watcher's copy equals the store", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) { replica(rt, t, open) })
	})
}

func key(name string) api.Key { return api.Key{Tenant: "default", Kind: api.KindConfig, Name: name} }

func putAndGet(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, err := s.Get(ctx, key("a")); api.CodeOf(err) != api.NotFound {
		t.Fatalf("get of nothing: %v", err)
	}
	created := put(t, s, config("a", `{"env":{"X":"1"}}`))
	if created.Metadata.Generation != 1 || created.Metadata.UID == "" || created.Metadata.Revision == 0 || created.Metadata.Created == nil {
		t.Fatalf("created: %+v", created.Metadata)
	}
	got, err := s.Get(ctx, key("a"))
	if err != nil || !equal(got, created) {
		t.Fatalf("got %v %v, want %v", text(got), err, text(created))
	}
	same := put(t, s, config("a", `{ "env": {"X":"1"} }`))
	if !equal(same, created) {
		t.Fatalf("writing the same again changed it to %v", text(same))
	}
	updated := put(t, s, config("a", `{"env":{"X":"2"}}`))
	if updated.Metadata.Generation != 2 || updated.Metadata.Revision <= created.Metadata.Revision || updated.Metadata.UID != created.Metadata.UID {
		t.Fatalf("updated: %+v", updated.Metadata)
	}
	labelled := config("a", `{"env":{"X":"2"}}`)
	labelled.Metadata.Labels = map[string]string{"k": "v"}
	if got := put(t, s, labelled); got.Metadata.Generation != 2 || got.Metadata.Revision <= updated.Metadata.Revision {
		t.Fatalf("a label is no spec, yet a change: %+v", got.Metadata)
	}
}

func concurrency(t *testing.T, s store.Store) {
	ctx := t.Context()
	first := put(t, s, config("a", `{}`))
	put(t, s, config("a", `{"env":{"X":"1"}}`))
	stale := config("a", `{"env":{"X":"2"}}`)
	stale.Metadata.Revision = first.Metadata.Revision
	for name, err := range map[string]error{
		"stale put":    second(s.Put(ctx, stale, store.PutOptions{})),
		"create again": second(s.Put(ctx, config("a", `{}`), store.PutOptions{Create: true})),
		"stale delete": s.Delete(ctx, key("a"), first.Metadata.Revision),
	} {
		if api.CodeOf(err) != api.Conflict {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}
	ghost := config("ghost", `{}`)
	ghost.Metadata.Revision = 7
	for name, err := range map[string]error{
		"put with the revision of nothing": second(s.Put(ctx, ghost, store.PutOptions{})),
		"update of nothing":                second(s.Put(ctx, config("b", `{}`), store.PutOptions{Update: true})),
		"delete of nothing":                s.Delete(ctx, key("b"), 0),
		"status of nothing":                s.PutStatus(ctx, key("b"), 1),
	} {
		if api.CodeOf(err) != api.NotFound {
			t.Errorf("%s: %v, want not found", name, err)
		}
	}
}

func writers(t *testing.T, s store.Store) {
	ctx := t.Context()
	put(t, s, config("n", `{"env":{"N":"0"}}`))
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				obj, err := s.Get(ctx, key("n"))
				if err != nil {
					t.Error(err)
					return
				}
				var spec api.ConfigSpec
				var n int
				_ = json.Unmarshal(obj.Spec, &spec)
				_, _ = fmt.Sscan(spec.Env["N"], &n)
				obj.Spec, _ = json.Marshal(api.ConfigSpec{Env: map[string]string{"N": fmt.Sprint(n + 1)}})
				switch _, err := s.Put(ctx, obj, store.PutOptions{}); {
				case err == nil:
					done++
				case api.CodeOf(err) != api.Conflict:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	obj, err := s.Get(ctx, key("n"))
	if want := fmt.Sprintf(`{"env":{"N":"%d"}}`, writers*each); err != nil || string(obj.Spec) != want {
		t.Fatalf("%s %v, want %s", obj.Spec, err, want)
	}
}

func statuses(t *testing.T, s store.Store) {
	ctx := t.Context()
	before := put(t, s, config("a", `{}`))
	if err := s.PutStatus(ctx, key("a"), map[string]int{"n": 1}); err != nil {
		t.Fatal(err)
	}
	after, _ := s.Get(ctx, key("a"))
	if string(after.Status) != `{"n":1}` || after.Metadata.Generation != 1 || after.Metadata.Revision <= before.Metadata.Revision {
		t.Fatalf("after: %v", text(after))
	}
	if err := s.PutStatuses(ctx, map[api.Key]any{key("a"): map[string]int{"n": 1}, key("gone"): 1}); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.Get(ctx, key("a")); !equal(again, after) {
		t.Fatalf("the same status was a write: %v", text(again))
	}
	if kept := put(t, s, config("a", `{"env":{"X":"1"}}`)); string(kept.Status) != `{"n":1}` {
		t.Fatalf("a new spec lost the status: %v", text(kept))
	}
	both, err := s.Put(ctx, config("a", `{"env":{"X":"2"}}`), store.PutOptions{Status: 7})
	if err != nil || string(both.Status) != "7" {
		t.Fatalf("spec and status together: %v %v", text(both), err)
	}
}

func probed(t *testing.T, s store.Store) {
	ctx := t.Context()
	o := config("a", `{}`)
	o.Metadata.Labels = map[string]string{"mine": "1", api.Reserved + "old": "x"}
	before := put(t, s, o)
	write := func(labels map[string]string, relabel bool) *api.Object {
		t.Helper()
		if err := s.PutProbed(ctx, []store.Probed{{Key: key("a"), Status: 7, Labels: labels, Relabel: relabel}, {Key: key("gone"), Status: 1}}); err != nil {
			t.Fatal(err)
		}
		many, err := s.GetMany(ctx, []api.Key{key("a"), key("gone")})
		if err != nil || len(many) != 1 {
			t.Fatalf("%v %v", many, err)
		}
		return many[key("a")]
	}
	specs := s.Watch(ctx, store.WatchQuery{SpecOnly: true})
	if got := write(nil, false); string(got.Status) != "7" || len(got.Metadata.Labels) != 2 || got.Metadata.Generation != before.Metadata.Generation {
		t.Fatalf("status alone: %v", text(got))
	}
	got := write(map[string]string{api.Reserved + "arch": "arm64", "mine": "2"}, true)
	if want := map[string]string{"mine": "1", api.Reserved + "arch": "arm64"}; !reflect.DeepEqual(got.Metadata.Labels, want) {
		t.Fatalf("labels %v, want %v", got.Metadata.Labels, want)
	}
	if again := write(map[string]string{api.Reserved + "arch": "arm64"}, true); again.Metadata.Revision != got.Metadata.Revision {
		t.Fatal("the same again was a write")
	}
	if e := next(t, specs); e.Revision != got.Metadata.Revision {
		t.Fatalf("a watch without status hears of revision %d, want %d, of the labels", e.Revision, got.Metadata.Revision)
	}
}

func dryRun(t *testing.T, s store.Store) {
	ctx := t.Context()
	would, err := s.Put(ctx, config("a", `{}`), store.PutOptions{DryRun: true})
	if err != nil || would.Metadata.Generation != 1 || would.Metadata.Revision == 0 {
		t.Fatalf("dry run: %v %v", text(would), err)
	}
	if _, err := s.Get(ctx, key("a")); api.CodeOf(err) != api.NotFound {
		t.Fatalf("a dry run wrote: %v", err)
	}
	if real := put(t, s, config("a", `{}`)); real.Metadata.Revision != would.Metadata.Revision {
		t.Fatalf("revision %d, the dry run said %d", real.Metadata.Revision, would.Metadata.Revision)
	}
}

func lists(t *testing.T, s store.Store) {
	ctx := t.Context()
	for _, tenant := range []string{"default", "acme"} {
		for i := range 25 {
			o := config(fmt.Sprintf("c%02d", i), `{}`)
			o.Metadata.Tenant = tenant
			o.Metadata.Labels = map[string]string{"odd": fmt.Sprint(i % 2), "tenant": tenant}
			put(t, s, o)
		}
	}
	for _, c := range []struct {
		q    store.Query
		want int
	}{
		{store.Query{Kind: api.KindConfig}, 50},
		{store.Query{Kind: api.KindConfig, Tenant: "acme"}, 25},
		{store.Query{Kind: api.KindConfig, Tenant: "acme", Selector: "odd=1"}, 12},
		{store.Query{Kind: api.KindConfig, Selector: "odd in (0),tenant!=acme"}, 13},
		{store.Query{Kind: api.KindApp}, 0},
	} {
		for _, limit := range []int{0, 1, 7, 100} {
			c.q.Limit, c.q.After = limit, ""
			var names []string
			for pages := 0; ; pages++ {
				items, next, rev, err := s.List(ctx, c.q)
				if err != nil || rev == 0 || limit > 0 && len(items) > limit || pages > 60 {
					t.Fatalf("%+v: %d items, revision %d, %v", c.q, len(items), rev, err)
				}
				for _, o := range items {
					names = append(names, o.Metadata.Tenant+"/"+o.Metadata.Name)
				}
				if c.q.After = next; next == "" {
					break
				}
			}
			sorted := true
			for i := 1; i < len(names); i++ {
				sorted = sorted && names[i-1] < names[i]
			}
			if len(names) != c.want || !sorted {
				t.Errorf("%+v: %d objects (sorted %v), want %d", c.q, len(names), sorted, c.want)
			}
		}
	}
	if _, _, _, err := s.List(ctx, store.Query{Kind: api.KindConfig, Selector: "a b"}); api.CodeOf(err) != api.Invalid {
		t.Errorf("bad selector: %v", err)
	}
	if _, _, _, err := s.List(ctx, store.Query{Kind: api.KindConfig, After: "nonsense"}); api.CodeOf(err) != api.Invalid {
		t.Errorf("bad cursor: %v", err)
	}
}

func watch(t *testing.T, historyLimit int, open func(t *testing.T) store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := open(t)
	put(t, s, config("before", `{}`))
	_, _, rev, err := s.List(ctx, store.Query{Kind: api.KindConfig})
	if err != nil {
		t.Fatal(err)
	}
	events := s.Watch(ctx, store.WatchQuery{Kinds: []string{api.KindConfig}, From: rev})
	specs := s.Watch(ctx, store.WatchQuery{SpecOnly: true, From: rev})
	put(t, s, &api.Object{Kind: api.KindApp, Metadata: api.Meta{Tenant: "default", Name: "not-asked-for"}, Spec: json.RawMessage(`{}`)})
	put(t, s, config("a", `{}`))
	if e := next(t, events); e.Type != store.Changed || e.Object.Metadata.Name != "a" || e.Revision <= rev {
		t.Fatalf("event %+v", e)
	}
	key := api.Key{Tenant: "default", Kind: api.KindConfig, Name: "a"}
	if err := s.PutStatus(ctx, key, 1); err != nil {
		t.Fatal(err)
	}
	if e := next(t, events); e.Type != store.Changed || string(e.Object.Status) != "1" {
		t.Fatalf("event %+v", e)
	}
	if err := s.Delete(ctx, key, 0); err != nil {
		t.Fatal(err)
	}
	if e := next(t, events); e.Type != store.Deleted || e.Object.Key() != key {
		t.Fatalf("event %+v", e)
	}
	var kinds []string
	for range 2 { // the app, then "a" (folded or not, its last event is the deletion)
		e := next(t, specs)
		kinds = append(kinds, e.Object.Kind)
	}
	if !reflect.DeepEqual(kinds, []string{api.KindApp, api.KindConfig}) {
		t.Fatalf("spec events %v", kinds)
	}

	for i := range 2*historyLimit + 2 {
		put(t, s, config("a", fmt.Sprintf(`{"env":{"N":"%d"}}`, i)))
	}
	late := s.Watch(ctx, store.WatchQuery{From: rev})
	if e := next(t, late); !store.IsTooOld(e.Err) {
		t.Fatalf("a watch from an old revision: %+v", e)
	}
	if _, open := <-late; open {
		t.Fatal("the channel stays open after the error")
	}
	ended, stop := context.WithCancel(ctx)
	idle := s.Watch(ended, store.WatchQuery{})
	stop()
	if _, open := <-idle; open {
		t.Fatal("an event after the end")
	}
}

// replica applies random writes and follows them by list and watch.
func replica(rt *rapid.T, t *testing.T, open func(t *testing.T) store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := open(t)
	write := func(label string) {
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, label)
		key := api.Key{Tenant: "default", Kind: api.KindConfig, Name: name}
		var err error
		switch rapid.IntRange(0, 3).Draw(rt, "op") {
		case 0:
			err = s.Delete(ctx, key, 0)
		case 1:
			err = s.PutStatus(ctx, key, rapid.IntRange(0, 3).Draw(rt, "status"))
		default:
			_, err = s.Put(ctx, config(name, fmt.Sprintf(`{"env":{"N":"%d"}}`, rapid.IntRange(0, 3).Draw(rt, "spec"))), store.PutOptions{})
		}
		if err != nil && api.CodeOf(err) != api.NotFound {
			rt.Fatal(err)
		}
	}
	for range rapid.IntRange(0, 8).Draw(rt, "before") {
		write("before")
	}
	state := func() (map[string]string, int64) {
		items, _, rev, err := s.List(ctx, store.Query{Kind: api.KindConfig})
		if err != nil {
			rt.Fatal(err)
		}
		m := map[string]string{}
		for _, o := range items {
			m[o.Metadata.Name] = text(o)
		}
		return m, rev
	}
	copyOf, rev := state()
	events := s.Watch(ctx, store.WatchQuery{Kinds: []string{api.KindConfig}, From: rev})
	for range rapid.IntRange(0, 12).Draw(rt, "after") {
		write("after")
	}
	want, newest := state()
	for last := rev; last < newest; {
		select {
		case e := <-events:
			if e.Err != nil || e.Revision <= last {
				rt.Fatalf("event %+v after revision %d", e, last)
			}
			last = e.Revision
			if e.Type == store.Deleted {
				delete(copyOf, e.Object.Metadata.Name)
			} else {
				copyOf[e.Object.Metadata.Name] = text(e.Object)
			}
		case <-ctx.Done():
			rt.Fatalf("revision %d never came, only %d", newest, last)
		}
	}
	if !reflect.DeepEqual(copyOf, want) {
		rt.Fatalf("copy %v, store %v", copyOf, want)
	}
}

// Manifests is the suite of store.Manifests.
func Manifests(t *testing.T, m store.Manifests) {
	ctx := t.Context()
	record := func(n byte, gen uint64) *store.ManifestRecord {
		return &store.ManifestRecord{Device: api.DeviceID{n}, Epoch: 1 << 40, Generation: gen, Raw: []byte{n, byte(gen)},
			Tombstones: map[string]uint64{"app/x": gen}, Seals: map[string][32]byte{"secret/s": {n}}}
	}
	if err := m.SaveManifests(ctx, []*store.ManifestRecord{record(1, 1), record(2, 1), record(3, 1)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.SaveManifests(ctx, []*store.ManifestRecord{record(1, 2)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := m.DeleteManifest(ctx, api.DeviceID{3}); err != nil {
			t.Fatal(err)
		}
	}
	got := map[api.DeviceID]*store.ManifestRecord{}
	if err := m.EachManifest(ctx, func(r *store.ManifestRecord) error { got[r.Device] = r; return nil }); err != nil {
		t.Fatal(err)
	}
	want := map[api.DeviceID]*store.ManifestRecord{{1}: record(1, 2), {2}: record(2, 1)}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	stop := errors.New("stop")
	if err := m.EachManifest(ctx, func(*store.ManifestRecord) error { return stop }); err != stop {
		t.Fatalf("each: %v", err)
	}
}

// Boxes is the suite of store.Boxes over an empty store.
func Boxes(t *testing.T, s interface {
	store.Store
	store.Boxes
}) {
	ctx := t.Context()
	token := put(t, s, &api.Object{Kind: api.KindJoinToken, Metadata: api.Meta{Tenant: "default", Name: "t"}, Spec: json.RawMessage(`{}`)})
	device := func(name string) *api.Object {
		return &api.Object{Kind: api.KindDevice, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: json.RawMessage(`{"approved":true}`)}
	}
	box := store.Box{Device: api.DeviceID{1}, Tenant: "default", Name: "a", PublicKey: []byte("p"), SealKey: []byte("s"), Token: token.Metadata.UID}
	first := store.Enrolment{Box: box, Object: device("a"), Status: api.DeviceStatus{ID: box.Device}, Token: token, TokenStatus: api.JoinTokenStatus{Used: 1}}
	if err := s.Enrol(ctx, first); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(ctx, api.Key{Tenant: "default", Kind: api.KindDevice, Name: "a"})
	if err != nil || string(got.Spec) != `{"approved":true}` || got.Metadata.UID == "" || len(got.Status) == 0 {
		t.Fatalf("%v %v", got, err)
	}
	used, _ := s.Get(ctx, token.Key())
	if string(used.Status) != `{"used":1}` {
		t.Fatalf("token: %s", used.Status)
	}
	other := box
	other.Device, other.Name = api.DeviceID{2}, "b"
	for name, e := range map[string]store.Enrolment{
		"a token that was used meanwhile": {Box: other, Object: device("b"), Token: token, TokenStatus: api.JoinTokenStatus{Used: 1}},
		"a name that is taken":            {Box: other, Object: device("a"), Token: used, TokenStatus: api.JoinTokenStatus{Used: 2}},
	} {
		if err := s.Enrol(ctx, e); api.CodeOf(err) != api.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again, _ := s.Get(ctx, token.Key()); !equal(again, used) {
		t.Fatalf("a refused enrolment changed the token: %v", text(again))
	}
	box.SealKey = []byte("new")
	if err := s.Enrol(ctx, store.Enrolment{Box: box}); err != nil {
		t.Fatal(err)
	}
	var boxes []store.Box
	each := func(b store.Box) error { boxes = append(boxes, b); return nil }
	if got, err := s.BoxOf(ctx, box.Tenant, box.Name); err != nil || !reflect.DeepEqual(got, &box) {
		t.Errorf("the box by its name: %+v, %v", got, err)
	}
	if got, err := s.BoxOf(ctx, box.Tenant, "nobody"); err != nil || got != nil {
		t.Errorf("nobody's box: %+v, %v", got, err)
	}
	if err := s.EachBox(ctx, each); err != nil || !reflect.DeepEqual(boxes, []store.Box{box}) {
		t.Fatalf("%+v %v", boxes, err)
	}
	for range 2 {
		if err := s.DeleteBox(ctx, box.Device); err != nil {
			t.Fatal(err)
		}
	}
	boxes = nil
	if err := s.EachBox(ctx, each); err != nil || boxes != nil {
		t.Fatalf("%+v %v", boxes, err)
	}
}

// Tokens is the suite of store.Tokens; clock is the one the store reads.
func Tokens(t *testing.T, s store.Tokens, clock *Clock) {
	ctx := t.Context()
	if _, err := s.CreateToken(ctx, "x", "root", time.Time{}, rand.Reader); api.CodeOf(err) != api.Invalid {
		t.Fatalf("unknown role: %v", err)
	}
	lasting, err := s.CreateToken(ctx, "ops", store.Admin, time.Time{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := s.CreateToken(ctx, "guest", store.Viewer, clock.Now().Add(time.Hour), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.CheckToken(ctx, lasting)
	if err != nil || p.Name != "ops" || p.Account == "" {
		t.Fatalf("%+v %v", p, err)
	}
	if p, err := s.CheckToken(ctx, short); err != nil || p.Account == "" {
		t.Fatalf("%+v %v", p, err)
	}
	clock.Advance(time.Hour)
	if all, err := s.ListTokens(ctx); err != nil || !slices.ContainsFunc(all, func(i store.TokenInfo) bool { return i.Principal == p && !i.Created.IsZero() }) {
		t.Fatalf("the list %+v lacks %+v: %v", all, p, err)
	}
	if err := s.RevokeToken(ctx, p.TokenID); err != nil {
		t.Fatal(err)
	}
	if err := s.RevokeToken(ctx, p.TokenID); api.CodeOf(err) != api.NotFound {
		t.Fatalf("revoke twice: %v", err)
	}
	for name, token := range map[string]string{"revoked": lasting, "expired": short, "altered": short[:len(short)-1] + "~",
		"empty": "", "foreign": "a.b.c", "long": string(bytes.Repeat([]byte("x"), 4096))} {
		if _, err := s.CheckToken(ctx, token); api.CodeOf(err) != api.Unauthorized {
			t.Errorf("%s token: %v", name, err)
		}
	}
}

func config(name, spec string) *api.Object {
	return &api.Object{Kind: api.KindConfig, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: json.RawMessage(spec)}
}

func put(t interface {
	Helper()
	Fatal(...any)
}, s store.Store, o *api.Object) *api.Object {
	t.Helper()
	out, err := s.Put(context.Background(), o, store.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func next(t *testing.T, events <-chan store.Event) store.Event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the watch ended")
		}
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no event came")
	}
	panic("not reached")
}

func text(o *api.Object) string {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func equal(a, b *api.Object) bool { return text(a) == text(b) }

func second[T any](_ T, err error) error { return err }

// Events is the suite of store.Events.
func Events(t *testing.T, s store.Events) {
	ctx := t.Context()
	one, two := api.DeviceID{1}, api.DeviceID{2}
	at := func(id api.DeviceID, name string, millis int64) store.DeviceEvent {
		return store.DeviceEvent{Device: id, Label: "box", Event: api.Event{Time: millis, Name: name, Subject: "s", Message: "m", Actor: "a"}}
	}
	if err := s.AppendEvents(ctx, []store.DeviceEvent{at(one, store.EventEnrolled, 1), at(one, store.EventOnline, 2), at(two, store.EventOnline, 3), at(one, store.EventOffline, 4)}); err != nil {
		t.Fatal(err)
	}
	list, err := s.Events(ctx, []api.DeviceID{one}, 2)
	if err != nil || len(list) != 2 || list[0].Name != store.EventOffline || list[1].Name != store.EventOnline || list[0].ID <= list[1].ID {
		t.Fatalf("%+v %v", list, err)
	}
	list[0].ID = 0
	if want := at(one, store.EventOffline, 4); list[0] != want {
		t.Errorf("%+v, want %+v", list[0], want)
	}
	online, err := s.LastPresence(ctx)
	if err != nil || len(online) != 2 || online[one] || !online[two] {
		t.Fatalf("%v %v", online, err)
	}
	if err := s.DropEvents(ctx, time.UnixMilli(3)); err != nil {
		t.Fatal(err)
	}
	if list, err = s.Events(ctx, nil, 10); err != nil || len(list) != 2 {
		t.Fatalf("%+v %v", list, err)
	}
	many := make([]api.DeviceID, 100)
	for i := range many {
		many[i] = api.DeviceID{byte(i + 2)} // all but the first
	}
	for _, of := range [][]api.DeviceID{many, {two}} {
		if list, err = s.Events(ctx, of, 10); err != nil || len(list) != 1 || list[0].Device != two {
			t.Errorf("of %d: %+v %v", len(of), list, err)
		}
	}
	if list, err = s.Events(ctx, []api.DeviceID{}, 10); err != nil || len(list) != 0 {
		t.Errorf("of none: %+v %v", list, err)
	}
}
