package people

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Session is somebody who is logged in.
type Session struct {
	ID string `json:"id"`
	// Person is the uid, Name how the person is shown.
	Person  string    `json:"-"`
	Name    string    `json:"-"`
	How     string    `json:"how" doc:"password, or the issuer that said who it is."`
	Groups  []Group   `json:"groups,omitempty" doc:"What the issuer said that the person belongs to."`
	Bearer  bool      `json:"bearer,omitempty" doc:"It is sent as a token, not as a cookie."`
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen" doc:"When it was used last, to the minute."`
	Ends    time.Time `json:"ends" doc:"When it ends at the latest."`
	Address string    `json:"address" doc:"Where the login came from."`
	Agent   string    `json:"agent,omitempty"`
	Current bool      `json:"current,omitempty" doc:"It is the one that asks."`
}

// SessionPrefix begins the text of every session's secret.
const SessionPrefix = "ts1"

// IsSession tells a session's secret from other tokens.
func IsSession(text string) bool { return strings.HasPrefix(text, SessionPrefix+".") }

const (
	maxSessions = 50 // of one person; the oldest goes
	maxAgent    = 200
	seenGrain   = time.Minute // how fine the last use is kept: not every request writes
)

// Begin opens a session, and gives its secret.
func (r *Room) Begin(ctx context.Context, p *Person, s Session) (Session, string, error) {
	id, hash, text, err := r.secretText(SessionPrefix)
	if err != nil {
		return s, "", err
	}
	groups, err := json.Marshal(s.Groups)
	if err != nil {
		return s, "", err
	}
	now := r.cfg.Now().UTC().Truncate(time.Millisecond)
	s.ID, s.Person, s.Name, s.Created, s.Seen, s.Ends, s.Current = id, p.UID, p.Shown(), now, now, now.Add(r.cfg.Life), true
	if s.Agent = database.Legible(s.Agent); len(s.Agent) > maxAgent {
		s.Agent = strings.ToValidUTF8(s.Agent[:maxAgent], "")
	}
	bearer := 0
	if s.Bearer {
		bearer = 1
	}
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM sessions WHERE person = ? AND (ends <= ? OR id NOT IN (SELECT id FROM sessions WHERE person = ? ORDER BY created DESC, id LIMIT ?))",
			p.UID, now.UnixMilli(), p.UID, maxSessions-1); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO sessions (id, hash, person, how, groups, bearer, created, seen, ends, address, agent, epoch) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
			id, hash, p.UID, s.How, groups, bearer, now.UnixMilli(), now.UnixMilli(), s.Ends.UnixMilli(), database.Legible(s.Address), s.Agent, int64(r.cfg.Epoch))
		return err
	})
	return s, text, err
}

const sessionColumns = "s.id, s.hash, s.person, s.how, s.groups, s.bearer, s.created, s.seen, s.ends, s.address, s.agent, s.epoch, p.uid, p.login, p.name"

// row is a session with what it is checked by.
type row struct {
	Session
	hash  []byte
	epoch int64
}

func scanSession(rows interface{ Scan(...any) error }) (*row, error) {
	x := &row{}
	var p Person
	var groups []byte
	var bearer, created, seen, ends int64
	if err := rows.Scan(&x.ID, &x.hash, &x.Person, &x.How, &groups, &bearer, &created, &seen, &ends, &x.Address, &x.Agent, &x.epoch, &p.UID, &p.Login, &p.Name); err != nil {
		return nil, err
	}
	x.Name, x.Bearer = p.Shown(), bearer != 0
	x.Created, x.Seen, x.Ends = time.UnixMilli(created).UTC(), time.UnixMilli(seen).UTC(), time.UnixMilli(ends).UTC()
	var err error
	x.Groups, err = groupsOf(groups)
	return x, err
}

// live tells whether a session is good.
func (r *Room) live(x *row) bool {
	now := r.cfg.Now()
	if !now.Before(x.Ends) { // check: the end
		return false
	}
	if !x.Bearer && now.Sub(x.Seen) >= r.cfg.Idle { // check: idleness
		return false
	}
	return uint64(x.epoch) == r.cfg.Epoch
}

// Check tells whose session a secret is. used says that the person does something now, and
// not that an open stream looks whether it may go on. The error has code Unauthorized.
func (r *Room) Check(ctx context.Context, secret string, used bool) (*Session, error) {
	refused := &api.Error{Code: api.Unauthorized, Message: "the session has ended", Remedy: "log in again"}
	id, got, ok := splitSecret(SessionPrefix, secret)
	if !ok {
		return nil, refused
	}
	x, err := scanSession(r.db.QueryRowContext(ctx, "SELECT "+sessionColumns+" FROM sessions s JOIN people p ON p.uid = s.person AND p.disabled = 0 WHERE s.id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, refused
	} else if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(got, x.hash) != 1 || !r.live(x) { // check: session
		return nil, refused
	}
	if now := r.cfg.Now(); used && now.Sub(x.Seen) >= seenGrain {
		if _, err := r.db.ExecContext(ctx, "UPDATE sessions SET seen = ? WHERE id = ? AND seen < ?", now.UnixMilli(), id, now.UnixMilli()); err != nil {
			return nil, err
		}
	}
	return &x.Session, nil
}

// Sessions lists a person's, the newest first.
func (r *Room) Sessions(ctx context.Context, person string) ([]*Session, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT "+sessionColumns+" FROM sessions s JOIN people p ON p.uid = s.person WHERE s.person = ? ORDER BY s.created DESC, s.id", person)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []*Session{}
	for rows.Next() {
		x, err := scanSession(rows)
		if err != nil {
			return nil, err
		}
		if r.live(x) {
			out = append(out, &x.Session)
		}
	}
	return out, rows.Err()
}

// End ends one session of a person (code NotFound), or with id "" all.
func (r *Room) End(ctx context.Context, person, id string) error {
	if id == "" {
		_, err := r.db.ExecContext(ctx, "DELETE FROM sessions WHERE person = ?", person)
		return err
	}
	gone := &api.Error{Code: api.NotFound, Message: "there is no such session", Remedy: "list yours"}
	if !database.Text(id) {
		return gone
	}
	res, err := r.db.ExecContext(ctx, "DELETE FROM sessions WHERE person = ? AND id = ?", person, id)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, gone)
	}
	return nil
}
