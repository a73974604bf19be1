package rollout

import (
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// What people may order.
const (
	Pause   = "pause"
	Resume  = "resume"
	Promote = "promote" // the wave under way counts as passed
	Approve = "approve"
	Abort   = "abort" // and roll back what was touched
	Keep    = "keep"  // abort, and leave what was given
)

// Order does what a person says; an error of code Conflict when that makes no sense now. On
// Resume those that failed may try again: the steps say so.
func Order(spec *api.RolloutSpec, p Progress, devices []Device, order string, now time.Time) (Progress, []Step, error) {
	refuse := func(remedy string) (Progress, []Step, error) {
		return p, nil, &api.Error{Code: api.Conflict, Message: fmt.Sprintf("a rollout that is %s cannot be told to %s", p.Phase, order), Remedy: remedy}
	}
	switch order {
	case Pause:
		if p.Phase != api.RolloutRunning && p.Phase != api.RolloutWaiting {
			return refuse("only one that is on its way can pause")
		}
		p.Phase, p.Message = api.RolloutPaused, "a person paused it"
	case Resume:
		if p.Phase != api.RolloutPaused {
			return refuse("only one that is paused goes on")
		}
		p.Phase, p.WaveSince, p.Message = api.RolloutRunning, now, ""
		return p, again(devices, now), nil
	case Promote:
		if p.Phase.Ended() || p.Phase == api.RolloutRollingBack || p.Phase == api.RolloutQueued || p.Wave >= Waves(spec) {
			return refuse("only a wave that is under way can be passed")
		}
		return promoted(spec, p, devices, now)
	case Approve:
		if p.Phase != api.RolloutWaiting || !WaveOf(spec, p.Wave-1).Approve {
			return refuse("it does not wait for an approval; see `edgectl rollout status`")
		}
		p.Approved = p.Wave
	case Abort:
		if p.Phase.Ended() || p.Phase == api.RolloutRollingBack {
			return refuse("to go back from one that has ended: edgectl rollout undo")
		}
		p.Phase, p.Message, p.WaveSince = api.RolloutRollingBack, "a person aborted it", now
	case Keep:
		if p.Phase.Ended() {
			return refuse("it has ended")
		}
		p.Phase, p.Message = api.RolloutAborted, "a person aborted it; what was given stays"
	default:
		return p, nil, api.Errorf(api.Invalid, "there is no order %q", order)
	}
	return p, nil, nil
}

// again has those try once more that failed.
func again(devices []Device, now time.Time) (steps []Step) {
	for _, d := range devices {
		if d.State == Failed {
			d.State, d.Why, d.Since = Waiting, "it failed, and tries again", now
			steps = append(steps, Step{Note, d})
		}
	}
	return steps
}

// promoted passes the wave under way, whatever became of it. Those that failed in it are left
// out, so that they do not stop the next wave too.
func promoted(spec *api.RolloutSpec, p Progress, devices []Device, now time.Time) (Progress, []Step, error) {
	var steps []Step
	for _, d := range slices.Clone(devices) {
		if d.State == Failed {
			d.State, d.Why, d.Since = Skipped, "it failed, and a person went on: "+d.Why, now
			steps = append(steps, Step{Note, d})
		}
	}
	if p.Phase == api.RolloutWaiting { // the wave is passed; its approval or pause is what is waited for
		p.Approved = max(p.Approved, p.Wave)
	} else {
		p.Wave++
		p.Approved = max(p.Approved, p.Wave)
	}
	p.Phase, p.WaveSince, p.Message = api.RolloutRunning, now, ""
	if p.Wave >= Waves(spec) {
		p.Phase = api.RolloutComplete
	}
	return p, steps, nil
}
