// Package simfleet answers: what does a rollout do to a fleet of which much fails, over days?
//
// It plays the decisions of package rollout on simulated devices in virtual time, and says at
// which moment a promise was broken: the budget of a site, one relay of a site at most, no going
// to and fro, and what a rollback leaves behind.
package simfleet

import (
	"fmt"
	"math/rand/v2"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/rollout"
)

// Config is a fleet and what goes wrong in it. The shares are of 1.
type Config struct {
	Spec    api.RolloutSpec
	Devices int
	PerSite int // devices of a site, the first of which is a relay, and so is the second
	SiteMax int // the site's budget
	Total   int // the whole budget
	Seed    uint64
	// Breaks tell that they cannot, Hangs never tell, Flaps are well and unwell in turn; Away leave
	// and come back, Gone leave for good, Meddled are given something else by somebody.
	Breaks, Hangs, Flaps, Away, Gone, Meddled float64
	// Orders are given when the rollout waits or is paused: one each time, then abort.
	Orders []string
	Tick   time.Duration
	// Limit is when the play ends, whatever happens.
	Limit time.Duration
}

// Result is how it went.
type Result struct {
	Phase   api.RolloutPhase
	Took    time.Duration // of virtual time
	Looks   int
	Counts  map[rollout.State]int
	Stopped []string // why it paused or turned around
}

type fate int

const (
	good fate = iota
	breaks
	hangs
	flaps
)

// box is one simulated device.
type box struct {
	kept    rollout.Device // what the decision wants kept
	fate    fate
	lasts   time.Duration // how long it takes to change
	away    time.Time     // it leaves then
	back    time.Time
	meddled time.Time // somebody gives it something else then; zero: nobody does

	manifest string // what it shall run
	until    time.Time
	runs     string
	busy     time.Time // it changes until then
	restored bool
	other    bool
}

const (
	before = "before"
	after  = "after"
	other  = "other"
)

// play is a fleet that is on its way.
type play struct {
	cfg   Config
	rng   *rand.Rand
	start time.Time
	now   time.Time
	boxes []box
	byID  map[string]int
	p     rollout.Progress
	res   Result
}

// Run plays a rollout to its end. An error names a promise that was broken, and when.
func Run(cfg Config) (Result, error) {
	s := &play{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), start: time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC), byID: map[string]int{}}
	s.now = s.start
	s.make()
	s.p = rollout.Progress{Phase: api.RolloutRunning, WaveSince: s.now}
	for {
		s.live()
		if err := s.look(); err != nil {
			return s.res, fmt.Errorf("after %s: %w", s.now.Sub(s.start), err)
		}
		if s.ended() {
			break
		}
		s.order()
		if s.now = s.now.Add(cfg.Tick); s.now.Sub(s.start) > cfg.Limit {
			return s.res, fmt.Errorf("it did not end within %s: %s, %s", cfg.Limit, s.p.Phase, s.p.Message)
		}
	}
	s.res.Phase, s.res.Took, s.res.Counts = s.p.Phase, s.now.Sub(s.start), map[rollout.State]int{}
	for i := range s.boxes {
		s.res.Counts[s.boxes[i].kept.State]++
	}
	return s.res, s.left()
}

func (s *play) make() {
	var list []rollout.Candidate
	for i := range s.cfg.Devices {
		site := ""
		if s.cfg.PerSite > 0 {
			site = fmt.Sprintf("site-%d", i/s.cfg.PerSite)
		}
		labels := map[string]string{"ring": []string{"early", "late"}[i%2]}
		list = append(list, rollout.Candidate{ID: fmt.Sprintf("d%05d", i), Site: site, Labels: labels})
	}
	waves := rollout.Assign(&s.cfg.Spec, fmt.Sprint(s.cfg.Seed), list)
	s.boxes = make([]box, len(list))
	for i, c := range list {
		b := &s.boxes[i]
		b.kept = rollout.Device{ID: c.ID, Name: c.ID, Site: c.Site, Relay: s.cfg.PerSite > 0 && i%s.cfg.PerSite < 2, Wave: waves[c.ID], State: rollout.Waiting, Since: s.now}
		b.manifest, b.runs = before, before
		b.lasts = time.Duration(10+s.rng.IntN(80)) * time.Second
		switch x := s.rng.Float64(); {
		case x < s.cfg.Breaks:
			b.fate = breaks
		case x < s.cfg.Breaks+s.cfg.Hangs:
			b.fate = hangs
		case x < s.cfg.Breaks+s.cfg.Hangs+s.cfg.Flaps:
			b.fate = flaps
		}
		when := s.now.Add(time.Duration(s.rng.Int64N(int64(4 * time.Hour))))
		switch x := s.rng.Float64(); {
		case x < s.cfg.Gone:
			b.away, b.back = when, s.now.Add(1e6*time.Hour)
		case x < s.cfg.Gone+s.cfg.Away:
			b.away, b.back = when, when.Add(time.Duration(1+s.rng.Int64N(int64(3*time.Hour))))
		}
		if s.rng.Float64() < s.cfg.Meddled {
			b.meddled = s.now.Add(time.Duration(s.rng.Int64N(int64(4 * time.Hour))))
		}
		s.byID[c.ID] = i
	}
}

