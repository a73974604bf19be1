package people

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// lockout says how long somebody waits who failed often: after the free tries first, then
// twice as long each time, to the most. It is forgotten a while after the last try.
type lockout struct {
	free                int
	first, most, forget time.Duration
}

var (
	ofAccount = lockout{free: 5, first: 2 * time.Second, most: 15 * time.Minute, forget: 24 * time.Hour}
	ofAddress = lockout{free: 30, first: 2 * time.Second, most: 15 * time.Minute, forget: 24 * time.Hour} // many may share one
)

// failures is what is known of tries that failed, or have not ended yet.
type failures struct {
	count int
	last  time.Time
}

// until is when the next try is heard.
func (l lockout) until(f failures) time.Time {
	over := f.count - l.free
	if over < 0 {
		return time.Time{}
	}
	wait := l.most
	if over < 30 {
		wait = min(l.first<<over, l.most)
	}
	return f.last.Add(wait)
}

// try counts a try as failed, before it is known whether it is: of many at once none is
// free. A refusal has code TooMany.
func (l lockout) try(f failures, now time.Time) (failures, error) {
	if now.Sub(f.last) >= l.forget {
		f = failures{}
	}
	if until := l.until(f); now.Before(until) { // check: lockout
		wait := until.Sub(now).Round(time.Second) + time.Second
		return f, &api.Error{Code: api.TooMany, Message: fmt.Sprintf("too many tries failed; the next is heard in %s", wait), Remedy: "wait as long, or ask an administrator for a reset"}
	}
	return failures{f.count + 1, now}, nil
}

// subjects are what tries are counted by: the name, known or not, and the address it comes
// from (of IPv6 the network, of which one has as many addresses as they like).
func subjects(login, address string) [2]string {
	if a, err := netip.ParseAddr(address); err == nil {
		if a = a.Unmap(); a.Is6() {
			if p, err := a.WithZone("").Prefix(64); err == nil {
				address = p.String()
			}
		} else {
			address = a.String()
		}
	}
	sum := sha256.Sum256([]byte(login))
	return [2]string{"account " + hex.EncodeToString(sum[:16]), "address " + database.Legible(address)}
}

var lockouts = [2]lockout{ofAccount, ofAddress}

// begin counts a try.
func (r *Room) begin(ctx context.Context, by [2]string) error {
	now := r.cfg.Now()
	return r.db.Write(ctx, func(tx *database.Tx) error {
		for i, subject := range by {
			// The row is there before it is read, so that one of two at once waits for the other.
			if _, err := tx.ExecContext(ctx, "INSERT INTO attempts (subject, failed, last) VALUES (?,0,0) ON CONFLICT (subject) DO NOTHING", subject); err != nil {
				return err
			}
			f, err := r.failuresOf(ctx, tx, subject)
			if err != nil {
				return err
			}
			if f, err = lockouts[i].try(f, now); err != nil {
				return err
			}
			if err := r.setFailures(ctx, tx, subject, f); err != nil {
				return err
			}
		}
		return nil
	})
}

// succeeded takes a try back that did not fail: of the account all that failed before with it,
// if whoever it is has proven all. Of the address it is only this one, else whoever has an account
// could guess at others between.
func (r *Room) succeeded(ctx context.Context, tx *database.Tx, by [2]string, all bool) error {
	for i, subject := range by {
		f, err := r.failuresOf(ctx, tx, subject)
		if err != nil {
			return err
		}
		if f.count--; i == 0 && all || f.count <= 0 {
			f = failures{}
		}
		if err := r.setFailures(ctx, tx, subject, f); err != nil {
			return err
		}
	}
	return nil
}

func (r *Room) failuresOf(ctx context.Context, tx *database.Tx, subject string) (f failures, err error) {
	var last int64
	err = tx.QueryRowContext(ctx, "SELECT failed, last FROM attempts WHERE subject = ?"+tx.Dialect().ForUpdate(), subject).Scan(&f.count, &last)
	if errors.Is(err, sql.ErrNoRows) {
		return failures{}, nil
	}
	f.last = time.UnixMilli(last)
	return f, err
}

func (r *Room) setFailures(ctx context.Context, tx *database.Tx, subject string, f failures) error {
	if f.count <= 0 {
		_, err := tx.ExecContext(ctx, "DELETE FROM attempts WHERE subject = ?", subject)
		return err
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO attempts (subject, failed, last) VALUES (?,?,?) ON CONFLICT (subject) DO UPDATE SET failed = excluded.failed, last = excluded.last", subject, f.count, f.last.UnixMilli())
	return err
}

// Tidy forgets what has ended.
func (r *Room) Tidy(ctx context.Context) error {
	now := r.cfg.Now()
	return r.db.Write(ctx, func(tx *database.Tx) error {
		_, err1 := tx.ExecContext(ctx, "DELETE FROM attempts WHERE last <= ?", now.Add(-ofAccount.forget).UnixMilli())
		_, err2 := tx.ExecContext(ctx, "DELETE FROM sessions WHERE ends <= ?", now.UnixMilli())
		_, err3 := tx.ExecContext(ctx, "DELETE FROM once WHERE ends <= ?", now.UnixMilli())
		return errors.Join(err1, err2, err3)
	})
}
