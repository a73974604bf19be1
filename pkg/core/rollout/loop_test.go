package rollout_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/rollout"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) { os.Exit(databasetest.Run(m)) }

// rig is a store with two loops on it, as two cores have, and devices that do as they are given.
type rig struct {
	t       *testing.T
	db      *store.SQL
	room    rollout.Room
	devices map[string]api.DeviceID

	mu     sync.Mutex
	breaks map[string]bool // devices on which version 2 fails
	away   map[string]bool
	most   int // devices at once that were seen with a place, at one site
	relays int
}

func newRig(t *testing.T, place string) *rig {
	var uid atomic.Int64
	db, err := store.Open(t.Context(), store.Config{Place: place, Now: time.Now, NewUID: func() string { return fmt.Sprint("u", uid.Add(1)) }})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, db: db, devices: map[string]api.DeviceID{}, breaks: map[string]bool{}, away: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 2 {
		l := rollout.New(rollout.Config{Store: db, Most: 100, Settled: time.Second, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		r.room = rollout.Room{Loop: l}
		wg.Go(func() {
			if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Error("the loop ended: ", err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait(); db.Close() })
	return r
}

func (r *rig) put(kind, name string, labels map[string]string, spec, status any, opts store.PutOptions) {
	r.t.Helper()
	raw, err := json.Marshal(spec)
	if err != nil {
		r.t.Fatal(err)
	}
	opts.Status = status
	if _, err := r.db.Put(r.t.Context(), &api.Object{Kind: kind, Metadata: api.Meta{Tenant: "default", Name: name, Labels: labels}, Spec: raw}, opts); err != nil {
		r.t.Fatal(err)
	}
}

func key(kind, name string) api.Key { return api.Key{Tenant: "default", Kind: kind, Name: name} }

func (r *rig) device(n byte, site string, relay bool) {
	id, name := api.DeviceID{n}, fmt.Sprint("d", n)
	r.devices[name] = id
	r.put(api.KindDevice, name, map[string]string{"role": "field"}, api.DeviceSpec{Approved: true, Site: site}, api.DeviceStatus{ID: id, Online: true, Relay: relay}, store.PutOptions{})
}

func bundle(version int) string { return fmt.Sprintf("sha256:%064x", version) }

func (r *rig) app(version int, hold bool) {
	r.put(api.KindApp, "web", nil, api.AppSpec{Compose: fmt.Sprint(version)}, api.AppObjectStatus{Repo: "default/web", Bundle: bundle(version)}, store.PutOptions{Hold: hold})
}

// live has every device run what it was given, and report it.
func (r *rig) live() {
	r.t.Helper()
	given, err := r.db.GivenOf(r.t.Context(), []api.Key{key(api.KindApp, "web")})
	if err != nil {
		r.t.Fatal(err)
	}
	g := given[key(api.KindApp, "web")]
	statuses := map[api.Key]any{}
	r.mu.Lock()
	for name, id := range r.devices {
		o, err := r.db.Get(r.t.Context(), key(api.KindDevice, name))
		if err != nil {
			r.t.Fatal(err)
		}
		var s api.DeviceStatus
		if err := json.Unmarshal(o.Status, &s); err != nil {
			r.t.Fatal(err)
		}
		number := g.All
		if own, ok := g.Own[id]; ok {
			number = own.Number
		}
		s.Online = !r.away[name]
		if s.Online {
			a := api.AppStatus{Name: "web", State: api.Running, Bundle: bundle(int(number))}
			if number == 2 && r.breaks[name] {
				a = api.AppStatus{Name: "web", State: api.Running, Bundle: bundle(1), Rejected: bundle(2), Message: "exit code 3"}
			}
			s.Apps, s.Desired, s.Applied = []api.AppStatus{a}, uint64(number), uint64(number)
		}
		statuses[key(api.KindDevice, name)] = s
	}
	r.mu.Unlock()
	if err := r.db.PutStatuses(r.t.Context(), statuses); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) status(name string) (s api.RolloutStatus) {
	r.t.Helper()
	o, err := r.db.Get(r.t.Context(), key(api.KindRollout, name))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := json.Unmarshal(o.Status, &s); err != nil {
		r.t.Fatal(err)
	}
	state, err := r.db.RolloutState(r.t.Context(), key(api.KindRollout, name), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	at, relays := map[string]int{}, 0
	for _, slot := range state.Slots {
		if slot.Site != "" {
			at[slot.Site]++
			r.most = max(r.most, at[slot.Site])
		}
		if slot.Relay {
			relays++
		}
	}
	r.relays = max(r.relays, relays)
	return s
}

func (r *rig) until(name string, phase api.RolloutPhase) (s api.RolloutStatus) {
	r.t.Helper()
	wait.Until(r.t, fmt.Sprintf("rollout %s is %s", name, phase), func() bool {
		r.live()
		s = r.status(name)
		return s.Phase == phase
	})
	return s
}

func (r *rig) roll(name string, spec api.RolloutSpec) {
	r.t.Helper()
	spec.Target = api.RolloutTarget{Selector: &api.Selector{MatchLabels: map[string]string{"role": "field"}}}
	if spec.Health == nil {
		spec.Health = &api.RolloutHealth{Soak: api.Duration(time.Second)}
	}
	if spec.Change == nil {
		spec.Change = []api.RevisionRef{{Kind: api.KindApp, Name: "web"}}
	}
	change, err := r.room.Settle(r.t.Context(), "default", spec.Change)
	if err != nil {
		r.t.Fatal(err)
	}
	r.put(api.KindRollout, name, nil, spec, api.RolloutStatus{Phase: api.RolloutQueued, Change: change}, store.PutOptions{})
}

// has is what devices have of the app: of all, and of their own.
func (r *rig) has(name string) int64 {
	r.t.Helper()
	given, err := r.db.GivenOf(r.t.Context(), []api.Key{key(api.KindApp, "web")})
	if err != nil {
		r.t.Fatal(err)
	}
	g := given[key(api.KindApp, "web")]
	if own, ok := g.Own[r.devices[name]]; ok {
		return own.Number
	}
	return g.All
}

// Two loops carry a rollout out on both databases: canary, approval, the budget of a site, those
// that were away, and a plain apply that waits for its end.
func TestLoop(t *testing.T) {
	for name, place := range map[string]func(*testing.T) string{"sqlite": func(*testing.T) string { return "" }, "postgres": func(t *testing.T) string { return databasetest.Postgres(t) }} {
		t.Run(name, func(t *testing.T) { wholeLife(t, newRig(t, place(t))) })
	}
}

func wholeLife(t *testing.T, r *rig) {
	for n := range byte(6) {
		r.device(n+1, []string{"a", "b"}[n%2], n < 4)
	}
	r.put(api.KindSite, "a", nil, api.SiteSpec{MaxDisrupted: 2}, nil, store.PutOptions{})
	r.app(1, false)
	r.away["d6"] = true
	r.live()
	r.app(2, true)
	r.roll("two", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 1, Approve: true}}})
	s := r.until("two", api.RolloutWaiting)
	if s.Devices.Healthy != 1 || s.Wave != 2 {
		t.Fatalf("%+v", s)
	}
	r.app(3, false) // it waits
	for name := range r.devices {
		if r.has(name) == 3 {
			t.Fatal("a plain apply went past the rollout")
		}
	}
	if why, err := r.room.Behind(t.Context(), key(api.KindApp, "web")); err != nil || !strings.Contains(why, "two") {
		t.Fatal(why, err)
	}
	if err := r.room.Order(t.Context(), key(api.KindRollout, "two"), rollout.Approve); err != nil {
		t.Fatal(err)
	}
	s = r.until("two", api.RolloutComplete)
	if r.most > 2 || r.relays > 2 { // one of each site
		t.Fatalf("%d devices of a site and %d relays were interrupted at once", r.most, r.relays)
	}
	wait.Until(t, "what was applied meanwhile is given to all", func() bool { return r.has("d1") == 3 && r.has("d6") == 3 })

	// One that was away is brought up later, through the same gates.
	r.app(4, true)
	r.roll("back", api.RolloutSpec{})
	s = r.until("back", api.RolloutComplete)
	if s.Devices.Away != 1 || r.has("d6") != 3 || r.has("d1") != 4 {
		t.Fatalf("%+v; d6 has %d, d1 has %d", s, r.has("d6"), r.has("d1"))
	}
	r.mu.Lock()
	r.away = map[string]bool{}
	r.mu.Unlock()
	wait.Until(t, "it has it, too", func() bool { r.live(); s = r.status("back"); return s.Devices.Healthy == 6 })
	if r.has("d6") != 4 {
		t.Fatal("it has ", r.has("d6"))
	}
	h, err := r.room.History(t.Context(), key(api.KindApp, "web"))
	if err != nil || h.Given != 4 || len(h.Turns) != 4 || h.Turns[0].Rollout != "back" || h.Turns[1].Rollout != "" {
		t.Fatalf("%+v %v", h, err)
	}
}

func TestLoopRollsBack(t *testing.T) {
	r := newRig(t, "")
	for n := range byte(6) {
		r.device(n+1, "", false)
		r.breaks[fmt.Sprint("d", n+1)] = n > 2
	}
	r.app(1, false)
	r.live()
	if err := r.db.PinDevice(t.Context(), store.Gift{Device: r.devices["d1"], Key: key(api.KindApp, "web"), OwnRevision: store.OwnRevision{Number: 1}}); err != nil {
		t.Fatal(err)
	}
	r.app(2, true)
	plan, err := r.room.Plan(t.Context(), "default", "bad", &api.RolloutSpec{Target: api.RolloutTarget{Selector: &api.Selector{MatchLabels: map[string]string{"role": "field"}}},
		Change: []api.RevisionRef{{Kind: api.KindApp, Name: "web"}}, Waves: []api.RolloutWave{{Devices: 2}}}, nil)
	if err != nil || len(plan.Refused) != 1 || plan.Refused[0].Name != "d1" || len(plan.Waves) != 2 || len(plan.Waves[0].Devices)+len(plan.Waves[1].Devices) != 5 {
		t.Fatalf("%+v %v", plan, err)
	}
	r.roll("bad", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 2}}, OnFailure: api.FailureRollback, MaxFailures: &api.Amount{Devices: 1}})
	s := r.until("bad", api.RolloutRolledBack)
	for name := range r.devices {
		if r.has(name) != 1 {
			t.Errorf("%s has revision %d after a rollback", name, r.has(name))
		}
	}
	if s.Devices.Restored == 0 || s.Devices.Skipped != 1 {
		t.Fatalf("%+v", s.Devices)
	}
	list, err := r.room.Devices(t.Context(), key(api.KindRollout, "bad"))
	if err != nil || len(list) != 6 || list[0].State != string(rollout.Skipped) || !strings.Contains(list[0].Why, "pinned") {
		t.Fatalf("%+v %v", list, err)
	}
	// The plan said in which wave each is.
	for _, d := range list[1:] {
		if in := plan.Waves[d.Wave-1].Devices; !strings.Contains(strings.Join(in, " "), d.Name) {
			t.Errorf("%s is in wave %d; the plan has there %v", d.Name, d.Wave, in)
		}
	}
	if why, err := r.room.Behind(t.Context(), key(api.KindApp, "web")); err != nil || !strings.Contains(why, "rolled back") {
		t.Fatal(why, err)
	}
}

