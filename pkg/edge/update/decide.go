package update

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Do is one thing to do. Each may be repeated: a power cut in the middle of it is followed by the same again.
type Do string

// The things to do.
const (
	Nothing Do = ""
	Check   Do = "check"  // fetch the release's description and its signatures, and verify them
	Fetch   Do = "fetch"  // bring what the box lacks to the disk
	Write   Do = "write"  // into the slot that does not run: root, verity tree, GPT IDs, its ESP last
	Verify  Do = "verify" // read all of that back from the disk
	Arm     Do = "arm"    // BootNext: the other slot's ESP, once
	Disarm  Do = "disarm" // no BootNext
	Reboot  Do = "reboot"
	Bless   Do = "bless" // take the counter off the running slot's UKI
	Order   Do = "order" // BootOrder: the running slot first
	Raise   Do = "raise" // the floor of the security counter, to that of the running release
)

// Want is the release that the manifest names.
type Want struct {
	Repo, Digest string
	Attempt      uint64
}

// Condition is one thing that a trial is judged by.
type Condition struct {
	OK     bool
	Detail string // in plain words, where it is not
}

// Health is what the trial is judged by.
type Health struct {
	Kernel Condition // all musts of boot were done, the watchdog is fed
	Agent  Condition // its loops run, its state is whole
	Parent Condition // a session with the parent exists
	// Known: the manifest in force is known. Wanted are its apps, Apps those that run and are healthy now.
	Known        bool
	Wanted, Apps []string
	// Held: the box takes no app until the release runs that is to be tried. There is none to wait for.
	Held bool
}

// Facts are what is observed.
type Facts struct {
	Now     time.Time
	Uptime  time.Duration // of this boot
	Boot    string        // the kernel's boot id
	Running Slot
	Root    string // root hash of what runs
	Version string // of what runs
	Counter uint64 // of what runs
	Arch    string
	Profile string
	Floor   uint64

	// Variables: the firmware keeps boot variables. Order is its order of our two slots, Next what BootNext names.
	Variables bool
	Order     []Slot
	Next      Slot
	// Entered: the boot manager counted a start of the UKI that was written last into the slot that does not run.
	Entered bool
	// Blessed: the running slot's UKI has no counter.
	Blessed bool
	// Panic is what the kernel left behind when it died, a line.
	Panic string

	Want   *Want
	Open   bool // the hours in which updates are fetched and tried
	Health Health
	Done   *Done // what came of the last thing to do, in this process
}

// Done is the outcome of a thing to do.
type Done struct {
	Do   Do
	Err  error
	Last bool  // trying again does not help
	Why  Cause // where Last
	// Found is what Check learned.
	Found *Description
}

// Description is what a verified release says of itself.
type Description struct {
	Release
	Arch    string
	Profile string
	Fits    error // nil, or why it has no room in the slot
}

// Deadlines are uptimes of a trial at which a condition must hold, and how long all must hold together.
type Deadlines struct {
	Kernel, Agent, Parent, Apps, Steady, All time.Duration
	// Retry is the first pause before a release free of blame is tried again; it doubles up to RetryMost.
	Retry, RetryMost time.Duration
}

// Default deadlines. Process 1 waits a little longer (pkg/edge/update/guard).
var Default = Deadlines{Kernel: 2 * time.Minute, Agent: 5 * time.Minute, Parent: 10 * time.Minute, Apps: 15 * time.Minute,
	Steady: time.Minute, All: 20 * time.Minute, Retry: time.Hour, RetryMost: 24 * time.Hour}

// Within are deadlines for a trial that is to be over sooner, as a release may ask for on its signed command line. Zero
// changes nothing.
func (d Deadlines) Within(all time.Duration) Deadlines {
	if all <= 0 {
		return d
	}
	for _, p := range []*time.Duration{&d.Kernel, &d.Agent, &d.Parent, &d.Apps, &d.All} {
		*p = min(*p, all)
	}
	d.Steady = min(d.Steady, all/10)
	return d
}

