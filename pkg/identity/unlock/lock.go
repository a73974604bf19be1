package unlock

import (
	"crypto/ecdh"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"time"

	"tributary.dev/tributary/pkg/api"
)

const (
	// Life is how long a challenge may be answered.
	Life = 15 * time.Minute
	// Tries is how many wrong answers are taken before the box waits.
	Tries = 3
	// firstWait is how long the box then makes no other; it doubles each time, up to mostWait.
	firstWait = time.Minute
	mostWait  = time.Hour
)

// Why an answer is refused.
var (
	ErrWrong   = errors.New("that is not the answer to this challenge")
	ErrNone    = errors.New("no challenge stands: ask for one first")
	ErrExpired = errors.New("the challenge is too old: ask for another")
)

// WaitError tells for how long no challenge is made, nor answered, after wrong answers.
type WaitError struct{ Left time.Duration }

func (e *WaitError) Error() string {
	return fmt.Sprintf("too many wrong answers: wait for %v", e.Left.Round(time.Second))
}

// Limit is what is remembered of wrong answers, beyond the session in which they were typed.
// Its time is the box's since it started.
type Limit struct {
	// Wrong answers since the last wait, Failed waits since the last right answer.
	Wrong  int           `json:"wrong"`
	Failed int           `json:"failed"`
	Until  time.Duration `json:"until"`
}

// Limits keeps the Limit of a box, for all of its consoles.
type Limits interface {
	Load() (Limit, error)
	Save(Limit) error
}

// LockConfig is what a Lock is given; all of it is needed.
type LockConfig struct {
	Owner  *ecdh.PublicKey
	Device api.DeviceID
	Proven bool
	Limits Limits
	// Now is the time since the box started: nobody can set that clock.
	Now  func() time.Duration
	Rand io.Reader
}

// Lock is the box's side, for one person at a console. It is used by one goroutine at a time.
type Lock struct {
	cfg  LockConfig
	key  *ecdh.PrivateKey // nil while no challenge stands
	c    Challenge
	born time.Duration
}

// NewLock makes a lock without a challenge.
func NewLock(cfg LockConfig) *Lock { return &Lock{cfg: cfg} }

// Standing is the challenge that may be answered now, and for how long.
func (l *Lock) Standing() (c Challenge, left time.Duration, ok bool) {
	if l.key == nil || l.expired() {
		return c, 0, false
	}
	return l.c, l.born + Life - l.cfg.Now(), true
}

func (l *Lock) expired() bool { return l.cfg.Now()-l.born >= Life }

// Ask makes a new challenge; the one before, if any, counts no more.
func (l *Lock) Ask() (Challenge, error) {
	if err := l.allowed(); err != nil {
		return Challenge{}, err
	}
	key, err := ecdh.X25519().GenerateKey(l.cfg.Rand)
	if err != nil {
		return Challenge{}, err
	}
	l.key, l.born = key, l.cfg.Now()
	l.c = Challenge{Device: l.cfg.Device, Proven: l.cfg.Proven, Owner: OwnerID(l.cfg.Owner), Fresh: [32]byte(key.PublicKey().Bytes())}
	return l.c, nil
}

// allowed fails with a WaitError while the box waits.
func (l *Lock) allowed() error {
	limit, err := l.cfg.Limits.Load()
	if err != nil {
		return err
	}
	// Nothing waits longer than it can have been made to.
	if left := min(limit.Until-l.cfg.Now(), mostWait); left > 0 { // check: limit
		return &WaitError{left}
	}
	return nil
}

// Try takes an answer. With nil the person may come in, once. What is mistyped (ErrTyped)
// does not count as an attempt.
func (l *Lock) Try(text string) (Challenge, error) {
	if err := l.allowed(); err != nil {
		return Challenge{}, err
	}
	if l.key == nil {
		return Challenge{}, ErrNone
	}
	if l.expired() { // check: life
		l.key = nil
		return Challenge{}, ErrExpired
	}
	given, err := Parse(text, AnswerBytes)
	if err != nil {
		return Challenge{}, err
	}
	want, err := answer(l.key, l.cfg.Owner, l.c)
	if err != nil {
		return Challenge{}, err
	}
	if subtle.ConstantTimeCompare(given, want) != 1 { // check: answer
		return Challenge{}, l.miss()
	}
	l.key = nil
	if err := l.cfg.Limits.Save(Limit{}); err != nil {
		return Challenge{}, err
	}
	return l.c, nil
}

// miss counts a wrong answer, whichever challenge and console it was for.
func (l *Lock) miss() error {
	limit, err := l.cfg.Limits.Load()
	if err != nil {
		return err
	}
	if limit.Wrong++; limit.Wrong < Tries {
		return errors.Join(fmt.Errorf("%w (%d of %d)", ErrWrong, limit.Wrong, Tries), l.cfg.Limits.Save(limit))
	}
	l.key = nil
	limit.Wrong, limit.Failed = 0, limit.Failed+1
	limit.Until = l.cfg.Now() + wait(limit.Failed)
	if err := l.cfg.Limits.Save(limit); err != nil {
		return err
	}
	return fmt.Errorf("%w (%d of %d): the challenge is void, and the next comes in %v", ErrWrong, Tries, Tries, wait(limit.Failed))
}

// wait is how long the box waits after the nth time that it was given wrong answers.
func wait(n int) time.Duration {
	w := firstWait
	for i := 1; i < n && w < mostWait; i++ {
		w *= 2
	}
	return min(w, mostWait)
}
