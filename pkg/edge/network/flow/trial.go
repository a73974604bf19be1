package flow

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Policies that hold are those of the core, unless they took the box away from it: then those
// hold that worked before.

// Phase is how far policies have been tried.
type Phase string

// The phases: other policies are on trial until the parent was reached for a while with them; when it
// was not, those before hold again, and when it is then, the new ones are guilty; when it is not either,
// they are innocent and hold.
const (
	Kept     Phase = ""
	OnTrial  Phase = "on trial"
	Reverted Phase = "reverted"
	Guilty   Phase = "guilty"
	Innocent Phase = "innocent"
)

// Tried is how policies stand. It is a plain value.
type Tried struct {
	// Good are those that worked last, Wanted those of the core.
	Good   json.RawMessage `json:"good,omitempty"`
	Wanted json.RawMessage `json:"wanted,omitempty"`
	Phase  Phase           `json:"phase,omitempty"`
	// Silent is how long the parent was out of reach in this phase, Well how long within reach.
	Silent time.Duration `json:"silent,omitempty"`
	Well   time.Duration `json:"well,omitempty"`
}

// Times of trials: those of network settings (package trial).
const (
	silence = 5 * time.Minute
	proof   = 30 * time.Second
)

// Want says what the core wants now.
func (t Tried) Want(policies json.RawMessage) Tried {
	switch {
	case string(policies) == string(t.Wanted):
		return t
	case string(policies) == string(t.Good):
		return Tried{Good: t.Good, Wanted: policies}
	}
	return Tried{Good: t.Good, Wanted: policies, Phase: OnTrial}
}

// Tick hears whether the parent was reached in the time that passed.
func (t Tried) Tick(passed time.Duration, reached bool) Tried {
	if t.Phase == Kept || t.Phase == Guilty {
		return t
	}
	passed = min(max(passed, 0), proof) // a clock that was set, a box that slept
	if reached {
		t.Silent, t.Well = 0, t.Well+passed
	} else {
		t.Silent, t.Well = t.Silent+passed, 0
	}
	switch {
	case t.Well >= proof && t.Phase == Reverted:
		return Tried{Good: t.Good, Wanted: t.Wanted, Phase: Guilty}
	case t.Well >= proof:
		return Tried{Good: t.Wanted, Wanted: t.Wanted}
	case t.Silent >= silence && t.Phase == OnTrial: // check: silence
		return Tried{Good: t.Good, Wanted: t.Wanted, Phase: Reverted}
	case t.Silent >= silence && t.Phase == Reverted:
		return Tried{Good: t.Good, Wanted: t.Wanted, Phase: Innocent}
	}
	return t
}

// InForce are the policies that hold.
func (t Tried) InForce() json.RawMessage {
	if t.Phase == Reverted || t.Phase == Guilty {
		return t.Good
	}
	return t.Wanted
}

// TrialConfig says what a Trial works with.
type TrialConfig struct {
	// Set puts policies in force: Keeper.Set.
	Set func(map[string]api.FlowPolicySpec)
	// Reached tells whether the parent is.
	Reached func(context.Context) bool
	Notes   Notes
	// Every is the time between two looks while something is on trial; 5 s by default.
	Every time.Duration
	Now   func() time.Time
	Log   *slog.Logger
}

// Trial puts policies in force like slots: those with which the box loses its parent are taken
// back. Its methods may be called from any goroutine.
type Trial struct {
	cfg  TrialConfig
	poke chan struct{}

	mu    sync.Mutex
	t     Tried
	since time.Time // of the phase
}

// NewTrial reads how trials stood; what cannot be read is dropped with a word in the log.
func NewTrial(cfg TrialConfig) *Trial {
	cfg.Every = cmp.Or(cfg.Every, 5*time.Second)
	t := &Trial{cfg: cfg, poke: make(chan struct{}, 1), since: cfg.Now()}
	raw, err := cfg.Notes.Load()
	if err == nil && raw != nil {
		err = json.Unmarshal(raw, &t.t)
	}
	if err != nil {
		cfg.Log.Warn("how flow policies were tried is not known", "err", err)
		t.t = Tried{}
	}
	return t
}

// Set says what the core wants, at each start of the agent too. It returns at once.
func (t *Trial) Set(policies map[string]api.FlowPolicySpec) {
	raw, err := json.Marshal(policies)
	if err != nil { // they came in a form like it
		t.cfg.Log.Warn("flow policies cannot be tried", "err", err)
		t.cfg.Set(policies)
		return
	}
	if len(policies) == 0 {
		raw = nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.become(t.t.Want(raw))
	t.enforce()
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

// become takes the next state on, and writes it down where it is another: t.mu is held. What is lost by a
// power cut is half a minute of silence.
func (t *Trial) become(next Tried) (other bool) {
	was := t.t
	t.t = next
	other = was.Phase != next.Phase || string(was.Wanted) != string(next.Wanted)
	if other {
		t.since = t.cfg.Now()
		t.cfg.Log.Info("flow policies", "digest", digest(next.Wanted), "phase", cmp.Or(next.Phase, "kept"))
	}
	if !other && was.Silent/proof == next.Silent/proof {
		return other
	}
	raw, err := json.Marshal(next)
	if err == nil {
		err = t.cfg.Notes.Save(raw)
	}
	if err != nil {
		t.cfg.Log.Warn("how flow policies are tried is not kept", "err", err)
	}
	return other
}

func digest(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:6])
}

// enforce puts in force what holds: t.mu is held.
func (t *Trial) enforce() {
	policies := map[string]api.FlowPolicySpec{}
	if raw := t.t.InForce(); raw != nil {
		if err := json.Unmarshal(raw, &policies); err != nil {
			t.cfg.Log.Warn("flow policies that worked cannot be read", "err", err)
			return
		}
	}
	t.cfg.Set(policies)
}

// Run looks after what is on trial until ctx ends.
//
// Reads: whether the parent is reached. Writes: the policies in force, how they were tried.
func (t *Trial) Run(ctx context.Context) error {
	for last := t.cfg.Now(); ; {
		t.mu.Lock()
		idle := t.t.Phase == Kept || t.t.Phase == Guilty
		t.mu.Unlock()
		var tick <-chan time.Time
		if !idle {
			tick = time.After(t.cfg.Every)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.poke:
			if idle {
				last = t.cfg.Now()
			}
			continue
		case <-tick:
		}
		now := t.cfg.Now()
		reached := t.cfg.Reached(ctx)
		t.mu.Lock()
		if t.become(t.t.Tick(now.Sub(last), reached)) {
			t.enforce()
		}
		t.mu.Unlock()
		last = now
	}
}

// Warnings is flow-reverted, where policies do not hold that the core wants.
func (t *Trial) Warnings() []api.Warning {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.t.Phase != Reverted && t.t.Phase != Guilty {
		return nil
	}
	return []api.Warning{{Name: "flow-reverted", Severity: api.Degraded, Since: t.since.Unix(),
		Message: "with the newest flow policies the parent was not reached for five minutes: those before them hold",
		Remedy:  "mend the policy that takes the box's own traffic at its uplink; another form of it is tried anew"}}
}