// Step decides. The state it returns must be on the disk before the thing to do is done. It is pure.
func Step(s State, f Facts, d Deadlines) (State, Do) {
	s = s.clone()
	s.learn(f)
	if s.Phase == Checking || s.Phase == Fetching || s.Phase == Writing || s.Phase == Verifying {
		if f.Want == nil || s.Target == nil || f.Want.Digest != s.Target.Digest || f.Want.Attempt != s.Target.Attempt {
			s.rest()
		}
	}
	switch s.Phase {
	case Idle:
		return s.idle(f)
	case Checking:
		return s.checking(f, d)
	case Fetching:
		return s.fetching(f, d)
	case Writing, Verifying:
		return s.writing(f, d)
	case Armed:
		return s.armed(f, d)
	case Trial:
		return s.trial(f, d)
	case Confirming:
		return s.confirming(f, d)
	case Returning:
		return s.returning(f)
	case Returned:
		return s.returned(f, d)
	}
	return s, Nothing
}

// learn notes what runs. A box that knows nothing takes what runs for good.
func (s *State) learn(f Facts) {
	if held, ok := s.Slots[f.Running]; !ok || held.RootHash != f.Root {
		s.Slots[f.Running] = Release{Version: f.Version, Counter: f.Counter, RootHash: f.Root}
	}
	if s.Good == "" {
		s.Good = f.Running
	}
}

func (s *State) rest() {
	s.Phase, s.Target, s.Verdict, s.Boot, s.Arms, s.Writes, s.Baseline, s.WellSince = Idle, nil, nil, "", 0, 0, nil, -1
	s.By = ""
}

func (s *State) note(f Facts, version string, slot Slot, cause Cause, what string) {
	s.History = append(s.History, Entry{Time: f.Now, Version: version, Slot: slot, What: what, Cause: cause})
	s.History = s.History[max(0, len(s.History)-maxHistory):]
}

// refuse ends an attempt for good, until something changes.
func (s *State) refuse(f Facts, cause Cause, reason string) {
	t := *s.Target
	reason = strings.ReplaceAll(reason, "\n", "; ")
	s.Refused = slices.DeleteFunc(s.Refused, func(r Refusal) bool { return r.Digest == t.Digest })
	s.Refused = append(s.Refused, Refusal{Release: t, Verdict: Verdict{cause, reason}, Base: f.Root, Time: f.Now})
	s.Refused = s.Refused[max(0, len(s.Refused)-maxRefused):]
	s.note(f, t.Name(), "", cause, reason)
	if s.Later != nil && s.Later.Digest == t.Digest {
		s.Later = nil
	}
	s.rest()
}

// Refusal is that of the wanted release, if it is refused now.
func (s State) Refusal(w *Want, root string) *Refusal {
	for _, r := range s.Refused {
		if w != nil && r.Digest == w.Digest && r.Attempt == w.Attempt && r.Base == root {
			return &r
		}
	}
	return nil
}

func (s State) idle(f Facts) (State, Do) {
	if f.Running != s.Good {
		// The firmware could not start the good slot and took the other, which was confirmed in its time.
		s.note(f, s.Slots[f.Running].Name(), f.Running, "", fmt.Sprintf("the firmware could not start slot %s and took slot %s", s.Good, f.Running))
		s.Good = f.Running
	}
	if held := s.Slots[f.Running]; f.Health.Agent.OK && f.Health.Kernel.OK && held.Counter > f.Floor {
		return s, Raise
	}
	w := f.Want
	if l := s.Later; l != nil && w != nil && (l.Digest != w.Digest || l.Attempt != w.Attempt) {
		s.Later = nil // another one is wanted
	}
	if w == nil || w.Digest == s.Slots[f.Running].Digest || s.Refusal(w, f.Root) != nil {
		return s, Nothing
	}
	if l := s.Later; l != nil && (f.Now.Before(l.NotBefore) || !f.Health.Parent.OK) {
		return s, Nothing
	}
	s.Phase, s.Target = Checking, &Release{Repo: w.Repo, Digest: w.Digest, Attempt: w.Attempt}
	return s, Check
}

func (f Facts) outcome(of Do) *Done {
	if f.Done != nil && f.Done.Do == of {
		return f.Done
	}
	return nil
}

