package api

import (
	"slices"
	"time"
)

// KindRollout is a change on its way to devices.
const KindRollout = "Rollout"

// RolloutSpec says which revisions reach which devices, in which order, and what stops them.
type RolloutSpec struct {
	Target RolloutTarget `json:"target"`
	// Change lists what the devices get. It is settled when the Rollout is made: what is named
	// without a revision is the newest then, and what a revision pins comes along.
	Change []RevisionRef `json:"change,omitempty"`
	// Waves are gone through in order. Devices that none of them takes make up a last one.
	Waves []RolloutWave `json:"waves,omitempty"`
	// Health says when a device counts as healthy.
	Health *RolloutHealth `json:"health,omitempty"`
	// MinHealthy is how many of the devices that a wave reached have to be healthy for the next
	// wave to begin; one at least. Those that were reached and went away count among them. Default: 90 percent.
	MinHealthy *Amount `json:"minHealthy,omitempty"`
	// MaxFailures is how many devices of all may fail. Default: none.
	MaxFailures *Amount `json:"maxFailures,omitempty"`
	// OnFailure is what becomes of it when more do: pause (the default), or rollback of what was touched.
	OnFailure string `json:"onFailure,omitempty"`
	// AtOnce bounds the devices that are under way together, beside the budget of their sites.
	// Default: no bound.
	AtOnce int `json:"atOnce,omitempty"`
	// PerSite bounds them at each site, where that is less than the site's own budget.
	PerSite int `json:"perSite,omitempty"`
	// Hours are when devices may begin, in UTC: "22:00-04:30". Going back heeds none.
	Hours Hours `json:"hours,omitempty"`
	// Expires ends it: no device begins after that.
	Expires *time.Time `json:"expires,omitempty"`
}

// What OnFailure may say.
const (
	FailurePause    = "pause"
	FailureRollback = "rollback"
)

// RolloutTarget picks devices: those of a fleet, or those that a selector picks, or both.
type RolloutTarget struct {
	Fleet    string    `json:"fleet,omitempty"`
	Selector *Selector `json:"selector,omitempty"`
}

// RevisionRef names a revision of an object of the same tenant.
type RevisionRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Revision is its number; 0: the newest.
	Revision int64 `json:"revision,omitempty"`
}

// RolloutWave is a part of the devices: those that a selector picks, or a number of them, or a
// share of all, of those that no wave before it has.
type RolloutWave struct {
	Name     string    `json:"name,omitempty"`
	Devices  int       `json:"devices,omitempty"`
	Percent  float64   `json:"percent,omitempty"`
	Selector *Selector `json:"selector,omitempty"`
	// Approve has the rollout wait for a person after this wave: a canary.
	Approve bool `json:"approve,omitempty"`
	// Pause is how long it waits after this wave by itself.
	Pause Duration `json:"pause,omitempty"`
}

// RolloutHealth says when a device counts as healthy: what was given to it is in force, its app
// runs, its release is confirmed, and no warning has come since.
type RolloutHealth struct {
	// Soak is how long it has to be so without a break. Default 1m.
	Soak Duration `json:"soak,omitempty"`
	// Timeout is how long a device may take until then. Default 10m, of a release 1h.
	Timeout Duration `json:"timeout,omitempty"`
	// Warnings of at least this severity that came since it was given: info, degraded, critical
	// (the default), or none of them: off.
	Warnings string `json:"warnings,omitempty"`
	// Absent are the names of warnings that it may not have at all.
	Absent []string `json:"absent,omitempty"`
}

// WarningsOff has warnings count for nothing.
const WarningsOff = "off"

// Amount is a number of devices, or a share of them. Without both it is none.
type Amount struct {
	Devices int     `json:"devices,omitempty"`
	Percent float64 `json:"percent,omitempty"`
}

// AtLeast is how many of n devices are meant at least: a share is rounded up.
func (a Amount) AtLeast(n int) int {
	if a.Percent > 0 {
		whole := int(a.Percent * float64(n) / 100)
		if float64(whole)*100 < a.Percent*float64(n) {
			whole++
		}
		return min(whole, n)
	}
	return min(a.Devices, n)
}

// AtMost is how many of n devices are meant at most: a share is rounded down.
func (a Amount) AtMost(n int) int {
	if a.Percent > 0 {
		return min(int(a.Percent*float64(n)/100), n)
	}
	return min(a.Devices, n)
}

// RolloutPhase is the life of a rollout.
type RolloutPhase string

