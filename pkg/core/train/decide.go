// Package train answers: which model is being trained, and how far is it?
//
// People write a TrainingJob. What is to be done about each is decided from what they want, what the driver sees and the
// time (Decide); a driver starts and ends the ranks; Loop joins them, and keeps a result as a model in the registry.
package train

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Verb is what a driver is to do.
type Verb string

// What may be done about a job.
const (
	Nothing Verb = ""
	Start   Verb = "start"   // from the last checkpoint, or from the beginning
	Suspend Verb = "suspend" // ask for an end at the next checkpoint
	Stop    Verb = "stop"    // kill it
	Keep    Verb = "keep"    // keep its result, then remove it
	Remove  Verb = "remove"  // take away what is left of its run
)

// Run is what a driver sees of a job. The zero Run: there is nothing of it.
type Run struct {
	Exists, Running bool
	// Exit is the status of a run that ended; Said is what the trainer said last of its end: done,
	// suspended or nothing.
	Exit int
	Said string
	// Since is when it was started, and Until when it ended.
	Since, Until time.Time
	// Killed says that the kernel ended a rank for want of memory.
	Killed bool
	// Restarts counts how often the launcher started its ranks again.
	Restarts    int
	Step, Steps int64
	Loss        *float64
	CPUMicros   int64
	// First is the step at which this run began, after what it restored.
	First int64
}

// Job is one job as seen.
type Job struct {
	UID     string
	Created time.Time
	Spec    api.TrainingJobSpec // filled
	Status  api.TrainingJobStatus
	Run     Run
}

// Capacity is what there is to train with.
type Capacity struct {
	CPUs        float64
	MemoryBytes int64
}

// Step is what happens to one job: what to do, and what to tell.
type Step struct {
	UID    string
	Do     Verb
	Status api.TrainingJobStatus
}

// pause is how long a job that broke off waits before it starts again: twice as long each time.
func pause(restarts int) time.Duration {
	return min(time.Second<<min(restarts, 10), 5*time.Minute)
}

func needs(s *api.TrainingJobSpec) Capacity {
	return Capacity{CPUs: float64(s.Ranks) * s.Resources.CPUs, MemoryBytes: int64(s.Ranks) * s.Resources.MemoryBytes}
}

// Decide says what to do about all jobs of one driver. Who came first starts first: a job that
// waits for room is not passed by a smaller one, which might keep it waiting for ever.
func Decide(jobs []Job, has Capacity, now time.Time) []Step {
	jobs = slices.Clone(jobs)
	slices.SortFunc(jobs, func(a, b Job) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.UID, b.UID)) })
	free := has
	for i := range jobs {
		if jobs[i].Run.Running {
			n := needs(&jobs[i].Spec)
			free.CPUs, free.MemoryBytes = free.CPUs-n.CPUs, free.MemoryBytes-n.MemoryBytes
		}
	}
	var steps []Step
	ahead := "" // the job that waits for room
	for i := range jobs {
		j := &jobs[i]
		st := j.Status
		do := decideOne(j, &st, now)
		if do == Start {
			do = place(j, &st, has, &free, &ahead)
		}
		steps = append(steps, Step{j.UID, do, st})
	}
	return steps
}

// place starts a job if there is room.
func place(j *Job, st *api.TrainingJobStatus, has Capacity, free *Capacity, ahead *string) Verb {
	n := needs(&j.Spec)
	const gib = 1 << 30
	switch {
	case n.CPUs > has.CPUs || n.MemoryBytes > has.MemoryBytes:
		fail(st, fmt.Sprintf("it needs %g CPUs and %.1f GiB; there are %g and %.1f GiB: ask for fewer ranks or smaller ones", n.CPUs, float64(n.MemoryBytes)/gib, has.CPUs, float64(has.MemoryBytes)/gib))
		return Nothing
	case *ahead != "":
		st.Phase, st.Reason = api.TrainingQueued, "waits behind "+*ahead
		return Nothing
	case n.CPUs > free.CPUs || n.MemoryBytes > free.MemoryBytes:
		*ahead = "a job that came before it"
		st.Phase, st.Reason = api.TrainingQueued, fmt.Sprintf("waits for room: it needs %g CPUs and %.1f GiB; %g and %.1f GiB are free", n.CPUs, float64(n.MemoryBytes)/gib, max(free.CPUs, 0), float64(max(free.MemoryBytes, 0))/gib)
		return Nothing
	}
	free.CPUs, free.MemoryBytes = free.CPUs-n.CPUs, free.MemoryBytes-n.MemoryBytes
	st.Phase, st.Reason = api.TrainingRunning, "starting"
	return Start
}

