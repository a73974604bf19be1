package scenario

import (
	"context"
	"errors"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/mutation"
)

// A relay and a device whose clocks are ten years ahead join and come online; builds that
// do not heed the core's word stay outside, since their parents' certificates look expired.
func TestClocksAhead(t *testing.T) {
	s := raise(t, pair())
	ctx := t.Context()
	const clock, heed = "b.state.Clock(time.Now, nil)", "Raise: b.clock.Heard"
	const run = "cmd/edged/run.go"
	ahead := mutation.Change{File: run, From: clock, To: "b.state.Clock(func() time.Time { return time.Now().AddDate(10, 0, 0) }, nil)"}
	deaf := mutation.Program(ctx, t, s.Root, "cmd/edged", ahead, mutation.Change{File: run, From: heed, To: "Raise: b.clock.Raise"})
	heeding := mutation.Program(ctx, t, s.Root, "cmd/edged", ahead)
	for _, box := range s.Lab.Boxes {
		box.Program = deaf
	}
	must(t, s.Lab.StartCore(ctx))
	must(t, s.Lab.Join(ctx))
	must(t, s.Lab.StartBoxes(ctx))
	must(t, lab.Until(ctx, "the relay has enrolled", s.Wait, func(ctx context.Context) error {
		if devices, err := s.Devices(ctx); err != nil || len(devices) == 0 {
			return errors.Join(err, errors.New("nobody is in the list"))
		}
		return nil
	}))
	waiting, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if online(waiting, s, "agg-1") == nil {
		t.Fatal("a build that does not heed the core's word comes online: this test proves nothing")
	}
	for _, box := range s.Lab.Boxes {
		must(t, box.PowerCut())
		box.Program = heeding
	}
	must(t, s.Lab.StartBoxes(ctx))
	must(t, s.Enrolled(ctx))
}
