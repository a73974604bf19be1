// Package people answers: who is this person, and how do they prove it?
//
// People belong to no tenant: what they may is said by bindings to their uid. A local
// account is a name with a password (argon2id), and a second factor (TOTP, with recovery
// codes). Who proved it has a session, which the core ends whenever it likes.
package people

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Migrate brings the tables of this room up to date.
func Migrate(ctx context.Context, db *database.DB) error {
	return db.Migrate(ctx, migrations, "people_db_version")
}

// Config is what the room is given.
type Config struct {
	// DB is where the tables are. They are brought up to date already.
	DB     *database.DB
	Now    func() time.Time
	NewUID func() string
	Random io.Reader
	// Epoch is the core's: sessions and tokens of another end with it.
	Epoch uint64
	// Seal and Open keep secrets of second factors from whoever has a copy of the database.
	// A value is bound to its place.
	Seal func(place string, plain []byte) []byte
	Open func(place string, sealed []byte) ([]byte, error)
	// Cost is the work of a password's hash; zero is DefaultCost.
	Cost Cost
	// Idle ends a session that is not used, Life any.
	Idle, Life time.Duration
}

// Room knows people. All methods may be called from any goroutine.
type Room struct {
	cfg    Config
	db     *database.DB
	nobody string        // a hash that no password has, of the cost that others have
	hashes chan struct{} // as many as may be computed at once: each takes its memory
}

// The lives of sessions when nothing else is said.
const (
	DefaultIdle = time.Hour
	DefaultLife = 12 * time.Hour
)

const maxHashes = 2

// New makes the room.
func New(cfg Config) (*Room, error) {
	if cfg.Cost == (Cost{}) {
		cfg.Cost = DefaultCost
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Life == 0 {
		cfg.Life = DefaultLife
	}
	r := &Room{cfg: cfg, db: cfg.DB, hashes: make(chan struct{}, maxHashes)}
	secret, err := random(cfg.Random, 32)
	if err == nil {
		r.nobody, err = hashPassword(string(secret), cfg.Cost, cfg.Random)
	}
	return r, err
}

// Person is somebody, as others are told of them.
type Person struct {
	UID string `json:"uid" doc:"What bindings refer to; never another's."`
	// Login is the name of the local account.
	Login    string    `json:"login,omitempty" doc:"The name to log in by; absent without a local account."`
	Name     string    `json:"name,omitempty" doc:"As shown."`
	Email    string    `json:"email,omitempty" doc:"A mere attribute: nothing is decided by it."`
	Disabled bool      `json:"disabled,omitempty"`
	Created  time.Time `json:"created"`
	// Password and SecondFactor tell whether there is one.
	Password     bool `json:"password" doc:"Whether a password is set."`
	SecondFactor bool `json:"secondFactor" doc:"Whether a code is asked for at login."`
	Codes        int  `json:"recoveryCodes" doc:"How many recovery codes are left."`
}

// Shown names a person in logs and audits.
func (p *Person) Shown() string {
	if p.Login != "" {
		return p.Login
	}
	return strings.TrimSpace(p.Name + " (" + p.UID + ")")
}

// account is a row of people.
type account struct {
	Person
	password    string
	totp, trial []byte
	step        int64
}

const columns = "uid, login, name, email, disabled, created, password, totp, trial, step"

func (r *Room) scan(row interface{ Scan(...any) error }) (*account, error) {
	a := &account{}
	var disabled, created int64
	if err := row.Scan(&a.UID, &a.Login, &a.Name, &a.Email, &disabled, &created, &a.password, &a.totp, &a.trial, &a.step); err != nil {
		return nil, err
	}
	a.Disabled, a.Created = disabled != 0, time.UnixMilli(created).UTC()
	a.Person.Password, a.SecondFactor = a.password != "", len(a.totp) > 0
	return a, nil
}

// byUID reads an account; the error has code NotFound when there is none.
func (r *Room) byUID(ctx context.Context, q database.Querier, uid string) (*account, error) {
	gone := &api.Error{Code: api.NotFound, Message: "there is no such person", Remedy: "see `edgectl person list` for the uids"}
	if !database.Text(uid) {
		return nil, gone
	}
	a, err := r.scan(q.QueryRowContext(ctx, "SELECT "+columns+" FROM people WHERE uid = ?", uid))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, gone
	}
	return a, err
}

