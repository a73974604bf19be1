package workload

import (
	"testing"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/types/known/timestamppb"

	"tributary.dev/tributary/pkg/api"
)

// containerd writes down when a process ended by the machine's clock; on a box without a
// battery that is 1970, while the device's clock is not.
func TestTimesOfContainerdAreTheDevices(t *testing.T) {
	device := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct{ machine, at, want time.Time }{
		"both agree":             {device, device.Add(-time.Minute), device.Add(-time.Minute)},
		"the machine is in 1970": {time.Unix(100, 0), time.Unix(40, 0), device.Add(-time.Minute)},
		"set back since":         {device.Add(-time.Hour), device.Add(-time.Minute), device},
	} {
		if got := (moment{device, c.machine}).local(c.at); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		tr := &tracked{}
		tr.setProcess(&tasktypes.Process{Status: tasktypes.Status_STOPPED, ExitedAt: timestamppb.New(c.at)}, moment{device, c.machine})
		if !tr.in.Ended.Equal(c.want) {
			t.Errorf("%s: ended %s, want %s", name, tr.in.Ended, c.want)
		}
	}
}

// A clock that is set back keeps nobody waiting for longer than a pause, and one that
// stands in 1970 is as good as another.
func TestPausesEndWhenTheClockIsSetBack(t *testing.T) {
	key := serviceKey{"a", "s"}
	svc := wantService{Service: api.Service{Name: "s"}, Hash: "h", Image: "i"}
	for _, back := range []time.Duration{0, time.Hour, 400_000 * time.Hour} {
		for name, set := range map[string]func(w *world){
			"a crash": func(w *world) {
				w.Instances = []instance{{ID: "c", Key: key, Hash: "h", Phase: phaseStopped, Started: w.Now, Ended: w.Now, Exit: 1, Finished: true, Failures: 9}}
			},
			"a launch that failed": func(w *world) {
				w.LaunchFailed = map[serviceKey]launchFailure{key: {Hash: "h", Count: 9, Last: w.Now, Error: "no"}}
			},
			"a start that failed": func(w *world) {
				w.Instances = []instance{{ID: "c", Key: key, Hash: "h"}}
				w.LaunchFailed = map[serviceKey]launchFailure{key: {Hash: "h", Count: 9, Last: w.Now, Error: "no"}}
			},
			"a pull that failed": func(w *world) {
				w.Images = map[string]imageState{"i": {Error: "no", Retry: w.Now.Add(backoffMax)}}
			},
			"an update that settles": func(w *world) {
				w.Instances = []instance{{ID: "c", Key: key, Hash: "h", Phase: phaseRunning, Started: w.Now}, {ID: "b", Key: key, Hash: "g", Phase: phaseRunning}}
			},
		} {
			w := world{Now: time.Unix(2_000_000_000, 0), Apps: []wantApp{{Name: "a", Digest: "d", Services: []wantService{svc}}}, Images: map[string]imageState{"i": {Ready: true}}}
			set(&w)
			if d := plan(w); len(d.Actions) > 0 || d.Wake.IsZero() {
				t.Fatalf("%s: no pause: %+v", name, d)
			}
			w.Now = w.Now.Add(time.Second - back)
			d := plan(w)
			if len(d.Actions) == 0 && d.Wake.Sub(w.Now) > backoffMax {
				t.Errorf("%s, set back by %s: waits for %s", name, back, d.Wake.Sub(w.Now))
			}
			if len(d.Actions) > 0 && back == 0 {
				t.Errorf("%s: the pause ended early: %v", name, d.Actions)
			}
		}
	}
}
