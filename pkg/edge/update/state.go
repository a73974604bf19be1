// Package update answers: how does the box get from one release to the next, and back, without ever being left without one?
//
// The phases (decide.go) are a plain function: what is kept on the disk and what is observed go in, what is kept next
// and one thing to do come out. What it says is kept is on the disk before the thing is done, so a power cut at any
// point is only a restart of the same function. The loop is in run.go; the doing in flash.go (slots), firmware.go (boot
// variables), mount.go (the running ESP) and panic.go (what a dead kernel said). pkg/edge/update/guard is for process 1,
// which judges a trial when the agent cannot.
package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Slot is one of the two sets of partitions: "a" or "b".
type Slot string

// Other is the slot that is not this one.
func (s Slot) Other() Slot {
	if s == "a" {
		return "b"
	}
	return "a"
}

// Release is what a slot holds or shall hold.
type Release struct {
	// Digest is that of the release's OCI manifest; empty for what was flashed.
	Digest  string `json:"digest,omitempty"`
	Repo    string `json:"repo,omitempty"`
	Version string `json:"version"`
	// Counter is the security counter: a box never installs one below its floor.
	Counter  uint64 `json:"counter"`
	RootHash string `json:"roothash"` // 64 hex digits
	// Attempt is a number of the core's: a person raises it to have a refused release tried again.
	Attempt uint64 `json:"attempt,omitempty"`
}

// Name is how people hear of it.
func (r Release) Name() string {
	if r.Version != "" {
		return r.Version
	}
	return "of root " + r.RootHash[:min(12, len(r.RootHash))]
}

// Phase is how far the update is.
type Phase string

// The phases, in their order. Returning and Returned are the way back.
const (
	Idle       Phase = "idle"
	Checking   Phase = "check"
	Fetching   Phase = "fetch"
	Writing    Phase = "write"
	Verifying  Phase = "verify"
	Armed      Phase = "armed"   // the trial is used up on the disk; the firmware is told, the box starts anew
	Trial      Phase = "trial"   // running the new release, being judged
	Confirming Phase = "confirm" // judged well; the firmware's order changes
	Returning  Phase = "return"  // judged badly; the box starts anew, into the old slot
	Returned   Phase = "returned"
)

// Cause is why a release was left, for machines; the words are Verdict.Reason.
type Cause string

// The causes.
const (
	CauseUnsigned Cause = "not-signed"
	CauseUnfit    Cause = "unfit"         // wrong architecture, profile, size, content
	CauseFloor    Cause = "below-floor"   // its security counter is below the box's
	CauseFirmware Cause = "firmware"      // no boot variables
	CauseFetch    Cause = "fetch"         // not to be had
	CauseDisk     Cause = "disk"          // does not keep what is written
	CauseLost     Cause = "no-verdict"    // it did not come so far as to be judged
	CauseKernel   Cause = "kernel"        // no watchdog, a must of boot failed
	CauseAgent    Cause = "agent"         // crashes, or is not healthy
	CauseParent   Cause = "parent-silent" // did not reach the parent
	CauseApps     Cause = "apps"          // apps that ran before do not run
	CauseUnsteady Cause = "unsteady"      // healthy now and then
	CausePerson   Cause = "person"        // a person went back
)

// Verdict is why a release was left.
type Verdict struct {
	Cause  Cause  `json:"cause"`
	Reason string `json:"reason"`
}

// Refusal is a release that is not tried again until something changes: the attempt number, the release that runs,
// or, of course, the release that is wanted.
type Refusal struct {
	Release
	Verdict
	Base string    `json:"base"` // root hash of what ran
	Time time.Time `json:"time"`
}