func (b *box) online(now time.Time) bool {
	return now.Before(b.away) || !now.Before(b.back) || b.away.IsZero()
}

// live lets the devices do what they do by themselves.
func (s *play) live() {
	for i := range s.boxes {
		b := &s.boxes[i]
		if !b.meddled.IsZero() && !s.now.Before(b.meddled) && !b.other {
			b.other, b.manifest, b.runs, b.busy = true, other, other, time.Time{}
		}
		if b.runs != b.manifest && s.now.Before(b.until) && b.busy.IsZero() && (b.online(s.now) || b.runs != b.manifest) {
			b.busy, b.runs = s.now.Add(b.lasts), b.manifest // it has the manifest, and begins while its permit lasts
		}
		if !b.busy.IsZero() && !s.now.Before(b.busy) {
			b.busy = time.Time{}
		}
	}
}

func (b *box) health(now time.Time) (rollout.Health, string) {
	if b.runs != b.manifest || !b.busy.IsZero() {
		return rollout.Unknown, "it changes"
	}
	if b.runs != after {
		return rollout.Well, ""
	}
	switch b.fate {
	case breaks:
		return rollout.Broken, "the app fails"
	case hangs:
		return rollout.Unknown, "the app starts"
	case flaps:
		if now.Unix()/60%2 == 0 {
			return rollout.Unknown, "the app starts"
		}
	}
	return rollout.Well, ""
}

// look is one decision, carried out.
func (s *play) look() error {
	devices := make([]rollout.Device, len(s.boxes))
	budget := rollout.Budget{Left: s.cfg.Total, Sites: map[string]rollout.Site{}}
	for i := range s.boxes {
		b := &s.boxes[i]
		d := b.kept
		d.Online = b.online(s.now)
		d.Health, d.Told = b.health(s.now)
		if b.other {
			d.Changed = "somebody gave it something else"
		}
		devices[i] = d
		if d.Site != "" {
			site := budget.Sites[d.Site]
			site.Max = s.cfg.SiteMax
			if d.Slot {
				site.Taken++
				budget.Left--
				if d.Relay {
					site.Relays++
				}
			}
			budget.Sites[d.Site] = site
		} else if d.Slot {
			budget.Left--
		}
	}
	s.res.Looks++
	was := s.p
	var steps []rollout.Step
	s.p, steps = rollout.Decide(&s.cfg.Spec, s.p, devices, budget, s.now)
	if s.p.Phase != was.Phase && (s.p.Phase == api.RolloutPaused || s.p.Phase == api.RolloutRollingBack) {
		s.res.Stopped = append(s.res.Stopped, s.p.Message)
	}
	for _, step := range steps {
		if err := s.carryOut(step); err != nil {
			return err
		}
	}
	return s.promises()
}

func (s *play) carryOut(step rollout.Step) error {
	b := &s.boxes[s.byID[step.Device.ID]]
	kept := step.Device
	kept.Online, kept.Health, kept.Told, kept.Changed = false, 0, "", ""
	b.kept = kept
	switch step.Do {
	case rollout.Give:
		if b.restored {
			return fmt.Errorf("%s is given what it was rolled back from", kept.ID)
		}
		if b.other {
			return fmt.Errorf("%s is given the change over what somebody else gave it", kept.ID)
		}
		b.manifest, b.until = after, kept.Until
	case rollout.Restore:
		if !kept.Touched || b.other {
			return fmt.Errorf("%s is restored, and was not touched or was changed since", kept.ID)
		}
		b.manifest, b.until, b.restored = before, kept.Until, true
	}
	return nil
}