// failed says what a failure means: nothing more than a pause, or the end.
func (s *State) failed(f Facts, d *Done, what string) Do {
	if d.Last {
		s.refuse(f, d.Why, fmt.Sprintf("%s: %v", what, d.Err))
		return Nothing
	}
	return d.Do // again, after the pause that the loop makes
}

func (s State) checking(f Facts, d Deadlines) (State, Do) {
	done := f.outcome(Check)
	if done == nil {
		return s, Check
	}
	if done.Err != nil {
		return s, s.failed(f, done, "the release was not accepted")
	}
	found := done.Found
	if found == nil || found.Digest != s.Target.Digest {
		return s, Check
	}
	attempt := s.Target.Attempt
	*s.Target = found.Release
	s.Target.Attempt = attempt
	switch t := s.Target; {
	case t.RootHash == f.Root:
		held := s.Slots[f.Running]
		held.Digest, held.Repo = t.Digest, t.Repo
		s.Slots[f.Running] = held // it runs already
		s.rest()
		return s, Nothing
	case found.Arch != f.Arch: // check: arch
		s.refuse(f, CauseUnfit, fmt.Sprintf("release %s is for %s; this box is %s", t.Name(), found.Arch, f.Arch))
	case found.Profile != f.Profile:
		s.refuse(f, CauseUnfit, fmt.Sprintf("release %s is for the profile %s; this box has %s", t.Name(), found.Profile, f.Profile))
	case t.Counter < f.Floor: // check: floor
		s.refuse(f, CauseFloor, fmt.Sprintf("release %s has security counter %d; this box accepts none below %d", t.Name(), t.Counter, f.Floor))
	case found.Fits != nil:
		s.refuse(f, CauseUnfit, fmt.Sprintf("release %s has no room on this box: %v", t.Name(), found.Fits))
	case !f.Variables:
		s.refuse(f, CauseFirmware, "this box's firmware keeps no boot variables, so a release cannot be tried just once; start the box through UEFI, or flash it")
	default:
		s.Phase = Fetching
		return s.fetching(f, d)
	}
	return s, Nothing
}

func (s State) fetching(f Facts, d Deadlines) (State, Do) {
	if !f.Open {
		return s, Nothing
	}
	done := f.outcome(Fetch)
	switch {
	case done == nil:
		return s, Fetch
	case done.Err != nil:
		return s, s.failed(f, done, "the release could not be fetched")
	}
	s.Phase, s.Writes = Writing, 0
	s.Install++
	return s.writing(f, d)
}

func (s State) writing(f Facts, d Deadlines) (State, Do) {
	other := f.Running.Other()
	if len(f.Order) == 0 || f.Order[0] != f.Running { // check: order
		// What is about to be torn must not be what the firmware starts first.
		if f.Running != s.Good || !f.Health.Kernel.OK || !f.Health.Agent.OK {
			return s, Nothing
		}
		return s, Order
	}
	if s.Phase == Verifying {
		done := f.outcome(Verify)
		switch {
		case done == nil:
			return s, Verify
		case done.Err == nil && !settled(f, d):
			return s, Nothing // what runs now is what the trial is measured by
		case done.Err == nil:
			s.Slots[other] = *s.Target
			s.Phase, s.Arms, s.Boot, s.Baseline = Armed, s.Arms+1, f.Boot, slices.Clone(f.Health.Apps)
			s.note(f, s.Target.Name(), other, "", fmt.Sprintf("written to slot %s and verified; to be tried once", other))
			return s, Arm
		case s.Writes >= maxWrites:
			s.refuse(f, CauseDisk, fmt.Sprintf("slot %s does not keep what is written to it, %d times: %v", other, s.Writes, done.Err))
			return s, Nothing
		}
		s.Phase = Writing
		s.Writes++
		return s, Write
	}
	delete(s.Slots, other)
	done := f.outcome(Write)
	switch {
	case done == nil:
		return s, Write
	case done.Err != nil:
		return s, s.failed(f, done, fmt.Sprintf("slot %s could not be written", other))
	}
	s.Phase = Verifying
	s.Writes = max(1, s.Writes)
	return s, Verify
}

const maxWrites = 2