// byLogin reads an account by its name; nil when there is none.
func (r *Room) byLogin(ctx context.Context, q database.Querier, login string) (*account, error) {
	if login == "" || !database.Text(login) {
		return nil, nil
	}
	a, err := r.scan(q.QueryRowContext(ctx, "SELECT "+columns+" FROM people WHERE login = ?", login))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return a, err
}

// Get tells of one person (code NotFound).
func (r *Room) Get(ctx context.Context, uid string) (*Person, error) {
	a, err := r.byUID(ctx, r.db, uid)
	if err != nil {
		return nil, err
	}
	err = r.db.QueryRowContext(ctx, "SELECT count(*) FROM recovery_codes WHERE person = ?", uid).Scan(&a.Codes)
	return &a.Person, err
}

// List tells of everybody, by name.
func (r *Room) List(ctx context.Context) ([]*Person, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT "+columns+" FROM people ORDER BY login, name, uid")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []*Person{}
	for rows.Next() {
		a, err := r.scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, &a.Person)
	}
	return out, rows.Err()
}

// Anybody reports whether there is any person yet.
func (r *Room) Anybody(ctx context.Context) (bool, error) {
	var n int
	err := r.db.QueryRowContext(ctx, "SELECT count(*) FROM people").Scan(&n)
	return n > 0, err
}

// Profile is what of a person others may set.
type Profile struct {
	Login string `json:"login,omitempty" maxLength:"64" doc:"The name to log in by; it stays."`
	Name  string `json:"name,omitempty" maxLength:"200" doc:"As shown."`
	Email string `json:"email,omitempty" maxLength:"254"`
}

var loginPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._@+-]{0,62}[a-z0-9])?$`)

// check makes a profile one that can be stored, or says what is wrong.
func (p *Profile) check() error {
	p.Login = strings.ToLower(strings.TrimSpace(p.Login))
	if !loginPattern.MatchString(p.Login) {
		return &api.Error{Code: api.Invalid, Field: "login", Message: "not a name to log in by", Remedy: "write 1 to 64 letters, digits and . _ @ + -, with a letter or digit at both ends"}
	}
	return p.checkShown()
}

func (p *Profile) checkShown() error {
	for field, text := range map[string]string{"name": p.Name, "email": p.Email} {
		if !database.Text(text) || utf8.RuneCountInString(text) > 254 || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' }) {
			return &api.Error{Code: api.Invalid, Field: field, Message: "not a line of text of at most 254 characters", Remedy: "write it shorter, without control characters"}
		}
	}
	return nil
}

// Create makes a person with a local account, and a token by which they set its password.
func (r *Room) Create(ctx context.Context, p Profile) (*Person, string, error) {
	if err := p.check(); err != nil {
		return nil, "", err
	}
	uid, token := r.cfg.NewUID(), ""
	err := r.db.Write(ctx, func(tx *database.Tx) (err error) {
		if err = r.insert(ctx, tx, uid, p, ""); err != nil {
			return err
		}
		token, err = r.issue(ctx, tx, forPassword, uid, passwordLife)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	made, err := r.Get(ctx, uid)
	return made, token, err
}

func (r *Room) insert(ctx context.Context, tx *database.Tx, uid string, p Profile, password string) error {
	old, err := r.byLogin(ctx, tx, p.Login)
	if err != nil {
		return err
	}
	if old != nil {
		return &api.Error{Code: api.Conflict, Field: "login", Message: "there is a person with the name " + p.Login, Remedy: "choose another name"}
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO people ("+columns+") VALUES (?,?,?,?,0,?,?,?,?,0)", uid, p.Login, p.Name, p.Email, r.cfg.Now().UnixMilli(), password, []byte{}, []byte{})
	return err
}

// Change is what of a person is set anew; nil leaves it.
type Change struct {
	Name     *string `json:"name,omitempty" maxLength:"200"`
	Email    *string `json:"email,omitempty" maxLength:"254"`
	Disabled *bool   `json:"disabled,omitempty" doc:"Who is disabled does not get in, and has no session any more."`
}

// Update changes a person.
func (r *Room) Update(ctx context.Context, uid string, c Change) (*Person, error) {
	err := r.db.Write(ctx, func(tx *database.Tx) error {
		a, err := r.byUID(ctx, tx, uid)
		if err != nil {
			return err
		}
		p := Profile{Name: a.Name, Email: a.Email}
		if c.Name != nil {
			p.Name = *c.Name
		}
		if c.Email != nil {
			p.Email = *c.Email
		}
		if err := p.checkShown(); err != nil {
			return err
		}
		disabled := 0
		if c.Disabled != nil && *c.Disabled || c.Disabled == nil && a.Disabled {
			disabled = 1
			if err := r.forget(ctx, tx, uid); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, "UPDATE people SET name = ?, email = ?, disabled = ? WHERE uid = ?", p.Name, p.Email, disabled, uid)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, uid)
}

// Reset takes a person's password and sessions, with factor their second factor too, and
// gives a token by which they set a new password.
func (r *Room) Reset(ctx context.Context, uid string, factor bool) (token string, err error) {
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		a, err := r.byUID(ctx, tx, uid)
		if err != nil {
			return err
		}
		if a.Login == "" {
			return &api.Error{Code: api.Conflict, Message: "this person has no local account", Remedy: "they log in by their provider"}
		}
		if err := r.forget(ctx, tx, uid); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE people SET password = '' WHERE uid = ?", uid); err != nil {
			return err
		}
		if factor {
			if err := r.dropFactor(ctx, tx, uid); err != nil {
				return err
			}
		}
		token, err = r.issue(ctx, tx, forPassword, uid, passwordLife)
		return err
	})
	return token, err
}

// forget ends a person's sessions and one-time tokens.
func (r *Room) forget(ctx context.Context, tx *database.Tx, uid string) error {
	_, err := tx.ExecContext(ctx, "DELETE FROM sessions WHERE person = ?", uid)
	if err == nil {
		_, err = tx.ExecContext(ctx, "DELETE FROM once WHERE person = ?", uid)
	}
	return err
}

// Reseal has every sealed value sealed again, by the key of now: again tells the new value, or
// the old one where nothing is to be done.
func Reseal(ctx context.Context, tx *database.Tx, again func(place string, sealed []byte) ([]byte, error)) error {
	rows, err := tx.QueryContext(ctx, "SELECT uid, totp, trial FROM people")
	if err != nil {
		return err
	}
	type row struct {
		uid         string
		totp, trial []byte
	}
	var all []row
	for rows.Next() {
		var x row
		if err := rows.Scan(&x.uid, &x.totp, &x.trial); err != nil {
			return errors.Join(err, rows.Close())
		}
		all = append(all, x)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, x := range all {
		for column, value := range map[string][]byte{"totp": x.totp, "trial": x.trial} {
			if len(value) == 0 {
				continue
			}
			sealed, err := again(factorPlace(x.uid), value)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "UPDATE people SET "+column+" = ? WHERE uid = ?", sealed, x.uid); err != nil {
				return err
			}
		}
	}
	return nil
}

// Group is what an issuer says that somebody belongs to.
type Group struct {
	Issuer string `json:"issuer"`
	Name   string `json:"name"`
}

func groupsOf(raw []byte) (out []Group, err error) {
	if len(raw) == 0 {
		return nil, nil
	}
	return out, json.Unmarshal(raw, &out)
}

func random(from io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(from, b)
	return b, err
}
