package workload

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// A bundle is taken when all was done about it that can be, however it went: a service
// that fails or an update that is rejected hides nothing of the rest.
func TestPlanTakesWhatFailsToo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first, conditions := drawShape(t)
		m.w.Apps = m.want(1, first, conditions)
		if !m.settle(200, nil) {
			t.Fatal("does not come to rest")
		}
		if st := plan(m.w).Status[0]; st.Taken != m.w.Apps[0].Digest || st.Rejected != "" {
			t.Fatalf("at rest: %+v", st)
		}
		next := m.want(2, first, conditions)
		for i := range next[0].Services {
			s := &next[0].Services[i]
			b := m.behave[s.Hash]
			b.Break = rapid.Bool().Draw(t, "breaks")
			m.behave[s.Hash] = b
		}
		m.w.Apps = next
		if st := plan(m.w).Status[0]; len(next[0].Services) > 0 && st.Taken == next[0].Digest {
			t.Fatalf("before anything was done: %+v", st)
		}
		m.settle(300, nil)
		st := plan(m.w).Status[0]
		broken := false
		for _, s := range next[0].Services {
			broken = broken || m.w.Rejected[serviceKey{next[0].Name, s.Name}].Hash == s.Hash
		}
		if st.Taken != next[0].Digest || (st.Rejected == next[0].Digest) != broken {
			t.Fatalf("after all was done (broken: %v): %+v", broken, st)
		}
	})
}

func TestPlanTakesNothingThatIsNotHere(t *testing.T) {
	key := serviceKey{"a", "s"}
	svc := wantService{Service: api.Service{Name: "s"}, Hash: "new", Image: "i"}
	now := time.Unix(2_000_000_000, 0)
	base := func() world {
		return world{Now: now, Apps: []wantApp{{Name: "a", Digest: "d", InForce: "c", Services: []wantService{svc}}}, Images: map[string]imageState{"i": {Ready: true}}}
	}
	old := instance{ID: "b", Key: key, Hash: "old", Phase: phaseRunning, Started: now.Add(-time.Hour)}
	crashed := instance{ID: "c", Key: key, Hash: "new", Phase: phaseStopped, Started: now, Ended: now, Exit: 1, Finished: true, Failures: 9}
	for name, c := range map[string]struct {
		change func(w *world)
		taken  bool
	}{
		"an app in Backoff":      {func(w *world) { w.Instances = []instance{crashed} }, true},
		"a launch that fails":    {func(w *world) { w.LaunchFailed = map[serviceKey]launchFailure{key: {Hash: "new", Count: 9, Last: now}} }, true},
		"an app that is refused": {func(w *world) { w.Apps[0].Refused = "no" }, true},
		"an update that was rejected": {func(w *world) {
			w.Instances = []instance{old}
			w.Rejected = map[serviceKey]rejection{key: {Hash: "new"}}
		}, true},
		"an image that is not here": {func(w *world) { w.Images["i"] = imageState{Error: "no", Retry: now.Add(time.Minute)} }, false},
		"an update without its image": {func(w *world) {
			w.Instances = []instance{old}
			w.Images["i"] = imageState{Error: "no", Retry: now.Add(time.Minute)}
		}, false},
		"a removed service": {func(w *world) {
			o := old
			o.Key.Service = "gone"
			n := old
			n.Hash = "new"
			w.Instances = []instance{n, o}
		}, false},
		"an app on hold": {func(w *world) { w.Apps[0].Hold = "no bundle"; o := old; o.Hash = "new"; w.Instances = []instance{o} }, false},
	} {
		w := base()
		c.change(&w)
		if st := plan(w).Status[0]; (st.Taken == "d") != c.taken {
			t.Errorf("%s: taken %q, want it %v: %+v", name, st.Taken, c.taken, st)
		}
	}
}