// settled: this boot has shown which apps run here.
func settled(f Facts, d Deadlines) bool {
	return f.Health.Held || f.Uptime >= d.Apps || f.Health.Known && len(lacking(f.Health.Wanted, f.Health)) == 0
}

// armed is left by a boot: into the other slot, or back into this one.
func (s State) armed(f Facts, d Deadlines) (State, Do) {
	if f.Running != s.Good {
		s.Phase, s.Boot, s.WellSince = Trial, f.Boot, -1
		s.note(f, s.Target.Name(), f.Running, "", "on trial in slot "+string(f.Running))
		return s.trial(f, d)
	}
	if f.Boot != s.Boot { // a boot has passed
		if s.Verdict == nil && !f.Entered && s.Arms < maxArms && s.By == "" {
			// Power was cut, the firmware did not take the order, or the slot was hurt: it is read again before.
			s.Phase, s.Writes = Verifying, 1
			s.note(f, s.Target.Name(), "", "", "the trial did not begin; the slot is verified and tried once more")
			return s.writing(f, d)
		}
		return s.back(f)
	}
	if s.By == "" && (f.Want == nil || f.Want.Digest != s.Target.Digest) {
		if f.Next != "" {
			return s, Disarm
		}
		s.note(f, s.Target.Name(), "", "", "withdrawn before it was tried")
		s.rest()
		return s, Nothing
	}
	if done := f.outcome(Arm); done != nil && done.Err != nil && done.Last {
		s.refuse(f, CauseFirmware, fmt.Sprintf("the firmware does not take the order to try slot %s: %v", f.Running.Other(), done.Err))
		return s, Nothing
	}
	if f.Next != f.Running.Other() {
		return s, Arm
	}
	if !f.Open && s.By == "" {
		return s, Nothing
	}
	return s, Reboot
}

// back is the arrival in the old slot.
func (s State) back(f Facts) (State, Do) {
	if s.Verdict == nil {
		reason := fmt.Sprintf("release %s was started and did not come so far as to be judged: it hung, crashed or lost power", s.Target.Name())
		if !f.Entered {
			reason = fmt.Sprintf("release %s was to be started %d times, and the firmware started the old one each time", s.Target.Name(), s.Arms)
		}
		if f.Panic != "" {
			reason += "; its kernel said: " + f.Panic
		}
		s.Verdict = &Verdict{CauseLost, reason}
	}
	s.Phase, s.Boot = Returned, f.Boot
	s.note(f, s.Slots[f.Running].Name(), f.Running, s.Verdict.Cause, "back in slot "+string(f.Running))
	return s, Nothing
}

func (s State) trial(f Facts, d Deadlines) (State, Do) {
	if f.Running == s.Good {
		return s.back(f)
	}
	if s.Verdict != nil { // by process 1
		s.Phase, s.Boot = Returning, f.Boot
		return s, Reboot
	}
	verdict, well := judge(s, f, d)
	switch {
	case verdict != nil:
		s.Verdict, s.Phase, s.Boot = verdict, Returning, f.Boot
		s.note(f, s.Target.Name(), f.Running, verdict.Cause, verdict.Reason)
		return s, Reboot
	case !well:
		s.WellSince = -1
	case s.WellSince < 0 || f.Boot != s.Boot:
		s.WellSince = f.Uptime
	case f.Uptime-s.WellSince >= d.Steady:
		s.Phase = Confirming
		return s.confirming(f, d)
	}
	s.Boot = f.Boot
	return s, Nothing
}

// judge gives a verdict when a deadline has passed, and else whether all is well now.
func judge(s State, f Facts, d Deadlines) (*Verdict, bool) {
	missing := lacking(s.Baseline, f.Health)
	apps := Condition{OK: len(missing) == 0, Detail: strings.Join(missing, ", ") + " ran before the update and did not come back"}
	well := true
	for _, c := range []struct {
		Condition
		cause Cause
		by    time.Duration
		what  string
	}{
		{f.Health.Kernel, CauseKernel, d.Kernel, "the system below the agent was not up within %s"},
		{f.Health.Agent, CauseAgent, d.Agent, "the agent was not healthy within %s"},
		{f.Health.Parent, CauseParent, d.Parent, "the parent was not reached within %s"},
		{apps, CauseApps, d.Apps, "the apps were not healthy again within %s"},
	} {
		if c.OK {
			continue
		}
		well = false
		if f.Uptime >= c.by {
			return &Verdict{c.cause, fmt.Sprintf("release %s: "+c.what+": %s", s.Target.Name(), plainly(c.by), c.Detail)}, false
		}
	}
	if !well && f.Uptime >= d.All || f.Uptime >= d.All+d.Steady {
		return &Verdict{CauseUnsteady, fmt.Sprintf("release %s was not healthy for %s at a stretch within %s", s.Target.Name(), plainly(d.Steady), plainly(d.All))}, false
	}
	return nil, well
}