// A release below the security floor of the one that a device runs does not come back, by a rollback
// or by an undo.
func TestFloorStays(t *testing.T) {
	r := newRig(t, "")
	labels := map[string]string{"role": "field", api.Reserved + "profile": "vm", api.Reserved + "arch": "amd64"}
	r.devices["d1"] = api.DeviceID{1}
	report := func(version int) {
		t.Helper()
		if err := r.db.PutStatuses(t.Context(), map[api.Key]any{key(api.KindDevice, "d1"): api.DeviceStatus{ID: api.DeviceID{1}, Online: true, Release: bundle(version)}}); err != nil {
			t.Fatal(err)
		}
	}
	r.put(api.KindDevice, "d1", labels, api.DeviceSpec{Approved: true}, api.DeviceStatus{ID: api.DeviceID{1}}, store.PutOptions{})
	release := func(version int, hold bool) {
		r.put(api.KindRelease, "os", nil, api.ReleaseSpec{Systems: []api.ReleaseSystem{{Profile: "vm", Arch: "amd64", Artifact: "os/vm@" + bundle(version), Counter: uint64(version)}}}, nil, store.PutOptions{Hold: hold})
	}
	release(1, false)
	release(2, true)
	report(1)
	r.roll("up", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 1, Approve: true}, {Devices: 1}}, Change: []api.RevisionRef{{Kind: api.KindRelease, Name: "os"}}})
	wait.Until(t, "it is given the second", func() bool { return r.status("up").Devices.Given == 1 })
	report(2)
	wait.Until(t, "it is healthy", func() bool { return r.status("up").Devices.Healthy == 1 })
	if err := r.room.Order(t.Context(), key(api.KindRollout, "up"), rollout.Abort); err != nil {
		t.Fatal(err)
	}
	var s api.RolloutStatus
	wait.Until(t, "it is rolled back", func() bool {
		s = r.status("up")
		return s.Phase == api.RolloutRolledBack || s.Devices.Restoring > 0
	})
	if len(s.Unhappy) != 1 || s.Unhappy[0].State != string(rollout.Kept) || !strings.Contains(s.Unhappy[0].Why, "security counter 1") {
		t.Fatalf("below its floor it went back: %+v", s)
	}
	release(3, false)
	if _, err := r.room.Back(t.Context(), key(api.KindRelease, "os"), 1); api.CodeOf(err) != api.Conflict {
		t.Fatal("one goes back below the floor: ", err)
	}
}

