package mqtt

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// answerTimeout bounds a question to a better parent. It is short, so that one which is
// gone costs no more than two SYNs.
const answerTimeout = 2500 * time.Millisecond

// watch asks the parents that are better than the one of a session.
type watch struct {
	better []api.ParentRef
	// outcomes receives what became of each session that was tried: nil when it was
	// refused. The watch ends with the first that was accepted.
	outcomes chan *attached
	tried    atomic.Int64 // as many outcomes were sent or will be
}

// newWatch is for a session that has just begun with the ladder's present parent. The list
// may change later, but not what stands above that parent: the session would end.
func (u *Uplink) newWatch(a *attached) *watch {
	who := a.who.String()
	if a.who.IsZero() {
		who = identity.CoreName
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	w := &watch{better: above(u.ladder.parents, u.ladder.at, who), outcomes: make(chan *attached)}
	u.climb.begin(u.ladder.parents, w.better, time.Now(), u.cfg.Random())
	return w
}

// watch runs w until a better parent accepts a session, or ctx ends.
func (u *Uplink) watch(ctx context.Context, w *watch) {
	for len(w.better) > 0 {
		p, wait := u.nextQuestion(w.better)
		if !until(ctx, wait) {
			return
		}
		if !u.ask(ctx, p) {
			continue
		}
		w.tried.Add(1)
		b := u.try(ctx, p)
		select {
		case w.outcomes <- b:
		case <-ctx.Done():
			if b != nil {
				b.session.finish(ctx.Err())
			}
			return
		}
		if b != nil {
			return
		}
	}
}

// try opens a session with a parent that has answered for long enough; nil when that fails,
// or when the parent is no way to the core.
func (u *Uplink) try(ctx context.Context, p api.ParentRef) *attached {
	b, err := u.attachBetter(ctx, p)
	if err != nil && ctx.Err() == nil {
		u.cfg.Log.Info("a better parent answers and takes no session", "parent", p.Device, "address", p.Address, "err", err)
		u.mu.Lock()
		defer u.mu.Unlock()
		u.climb.refused(p, time.Now(), u.cfg.Random())
	}
	return b
}

func (u *Uplink) attachBetter(ctx context.Context, p api.ParentRef) (*attached, error) {
	if u.cfg.Leads != nil {
		limited, cancel := context.WithTimeout(ctx, 2*handshakeTimeout)
		defer cancel()
		if err := u.cfg.Leads(limited, p); err != nil {
			return nil, fmt.Errorf("no way to the core: %w", err)
		}
	}
	return u.attach(ctx, p)
}

func (u *Uplink) nextQuestion(better []api.ParentRef) (api.ParentRef, time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p, at := u.climb.next(better)
	return p, time.Until(at)
}

// ask connects by TCP and lets go: some 400 bytes, a tenth of a handshake. It reports
// whether the parent has now answered for long enough.
func (u *Uplink) ask(ctx context.Context, p api.ParentRef) (move bool) {
	dial, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := u.cfg.Dial(dial, "tcp", withPort(p.Address))
	if err == nil {
		conn.Close()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		u.climb.silent(p, time.Now(), u.cfg.Random())
	default:
		move = u.climb.answered(p, time.Now(), u.cfg.Random())
	}
	return move
}

// until waits; it reports false when ctx ended.
func until(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