// The phases. A rollout is on its way in Queued, Running, Waiting, Paused and RollingBack; in the
// others it has ended, and Complete and RolledBack still bring up those that were away.
const (
	RolloutQueued      RolloutPhase = "Queued"      // another has what it changes
	RolloutRunning     RolloutPhase = "Running"     // devices are given the change
	RolloutWaiting     RolloutPhase = "Waiting"     // for an approval, or for a pause to end
	RolloutPaused      RolloutPhase = "Paused"      // by a person, or by what went wrong
	RolloutComplete    RolloutPhase = "Complete"    // all that are there have it
	RolloutRollingBack RolloutPhase = "RollingBack" // what was touched goes back
	RolloutRolledBack  RolloutPhase = "RolledBack"
	RolloutAborted     RolloutPhase = "Aborted" // by a person; what was given stays
	RolloutExpired     RolloutPhase = "Expired" // its time was over before all had it
)

// Ended tells whether a rollout lets others have what it changes.
func (p RolloutPhase) Ended() bool {
	switch p {
	case RolloutComplete, RolloutRolledBack, RolloutAborted, RolloutExpired:
		return true
	}
	return false
}

// The defaults of a rollout.
const (
	defaultSoak           = time.Minute
	defaultTimeout        = 10 * time.Minute
	defaultReleaseTimeout = time.Hour
)

// Least is how many of the devices that a wave reached have to be healthy.
func (s *RolloutSpec) Least() Amount {
	if s.MinHealthy != nil {
		return *s.MinHealthy
	}
	return Amount{Percent: 90}
}

// Soak is how long a device has to be healthy.
func (s *RolloutSpec) Soak() time.Duration {
	if s.Health != nil && s.Health.Soak > 0 {
		return time.Duration(s.Health.Soak)
	}
	return defaultSoak
}

// Timeout is how long a device may take to be healthy.
func (s *RolloutSpec) Timeout() time.Duration {
	if s.Health != nil && s.Health.Timeout > 0 {
		return time.Duration(s.Health.Timeout)
	}
	for _, c := range s.Change {
		if c.Kind == KindRelease || c.Kind == KindFleet {
			return defaultReleaseTimeout
		}
	}
	return defaultTimeout
}

// Disrupts tells whether what a device does to take the change interrupts what runs on it.
// Configs and secrets reach running containers.
func (s *RolloutSpec) Disrupts() bool {
	for _, c := range s.Change {
		if c.Kind != KindConfig && c.Kind != KindSecret {
			return true
		}
	}
	return false
}

// revisioned are the kinds whose changes reach devices by rollouts.
var revisioned = []string{KindConfig, KindSecret, KindApp, KindRelease, KindFlowPolicy, KindFleet, KindNetworkPolicy}

// HasRevisions tells whether each change of an object of this kind is kept as a revision, and
// reaches devices by a rollout alone.
func HasRevisions(kind string) bool { return slices.Contains(revisioned, kind) }

// Pin names a revision of another object that a revision was made with.
type Pin struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
	Digest   string `json:"digest"`
}

// Permit lets a device take one item of its manifest over what runs. It is signed with the
// manifest that it stands in.
type Permit struct {
	// Rollout is the name of the Rollout that gave it.
	Rollout string `json:"rollout" cbor:"1,keyasint"`
	// Until is when the device has to have begun, in Unix seconds; 0: there is no end.
	Until int64 `json:"until,omitempty" cbor:"2,keyasint,omitempty"`
	// Hours are when it may begin.
	Hours Hours `json:"hours,omitempty" cbor:"3,keyasint,omitempty"`
}

// Open tells whether a device may begin at a time, and if not, why.
func (p Permit) Open(now time.Time) (ok bool, why string) {
	switch {
	case p.Until != 0 && now.Unix() >= p.Until:
		return false, "the permit of rollout " + p.Rollout + " has ended"
	case !p.Hours.Contain(now):
		return false, "it waits for the hours " + string(p.Hours) + " of rollout " + p.Rollout
	}
	return true, ""
}

