package workload

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// A power cut while images of an update are missing takes nothing down that ran before:
// every service comes up again in a version that is here.
func TestPlanBringsUpWhatIsHereWithoutItsUpdates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first, conditions := drawShape(t)
		m.w.Apps = m.want(1, first, conditions)
		if !m.settle(200, nil) {
			t.Fatal("does not come to rest")
		}
		next := m.want(2, first, conditions)
		for i := range first {
			if rapid.Bool().Draw(t, "unchanged") {
				next[0].Services[i] = m.w.Apps[0].Services[i]
			}
		}
		if rapid.Bool().Draw(t, "a new service comes first") {
			extra := next[0].Services[0]
			extra.Name, extra.Hash, extra.Image = "extra", "v2-extra", "image2"
			next[0].Services[0].DependsOn = []api.Dependency{{Service: "extra", Condition: "service_started"}}
			next[0].Services = append([]wantService{extra}, next[0].Services...)
		}
		m.w.Apps = next
		m.w.Images["image2"] = imageState{Pulling: true}
		m.settle(rapid.IntRange(0, 5).Draw(t, "rounds"), nil)
		for i := range m.w.Instances {
			in := &m.w.Instances[i]
			in.Phase, in.Health, in.Finished, in.Stopped = phaseNone, healthNone, false, false
		}
		m.settle(100, m.oneAtATime)
		for _, s := range m.want(1, first, conditions)[0].Services {
			if !slices.ContainsFunc(m.w.Instances, func(in instance) bool { return in.Key.Service == s.Name && in.Phase == phaseRunning }) {
				t.Fatalf("%s is down: %+v", s.Name, plan(m.w).Status)
			}
		}
	})
}