func lacking(baseline []string, h Health) (missing []string) {
	for _, app := range baseline {
		gone := h.Known && !slices.Contains(h.Wanted, app) // nobody wants it any more
		if !slices.Contains(h.Apps, app) && !gone {
			missing = append(missing, app)
		}
	}
	return missing
}

func plainly(d time.Duration) string {
	if d%time.Minute == 0 {
		if d == time.Minute {
			return "a minute"
		}
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return d.String()
}

func (s State) confirming(f Facts, d Deadlines) (State, Do) {
	other := s.Good.Other()
	if f.Running == s.Good {
		if len(f.Order) > 0 && f.Order[0] == other {
			s.Verdict = &Verdict{CauseLost, fmt.Sprintf("release %s was judged healthy, and then the firmware could not start it again", s.Target.Name())}
			return s.back(f)
		}
		// Power went between the judgement and the order: it is tried anew, not blamed. Blessing may be half done, so the
		// slot is read again before: a boot manager without a kernel waits for a person.
		s.Phase, s.Arms, s.Writes = Verifying, 0, 1
		return s.writing(f, d)
	}
	if !f.Blessed {
		return s, Bless
	}
	if len(f.Order) == 0 || f.Order[0] != f.Running {
		return s, Order
	}
	s.Good = f.Running
	s.Slots[f.Running] = *s.Target
	s.Later = nil
	s.note(f, s.Target.Name(), f.Running, "", "confirmed: system, agent, parent and apps are well")
	s.rest()
	return s, Nothing
}

func (s State) returning(f Facts) (State, Do) {
	if f.Running == s.Good {
		return s.back(f)
	}
	if f.Boot == s.Boot {
		return s, Reboot
	}
	// The firmware starts this slot though the order says the other: there is no way back.
	reason := s.Verdict.Reason + fmt.Sprintf("; but slot %s does not start any more, so this release runs on", s.Good)
	s.Good = f.Running
	s.refuse(f, s.Verdict.Cause, reason)
	return s, Nothing
}

// returned waits until it is known whether the release was to blame.
func (s State) returned(f Facts, d Deadlines) (State, Do) {
	if f.Running != s.Good { // the firmware went over once more, by itself
		return s.trial(f, d)
	}
	if f.Next != "" {
		return s, Disarm
	}
	if done := f.outcome(Order); len(f.Order) > 0 && f.Order[0] != f.Running && (done == nil || done.Err == nil) {
		return s, Order // it was confirmed, and then did not start: each start would begin with it
	}
	if s.Verdict.Cause != CauseParent || f.Health.Parent.OK {
		s.refuse(f, s.Verdict.Cause, s.Verdict.Reason)
		return s, Nothing
	}
	if f.Boot != s.Boot { // the wait begins anew
		s.Boot = f.Boot
	}
	if f.Uptime < d.Parent {
		return s, Nothing
	}
	l := Later{Digest: s.Target.Digest, Attempt: s.Target.Attempt, Times: 1}
	if s.Later != nil && s.Later.Digest == l.Digest && s.Later.Attempt == l.Attempt {
		l.Times = s.Later.Times + 1
	}
	pause := min(d.Retry<<min(l.Times-1, 10), d.RetryMost)
	l.NotBefore = f.Now.Add(pause)
	s.note(f, s.Target.Name(), "", "", fmt.Sprintf("free of blame: the parent is silent in slot %s too; to be tried again in %s", f.Running, plainly(pause)))
	s.Later = &l
	s.rest()
	return s, Nothing
}
