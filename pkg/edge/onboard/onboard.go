// Package onboard answers: how does a box that knows only a parent's address and a
// join token become a member of the tree, and stay one?
//
// Enrolment is repeated until it succeeds: the parent may not be there yet, the token
// may be made after the box is plugged in. What is received is saved before it is
// used. Renewal begins at two thirds of the certificate's life and is repeated until
// it succeeds, also after the certificate has expired.
package onboard

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Config is what onboarding needs.
type Config struct {
	// Dir is the identity folder.
	Dir string
	// Parents lists the HTTPS roots to try, best first; it is asked before each attempt.
	Parents func() []string
	// Token is the join token's text; asked before each attempt, so that it may be put
	// in place later.
	Token func() (string, error)
	// Describe tells what the core shall know of the box: name wished for, hardware,
	// labels, whether it is a relay, addresses.
	Describe func() identity.EnrolConfig
	// Now never goes below the persisted floor; Raise lifts that floor to the core's
	// time. Both required.
	Now   func() time.Time
	Raise func(time.Time) error
	Pace  Pace
	Log   *slog.Logger
}

// Pace bounds the pauses between attempts; zero means 1 s and 1 min.
type Pace struct{ Min, Max time.Duration }

// pause is the wait after so many failures in a row: doubled each time, of which up to
// a half is taken off by chance (r in [0, 1)).
func (p Pace) pause(failures int, r float64) time.Duration {
	lo, hi := p.Min, p.Max
	if lo <= 0 {
		lo = time.Second
	}
	if hi < lo {
		hi = max(lo, time.Minute)
	}
	d := hi
	if shift := max(failures-1, 0); shift < 30 && lo<<shift>>shift == lo {
		d = min(hi, lo<<shift)
	}
	return d - time.Duration(r*float64(d)/2)
}

// Member is a box that has enrolled.
type Member struct {
	Live *identity.Live

	cfg   Config
	mu    sync.Mutex
	warn  *api.Warning
	early chan struct{}
}

// Join loads the identity, or enrols until that succeeds or ctx ends. It writes the
// identity folder.
func Join(ctx context.Context, cfg Config) (*Member, error) {
	i, err := identity.Load(cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		i, err = enrol(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	i.Now = cfg.Now
	return &Member{Live: identity.NewLive(i), cfg: cfg, early: make(chan struct{}, 1)}, nil
}

func enrol(ctx context.Context, cfg Config) (*identity.Identity, error) {
	key, seal, err := identity.LoadOrCreateKeys(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Log.Info("enrolling", "device", identity.KeyID(&key.PublicKey))
	var said string
	for failures := 1; ; failures++ {
		request := cfg.Describe()
		request.Key, request.Seal = key, seal
		i, err := enrolOnce(ctx, cfg, request)
		if err == nil {
			return i, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		wait := cfg.Pace.pause(failures, rand.Float64())
		if said != err.Error() { // one line for each new reason
			said = err.Error()
			cfg.Log.Warn("not enrolled yet", "err", err, "retry", wait.Round(time.Millisecond))
		}
		if !sleep(ctx, wait) {
			return nil, ctx.Err()
		}
	}
}

func enrolOnce(ctx context.Context, cfg Config, request identity.EnrolConfig) (*identity.Identity, error) {
	text, err := cfg.Token()
	if err != nil {
		return nil, err
	}
	if request.Token, err = identity.ParseJoinToken(text); err != nil {
		return nil, err
	}
	err = &api.Error{Code: api.Invalid, Message: "no parent is known", Remedy: "pass --parent"}
	for _, u := range cfg.Parents() {
		request.ParentURL = u
		var i *identity.Identity
		var reply *identity.EnrolReply
		if i, reply, err = identity.Enrol(ctx, request); err != nil {
			continue
		}
		if err = errors.Join(i.Save(cfg.Dir), cfg.Raise(time.Unix(reply.Time, 0))); err != nil {
			return nil, err
		}
		cfg.Log.Info("enrolled", "device", i.ID(), "name", reply.Name, "tenant", reply.Tenant, "approved", reply.Approved, "expires", i.Expires().UTC())
		if !reply.Approved {
			cfg.Log.Info("waiting for approval", "remedy", "edgectl device approve "+reply.Name)
		}
		return i, nil
	}
	return nil, err
}

// sleep waits; it reports false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// RenewSoon asks for a renewal now: the trust that is held lacks a signer that the core
// uses. Several calls fold into one; renewals so asked for are at least a minute apart.
func (m *Member) RenewSoon() {
	select {
	case m.early <- struct{}{}:
	default:
	}
}

// Warnings are certificate-expiring (renewal fails) and certificate-expired.
func (m *Member) Warnings() []api.Warning {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.warn == nil {
		return nil
	}
	return []api.Warning{*m.warn}
}

// due says how long to wait for the next renewal, by the certificate alone.
func due(i *identity.Identity, now time.Time) time.Duration {
	return min(max(i.RenewAt().Sub(now), 0), time.Hour)
}

// finding is the warning that fits a renewal that failed.
func finding(i *identity.Identity, now time.Time, err error) *api.Warning {
	if err == nil || now.Before(i.RenewAt()) {
		return nil
	}
	w := &api.Warning{Name: "certificate-expiring", Severity: api.Degraded, Since: i.RenewAt().Unix(),
		Message: "the certificate ends on " + i.Expires().UTC().Format(time.DateOnly) + " and cannot be renewed: " + err.Error()}
	if now.After(i.Expires()) {
		w.Name, w.Severity = "certificate-expired", api.Critical
	}
	return w
}

// Run renews until ctx ends. It reads the identity and the parents, and writes the
// identity, its folder, and the clock's floor.
func (m *Member) Run(ctx context.Context) error {
	failures := 0
	for {
		i := m.Live.Get()
		wait := due(i, m.cfg.Now())
		if failures > 0 {
			wait = m.cfg.Pace.pause(failures, rand.Float64())
		}
		asked, ok := m.wait(ctx, wait)
		if !ok {
			return nil
		}
		if failures == 0 && !asked && m.cfg.Now().Before(i.RenewAt()) {
			continue
		}
		err := m.renew(ctx, i)
		m.mu.Lock()
		m.warn = finding(i, m.cfg.Now(), err)
		m.mu.Unlock()
		if err != nil {
			failures++
			m.cfg.Log.Warn("certificate not renewed", "err", err)
			continue
		}
		failures = 0
		if !sleep(ctx, askedPause) {
			return nil
		}
	}
}

// askedPause is the least time between renewals that are asked for.
const askedPause = time.Minute

// wait sleeps until d is over or a renewal is asked for; ok is false when ctx ended.
func (m *Member) wait(ctx context.Context, d time.Duration) (asked, ok bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-t.C:
		return false, true
	case <-m.early:
		return true, true
	}
}

func (m *Member) renew(ctx context.Context, old *identity.Identity) error {
	err := error(api.Errorf(api.Unavailable, "no parent is known"))
	for _, u := range m.cfg.Parents() {
		var i *identity.Identity
		var reply *identity.EnrolReply
		if i, reply, err = identity.Renew(ctx, identity.RenewConfig{ParentURL: u, Identity: old}); err != nil {
			continue
		}
		i.Now = m.cfg.Now
		if err = errors.Join(i.Save(m.cfg.Dir), m.cfg.Raise(time.Unix(reply.Time, 0))); err != nil {
			return err
		}
		m.Live.Set(i)
		m.cfg.Log.Info("certificate renewed", "expires", i.Expires().UTC())
		return nil
	}
	return err
}