// Later is a release that is free of blame and waits.
type Later struct {
	Digest    string    `json:"digest"`
	Attempt   uint64    `json:"attempt,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	Times     int       `json:"times"`
}

// Entry is a line of the history.
type Entry struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Slot    Slot      `json:"slot,omitempty"`
	What    string    `json:"what"` // in plain words
	Cause   Cause     `json:"cause,omitempty"`
}

// Bounds of what is kept.
const (
	maxRefused = 16
	maxHistory = 40
	maxState   = 256 << 10
	maxArms    = 3
)

// State is what the update keeps on the disk. Good is the slot that the firmware's order favours: the one confirmed last.
type State struct {
	Format int              `json:"format"`
	Phase  Phase            `json:"phase"`
	Target *Release         `json:"target,omitempty"`
	Slots  map[Slot]Release `json:"slots"` // what is whole in each slot
	Good   Slot             `json:"good"`
	// Install counts installations; the boot manager prefers the higher.
	Install uint64 `json:"install"`
	// Arms counts how often the firmware was told; Boot is the boot in which it was, or of the trial.
	Arms int    `json:"arms,omitempty"`
	Boot string `json:"boot,omitempty"`
	// Writes counts attempts to write the slot.
	Writes int `json:"writes,omitempty"`
	// Baseline are the apps that ran when the trial was decided: they must run again.
	Baseline []string `json:"baseline,omitempty"`
	// WellSince is the uptime since which all conditions of the trial hold; -1: they don't.
	WellSince time.Duration `json:"wellSince,omitempty"`
	Verdict   *Verdict      `json:"verdict,omitempty"`
	// By is the person who asked for the other slot, whatever the manifest says (guard.Back).
	By      string    `json:"by,omitempty"`
	Refused []Refusal `json:"refused,omitempty"`
	Later   *Later    `json:"later,omitempty"`
	History []Entry   `json:"history,omitempty"`
}

// since is the time of the last line of the history.
func (s State) since(otherwise time.Time) time.Time {
	if n := len(s.History); n > 0 {
		return s.History[n-1].Time
	}
	return otherwise
}

const format = 1

func (s State) clone() State {
	s.Slots = maps.Clone(s.Slots)
	if s.Slots == nil {
		s.Slots = map[Slot]Release{}
	}
	if s.Target != nil {
		t := *s.Target
		s.Target = &t
	}
	s.Refused, s.History, s.Baseline = slices.Clone(s.Refused), slices.Clone(s.History), slices.Clone(s.Baseline)
	return s
}

// Load reads the state. A file that is not there, or cannot be read as one, gives a state that knows nothing: what
// runs is then taken for good. The error says why, and is nil for a file that is not there.
func Load(path string) (State, error) {
	fresh := State{Format: format, Phase: Idle, Slots: map[Slot]Release{}, WellSince: -1}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return fresh, err
	}
	if info.Size() > maxState {
		return fresh, fmt.Errorf("%s has %d bytes: at most %d are read", path, info.Size(), maxState)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fresh, err
	}
	s, err := Decode(b)
	if err != nil {
		return fresh, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Decode reads a state and puts its bounds in force.
func Decode(b []byte) (s State, err error) {
	if len(b) > maxState {
		return s, fmt.Errorf("%d bytes of state: at most %d are read", len(b), maxState)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, err
	}
	if s.Format != format {
		return s, fmt.Errorf("state of format %d; this release knows %d", s.Format, format)
	}
	for slot := range s.Slots {
		if slot != "a" && slot != "b" {
			return s, fmt.Errorf("no such slot: %q", slot)
		}
	}
	if s.Good != "" && s.Good != "a" && s.Good != "b" {
		return s, fmt.Errorf("no such slot: %q", s.Good)
	}
	busy := s.Phase != Idle && s.Phase != Checking
	if !slices.Contains([]Phase{Idle, Checking, Fetching, Writing, Verifying, Armed, Trial, Confirming, Returning, Returned}, s.Phase) {
		return s, fmt.Errorf("no such phase: %q", s.Phase)
	}
	if busy && (s.Target == nil || s.Good == "") {
		return s, fmt.Errorf("phase %s without a target", s.Phase)
	}
	if (s.Phase == Returning || s.Phase == Returned) && s.Verdict == nil {
		return s, fmt.Errorf("phase %s without a verdict", s.Phase)
	}
	s.Refused = s.Refused[max(0, len(s.Refused)-maxRefused):]
	s.History = s.History[max(0, len(s.History)-maxHistory):]
	return s.clone(), nil
}

// Save writes the state; when it returns nil it is on the disk.
func Save(path string, s State) error {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(b, '\n'), 0o600)
}
