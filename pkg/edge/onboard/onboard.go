// Package onboard answers: how does a box that knows only a parent's address and a
// join token become a member of the tree, and stay one?
//
// Enrolment is repeated until it succeeds: the parent may not be there yet, the token
// may be made after the box is plugged in. A token that nobody could use is not tried
// again but waited for until it is another; one that cannot change ends it. What is
// received is saved before it is used. Renewal begins at two thirds of the certificate's life and is repeated until
// it succeeds, also after the certificate has expired.
package onboard

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/rest"
)

// Config is what onboarding needs.
type Config struct {
	// Dir is the identity folder.
	Dir string
	// Parents lists the HTTPS roots to try, best first; it is asked before each attempt.
	Parents func() []string
	// Token is the join token. It is asked before each attempt and every Pace.Min between
	// them, since it may be put in place or replaced later; it must be cheap. An error of
	// code api.Invalid says that it will never give one, and ends Join.
	Token func() (identity.JoinToken, error)
	// Waiting is told why the box is not enrolled yet. Optional.
	Waiting func(error)
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
	lo, hi := p.bounds()
	d := hi
	if shift := max(failures-1, 0); shift < 30 && lo<<shift>>shift == lo {
		d = min(hi, lo<<shift)
	}
	return d - time.Duration(r*float64(d)/2)
}

func (p Pace) bounds() (lo, hi time.Duration) {
	if lo, hi = p.Min, p.Max; lo <= 0 {
		lo = time.Second
	}
	if hi < lo {
		hi = max(lo, time.Minute)
	}
	return lo, hi
}

// Member is a box that has enrolled.
type Member struct {
	Live *identity.Live

	cfg  Config
	mu   sync.Mutex
	warn *api.Warning
	// askAgain is when TurnedAway asks again at the earliest, askPause the pause before.
	askAgain time.Time
	askPause time.Duration
	early    chan struct{}
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
		token, err := cfg.Token()
		if api.CodeOf(err) == api.Invalid {
			return nil, err
		}
		seen, wait := answer{token, err}, forever
		if err == nil {
			var i *identity.Identity
			request := cfg.Describe()
			request.Key, request.Seal, request.Token = key, seal, token
			if i, err = enrolOnce(ctx, cfg, request); err == nil {
				return i, nil
			}
			wait = cfg.Pace.pause(failures, rand.Float64())
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if cfg.Waiting != nil {
			cfg.Waiting(err)
		}
		if said != err.Error() { // one line for each new reason
			said = err.Error()
			cfg.Log.Warn("not enrolled yet", "err", err)
		}
		changed, ok := another(ctx, cfg, seen, wait)
		if !ok {
			return nil, ctx.Err()
		}
		if changed {
			failures = 0
		}
	}
}

const forever = time.Duration(math.MaxInt64)

// answer is what Config.Token gave.
type answer struct {
	token identity.JoinToken
	err   error
}

func (a answer) same(b answer) bool {
	if a.err == nil || b.err == nil {
		return a.err == b.err && a.token == b.token
	}
	return a.err.Error() == b.err.Error()
}

// another waits until d is over or the token is another than was seen; ok is false when
// ctx ended.
func another(ctx context.Context, cfg Config, seen answer, d time.Duration) (changed, ok bool) {
	look, _ := cfg.Pace.bounds()
	for d > 0 {
		if !rest.For(ctx, min(look, d)) {
			return false, false
		}
		if token, err := cfg.Token(); !seen.same(answer{token, err}) {
			return true, true
		}
		d -= min(look, d)
	}
	return false, true
}

func enrolOnce(ctx context.Context, cfg Config, request identity.EnrolConfig) (*identity.Identity, error) {
	err := error(&api.Error{Code: api.Invalid, Message: "no parent is known", Remedy: "pass --parent"})
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

// RenewSoon asks for a renewal now: the trust that is held lacks a signer that the core
// uses, or the core turns the box away. Several calls fold into one; renewals so asked for are at least a minute apart.
func (m *Member) RenewSoon() {
	select {
	case m.early <- struct{}{}:
	default:
	}
}

// TurnedAway says that a parent refuses the box, or that the core never answers it: a core
// restored from an old backup may not know it. A renewal is asked for, which tells the core
// of the box, or the box why: at first at once, then after pauses that grow to an hour.
func (m *Member) TurnedAway() {
	m.mu.Lock()
	now := m.cfg.Now()
	ask := !now.Before(m.askAgain)
	if ask {
		if now.Sub(m.askAgain) > 2*longestAsk {
			m.askPause = 0
		}
		m.askPause = min(max(2*m.askPause, time.Minute), longestAsk)
		m.askAgain = now.Add(m.askPause)
	}
	m.mu.Unlock()
	if ask {
		m.RenewSoon()
	}
}

const longestAsk = time.Hour

// Welcome says that nothing speaks against it that the box is a member.
func (m *Member) Welcome() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.warn != nil && m.warn.Name == notMember {
		m.warn, m.askPause = nil, 0
	}
}

const notMember = "not-a-member"

// Warnings are not-a-member (the core turns the box away), certificate-expiring (renewal fails) and certificate-expired.
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
	if no := turnedAway(err); no != nil {
		return &api.Warning{Name: notMember, Severity: api.Critical, Since: now.Unix(), Message: no.Message, Remedy: no.Remedy}
	}
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

// turnedAway gives the core's own no, by which the box is no member, and nil for errors
// of any other kind.
func turnedAway(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) && (e.Code == api.Forbidden || e.Code == api.Unauthorized) {
		return e
	}
	return nil
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
		if turnedAway(err) != nil && m.cfg.Now().Before(m.Live.Get().RenewAt()) {
			m.cfg.Log.Warn("the core does not let this box take part", "err", err)
			continue // until it is asked for again
		}
		if err != nil {
			failures++
			m.cfg.Log.Warn("certificate not renewed", "err", err)
			continue
		}
		failures = 0
		if !rest.For(ctx, apart(m.Live.Get())) {
			return nil
		}
	}
}

// apart is the least time from one renewal to the next, asked for or not: a minute, and
// less for certificates that live for minutes.
func apart(i *identity.Identity) time.Duration {
	return min(time.Minute, i.Cert[0].NotAfter.Sub(i.Cert[0].NotBefore)/12)
}

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
		if i, reply, err = identity.Renew(ctx, identity.RenewConfig{ParentURL: u, Identity: old, Self: m.cfg.Describe()}); err != nil {
			continue
		}
		i.Now = m.cfg.Now
		if err = errors.Join(i.Save(m.cfg.Dir), m.cfg.Raise(time.Unix(reply.Time, 0))); err != nil {
			return err
		}
		m.Live.Set(i)
		m.cfg.Log.Info("certificate renewed", "expires", i.Expires().UTC())
		if !reply.Approved {
			return &api.Error{Code: api.Unauthorized, Message: "the core waits for a person to approve this box", Remedy: "`edgectl device approve " + reply.Name + "`"}
		}
		return nil
	}
	return err
}