// decideOne says what to do about one job as if there were room for all.
func decideOne(j *Job, st *api.TrainingJobStatus, now time.Time) Verb {
	if st.Final() {
		if j.Run.Running {
			return Stop
		}
		if j.Run.Exists {
			return Remove
		}
		return Nothing
	}
	if j.Run.Exists {
		observe(j, st, now)
	}
	switch {
	case j.Run.Running:
		return running(j, st, now)
	case j.Run.Exists:
		return ended(j, st, now)
	case j.Spec.Cancel:
		end(st, api.TrainingCancelled, "it was cancelled", now)
		return Nothing
	case j.Spec.Suspend:
		st.Phase, st.Reason = api.TrainingSuspended, "suspended; set spec.suspend to false to let it go on"
		return Nothing
	}
	st.Phase = api.TrainingQueued
	return Start
}

// observe notes how far the run is.
func observe(j *Job, st *api.TrainingJobStatus, now time.Time) {
	r := &j.Run
	if st.Started == nil && !r.Since.IsZero() {
		at := r.Since.UTC()
		st.Started = &at
	}
	if r.Steps > 0 {
		st.Step, st.Steps, st.Loss = r.Step, r.Steps, r.Loss
	}
	st.Estimate = nil
	if done := r.Step - r.First; r.Running && done > 0 && r.Steps > r.Step {
		each := now.Sub(r.Since) / time.Duration(done)
		at := now.Add(each * time.Duration(r.Steps-r.Step)).UTC().Truncate(time.Second)
		st.Estimate = &at
	}
}

// took is how long the run went on.
func took(r *Run, now time.Time) time.Duration {
	if !r.Running && !r.Until.IsZero() {
		now = r.Until
	}
	return max(now.Sub(r.Since), 0)
}

func running(j *Job, st *api.TrainingJobStatus, now time.Time) Verb {
	all := time.Duration(st.RanMillis)*time.Millisecond + took(&j.Run, now)
	switch {
	case j.Spec.Cancel:
		st.Reason = "is being cancelled"
		return Stop
	case all > time.Duration(j.Spec.TimeLimit):
		st.Reason = overTime(j)
		return Stop
	case j.Spec.Suspend: // again each time: a launcher that began anew was not asked
		st.Phase, st.Reason = api.TrainingRunning, "ends at its next checkpoint"
		return Suspend
	}
	st.Phase, st.Reason = api.TrainingRunning, ""
	if j.Run.Step == 0 {
		st.Reason = "starting"
	}
	return Nothing
}

func overTime(j *Job) string {
	return "it ran for its limit of " + time.Duration(j.Spec.TimeLimit).String() + ": give it a longer timeLimit, or fewer steps"
}

// ended says what follows a run that is over.
func ended(j *Job, st *api.TrainingJobStatus, now time.Time) Verb {
	r := &j.Run
	all := time.Duration(st.RanMillis)*time.Millisecond + took(r, now)
	switch {
	case r.Exit == 0 && r.Said == "done":
		return Keep
	case j.Spec.Cancel:
		end(st, api.TrainingCancelled, "it was cancelled", now)
		return settle(st, all, r)
	case all > time.Duration(j.Spec.TimeLimit):
		end(st, api.TrainingFailed, overTime(j), now)
		return settle(st, all, r)
	case r.Exit == 0 && r.Said == "suspended":
		st.Phase, st.Reason = api.TrainingSuspended, "at its checkpoint"
		return settle(st, all, r)
	case st.Restarts >= j.Spec.MaxRestarts:
		end(st, api.TrainingFailed, why(r)+fmt.Sprintf(", after %d restarts: see `edgectl training logs`", st.Restarts), now)
		return settle(st, all, r)
	}
	st.Reason = why(r) + "; it goes on from its last checkpoint"
	if wait := pause(st.Restarts) - now.Sub(r.Until); wait > 0 {
		return Nothing
	}
	st.Restarts++
	return settle(st, all, r)
}

// settle closes the account of a run, whose rest is removed.
func settle(st *api.TrainingJobStatus, all time.Duration, r *Run) Verb {
	st.RanMillis = all.Milliseconds()
	st.CPUMicros += r.CPUMicros
	st.Estimate = nil
	return Remove
}

func why(r *Run) string {
	switch {
	case r.Killed:
		return "a rank took more memory than it may (resources.memoryBytes)"
	case r.Exit == 0:
		return "the trainer ended without a word of success"
	}
	return fmt.Sprintf("the trainer ended with status %d", r.Exit)
}

func fail(st *api.TrainingJobStatus, why string) { st.Phase, st.Reason = api.TrainingFailed, why }

func end(st *api.TrainingJobStatus, phase, reason string, now time.Time) {
	at := now.UTC()
	st.Phase, st.Reason, st.Ended, st.Estimate = phase, reason, &at, nil
}