// RolloutStatus is how far a rollout is.
type RolloutStatus struct {
	Phase RolloutPhase `json:"phase,omitempty"`
	// Change is what it gives, settled: with what was given to all before.
	Change []RolloutChange `json:"change,omitempty"`
	// Wave is the number of the one under way, from 1; past the last, all are through.
	Wave      int        `json:"wave,omitempty"`
	WaveSince *time.Time `json:"waveSince,omitempty"`
	// Approved is up to which wave people said yes.
	Approved int           `json:"approved,omitempty"`
	Message  string        `json:"message,omitempty"`
	Waves    []WaveStatus  `json:"waves,omitempty"`
	Devices  RolloutCounts `json:"devices"`
	// Unhappy names the first devices that failed, were left out or were left as they are, and why.
	Unhappy []RolloutDevice `json:"unhappy,omitempty"`
	Started *time.Time      `json:"started,omitempty"`
	Ended   *time.Time      `json:"ended,omitempty"`
	// Estimate is when all that are there may have it, by how it went so far.
	Estimate *time.Time `json:"estimate,omitempty"`
}

// RolloutChange is one object of a rollout.
type RolloutChange struct {
	RevisionRef
	Digest string `json:"digest,omitempty"`
	// Before was given to all when the rollout was made; 0: nothing.
	Before int64 `json:"before,omitempty"`
	// PinnedBy is what it comes along with; empty: it is named in the spec.
	PinnedBy string `json:"pinnedBy,omitempty"`
}

// WaveStatus sums up a wave.
type WaveStatus struct {
	Name string `json:"name,omitempty"`
	RolloutCounts
}

// RolloutCounts are numbers of devices.
type RolloutCounts struct {
	All       int `json:"all"`
	Waiting   int `json:"waiting,omitempty"` // those that are away among them
	Away      int `json:"away,omitempty"`
	Given     int `json:"given,omitempty"`
	Healthy   int `json:"healthy,omitempty"`
	Failed    int `json:"failed,omitempty"`
	Skipped   int `json:"skipped,omitempty"`
	Restoring int `json:"restoring,omitempty"`
	Restored  int `json:"restored,omitempty"`
	Kept      int `json:"kept,omitempty"`
}

// RolloutDevice is one device of a rollout.
type RolloutDevice struct {
	Name  string     `json:"name"`
	Site  string     `json:"site,omitempty"`
	Wave  int        `json:"wave"` // from 1
	State string     `json:"state"`
	Since *time.Time `json:"since,omitempty"`
	Why   string     `json:"why,omitempty"`
}

// RolloutPlan is what a rollout would do, before it does anything.
type RolloutPlan struct {
	Change []RolloutChange `json:"change"`
	// Waits names another rollout that it would wait for; empty when it would begin at once.
	Waits string     `json:"waits,omitempty"`
	Waves []PlanWave `json:"waves"`
	// Refused are devices that would not get it, and why.
	Refused []RolloutDevice `json:"refused,omitempty"`
	// Links are the ways over which artifacts would go: a digest crosses each of them once.
	Links []PlanLink `json:"links,omitempty"`
}

// PlanWave is one wave of a plan.
type PlanWave struct {
	Name    string   `json:"name,omitempty"`
	Approve bool     `json:"approve,omitempty"`
	Pause   Duration `json:"pause,omitempty"`
	Devices []string `json:"devices"`
	// Away counts those that are not heard of now.
	Away int `json:"away,omitempty"`
}

// PlanLink is what would cross the link between a device and its parent.
type PlanLink struct {
	Parent    string `json:"parent"` // a device's name, or core
	Child     string `json:"child"`
	Artifacts int    `json:"artifacts"`
	Bytes     int64  `json:"bytes"`
}

// RevisionHistory is what became of one object.
type RevisionHistory struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Given is the revision that all devices have that have none of their own; 0: none.
	Given int64 `json:"given"`
	// Next is the newest.
	Newest    int64           `json:"newest"`
	Revisions []RevisionEntry `json:"revisions"`
	Turns     []RevisionTurn  `json:"turns"`
}

// RevisionEntry is one revision.
type RevisionEntry struct {
	Revision int64      `json:"revision"`
	Digest   string     `json:"digest"`
	Pins     []Pin      `json:"pins,omitempty"`
	Created  time.Time  `json:"created"`
	Revoked  *time.Time `json:"revoked,omitempty"`
	// Devices counts those that have it of their own.
	Devices int `json:"devices,omitempty"`
}

// RevisionTurn is one time that all devices were given a revision.
type RevisionTurn struct {
	Revision int64 `json:"revision"`
	Before   int64 `json:"before,omitempty"`
	// Rollout is by which; empty: by an apply.
	Rollout string    `json:"rollout,omitempty"`
	Time    time.Time `json:"time"`
}