// promises are kept at every moment.
func (s *play) promises() error {
	type site struct{ slots, busy, relays int }
	sites, total := make([]site, len(s.boxes)/max(s.cfg.PerSite, 1)+1), 0
	for i := range s.boxes {
		b := &s.boxes[i]
		at := &sites[i/max(s.cfg.PerSite, 1)]
		if !b.busy.IsZero() && !b.other && s.cfg.Spec.Disrupts() {
			at.busy++
		}
		if b.kept.Slot {
			total++
			at.slots++
			if b.kept.Relay {
				at.relays++
			}
		}
		if under := b.kept.State == rollout.Given || b.kept.State == rollout.Restoring; s.cfg.Spec.Disrupts() && under != b.kept.Slot {
			return fmt.Errorf("%s is %s, and whether it has a place is %v", b.kept.ID, b.kept.State, b.kept.Slot)
		}
	}
	if total > s.cfg.Total {
		return fmt.Errorf("%d devices are interrupted at once; %d may be", total, s.cfg.Total)
	}
	for n, at := range sites {
		if at.slots > s.cfg.SiteMax || at.busy > s.cfg.SiteMax || at.relays > 1 {
			return fmt.Errorf("site %d: %d places, %d devices and %d relays at once; %d may be", n, at.slots, at.busy, at.relays, s.cfg.SiteMax)
		}
	}
	return nil
}

// ended tells that nothing can happen any more but the return of devices that never come.
func (s *play) ended() bool {
	if !s.p.Phase.Ended() {
		return false
	}
	all, failed := 0, 0
	for i := range s.boxes {
		if s.boxes[i].kept.State != rollout.Skipped {
			all++
		}
		if s.boxes[i].kept.State == rollout.Failed {
			failed++
		}
	}
	may := 0
	if s.cfg.Spec.MaxFailures != nil {
		may = s.cfg.Spec.MaxFailures.AtMost(all)
	}
	for i := range s.boxes {
		b := &s.boxes[i]
		gone := !b.away.IsZero() && b.back.Sub(s.start) > s.cfg.Limit && !b.online(s.now)
		switch {
		case b.kept.State == rollout.Given || b.kept.State == rollout.Restoring:
			return false
		case b.kept.State == rollout.Waiting && !gone && s.p.Phase == api.RolloutComplete && failed <= may:
			return false
		case b.kept.Touched && b.kept.State == rollout.Waiting && !gone && s.p.Phase == api.RolloutRolledBack:
			return false
		}
	}
	return true
}

// order has a person act where the rollout waits for one.
func (s *play) order() {
	if s.p.Phase != api.RolloutPaused && (s.p.Phase != api.RolloutWaiting || !rollout.WaveOf(&s.cfg.Spec, s.p.Wave-1).Approve || s.p.Approved >= s.p.Wave) {
		return
	}
	order := rollout.Abort
	if s.p.Phase == api.RolloutWaiting {
		order = rollout.Approve
	} else if len(s.cfg.Orders) > 0 {
		order, s.cfg.Orders = s.cfg.Orders[0], s.cfg.Orders[1:]
	}
	devices := make([]rollout.Device, len(s.boxes))
	for i := range s.boxes {
		devices[i] = s.boxes[i].kept
	}
	p, steps, err := rollout.Order(&s.cfg.Spec, s.p, devices, order, s.now)
	if err != nil {
		return
	}
	s.p = p
	for _, step := range steps {
		s.boxes[s.byID[step.Device.ID]].kept = step.Device
	}
}

// left tells whether everything is at the end as it must be.
func (s *play) left() error {
	for i := range s.boxes {
		b := &s.boxes[i]
		switch {
		case b.other:
			if b.manifest != other {
				return fmt.Errorf("%s lost what somebody else gave it", b.kept.ID)
			}
		case b.kept.State == rollout.Healthy && b.manifest != after:
			return fmt.Errorf("%s counts as healthy and has %s", b.kept.ID, b.manifest)
		case s.p.Phase == api.RolloutRolledBack && b.manifest != before && b.kept.State != rollout.Waiting:
			return fmt.Errorf("%s is %s after a rollback, and has %s", b.kept.ID, b.kept.State, b.manifest)
		case !b.kept.Touched && b.manifest != before:
			return fmt.Errorf("%s was never touched and has %s", b.kept.ID, b.manifest)
		}
	}
	return nil
}

// Large is a rollout to 10,000 devices at 200 sites of which one in twenty has trouble.
func Large(seed uint64) Config {
	return Config{Devices: 10_000, PerSite: 50, SiteMax: 5, Total: 500, Seed: seed, Breaks: 0.005, Hangs: 0.005, Flaps: 0.005, Away: 0.03, Gone: 0.005, Meddled: 0.002,
		Orders: []string{rollout.Promote, rollout.Promote, rollout.Promote}, Tick: 15 * time.Second, Limit: 10 * 24 * time.Hour,
		Spec: api.RolloutSpec{Change: []api.RevisionRef{{Kind: api.KindApp, Name: "web", Revision: 2}}, MaxFailures: &api.Amount{Percent: 5}, OnFailure: api.FailureRollback,
			Waves: []api.RolloutWave{{Devices: 5, Approve: true}, {Percent: 1}, {Percent: 10, Pause: api.Duration(10 * time.Minute)}, {Percent: 100}}}}
}