// TestRefusalsCount: without any of the checks, what it keeps away happens.
func TestRefusalsCount(t *testing.T) {
	tests := map[string]string{"budget of all": "^TestBudgets$", "budget of a site": "^TestBudgets$", "one rollout of a device": "^TestBudgets$", "one relay of a site": "^TestOneRelayOfASite$",
		"what must not come back": "^TestRollbackLeaves$", "a revoked revision": "^TestRevokedStays$", "the floor": "^TestFloorStays$", "the floor of an undo": "^TestFloorStays$"}
	var checks []mutation.Check
	for _, m := range mutation.Marked(t, "", "decide.go", "look.go", "settle.go") {
		if m.Test = tests[m.Name]; m.Test != "" {
			checks = append(checks, m)
		}
	}
	if len(checks) != len(tests) {
		t.Fatalf("%d checks are marked; %d are known", len(checks), len(tests))
	}
	mutation.Prove(t, checks...)
}

// A secret that was revoked does not come back; what else the rollout gave does.
func TestRevokedStays(t *testing.T) {
	r := newRig(t, "")
	r.device(1, "", false)
	secret := key(api.KindSecret, "s")
	r.put(api.KindSecret, "s", nil, api.SecretSpec{Data: map[string]string{"a": "1"}}, nil, store.PutOptions{})
	r.app(1, false)
	r.live()
	r.app(2, true)
	r.put(api.KindSecret, "s", nil, api.SecretSpec{Data: map[string]string{"a": "2"}}, nil, store.PutOptions{Hold: true})
	r.roll("both", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 1, Approve: true}}, Change: []api.RevisionRef{{Kind: api.KindApp, Name: "web"}, {Kind: api.KindSecret, Name: "s"}}})
	wait.Until(t, "it has both", func() bool { r.live(); return r.has("d1") == 2 })
	if err := r.db.Revoke(t.Context(), secret, 1); api.CodeOf(err) != api.Conflict {
		t.Fatal("a revision that all others have is revoked: ", err)
	}
	r.put(api.KindSecret, "s", nil, api.SecretSpec{Data: map[string]string{"a": "3"}}, nil, store.PutOptions{Hold: true})
	if err := r.db.Revoke(t.Context(), secret, 3); err != nil {
		t.Fatal(err)
	}
	if _, err := r.room.Back(t.Context(), secret, 3); api.CodeOf(err) != api.Conflict {
		t.Fatal("one goes back to what was revoked: ", err)
	}
	if _, err := r.room.Settle(t.Context(), "default", []api.RevisionRef{{Kind: api.KindSecret, Name: "s", Revision: 3}}); api.CodeOf(err) != api.Conflict {
		t.Fatal("what was revoked is rolled out: ", err)
	}
	if err := r.room.Order(t.Context(), key(api.KindRollout, "both"), rollout.Abort); err != nil {
		t.Fatal(err)
	}
	r.until("both", api.RolloutRolledBack)
	if r.has("d1") != 1 {
		t.Fatal("the app did not go back")
	}
}
