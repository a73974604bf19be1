package fleet

import (
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// A device that rejected an update is told of by the fleets that gave it the app, and by
// no others.
func TestRejectedUpdatesAreCounted(t *testing.T) {
	st := api.DeviceStatus{Apps: []api.AppStatus{{Name: "web", State: api.Running, Rejected: "sha256:2"}, {Name: "db", State: api.Running}}}
	for app, want := range map[string]int{"web": 1, "db": 0} {
		var s api.FleetStatus
		count(&s, []string{app}, true, running(&st), rejected(&st))
		if s.Rejected != want || s.Current != 1 || s.Running != 1 {
			t.Errorf("a fleet with %s: %+v", app, s)
		}
	}
}
