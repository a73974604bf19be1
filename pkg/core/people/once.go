package people

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// The purposes of tokens that work once.
const (
	forAdmin    = "admin"    // make a person who is platform-admin
	forPassword = "password" // set the password of a person
)

const (
	adminLife    = 24 * time.Hour
	passwordLife = 72 * time.Hour
	oncePrefix   = "to1"
	maxSecret    = 200 // characters of any token
)

// secretText makes a token: its id, what is kept of it, and its text. The secret part has 192
// random bits, so one SHA-256 is enough.
func (r *Room) secretText(prefix string) (id string, hash []byte, text string, err error) {
	b, err := random(r.cfg.Random, 9+24)
	if err != nil {
		return "", nil, "", err
	}
	id = base64.RawURLEncoding.EncodeToString(b[:9])
	secret := base64.RawURLEncoding.EncodeToString(b[9:])
	sum := sha256.Sum256([]byte(secret))
	return id, sum[:], prefix + "." + id + "." + secret, nil
}

// splitSecret reads the text of a token.
func splitSecret(prefix, text string) (id string, hash []byte, ok bool) {
	parts := strings.Split(text, ".")
	if len(text) > maxSecret || len(parts) != 3 || parts[0] != prefix || !database.Text(parts[1]) {
		return "", nil, false
	}
	sum := sha256.Sum256([]byte(parts[2]))
	return parts[1], sum[:], true
}

func (r *Room) issue(ctx context.Context, tx *database.Tx, purpose, person string, life time.Duration) (string, error) {
	id, hash, text, err := r.secretText(oncePrefix)
	if err != nil {
		return "", err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO once (id, hash, purpose, person, ends, epoch) VALUES (?,?,?,?,?,?)", id, hash, purpose, person, r.cfg.Now().Add(life).UnixMilli(), int64(r.cfg.Epoch))
	return text, err
}

// AdminToken gives a token by which somebody makes themselves an administrator of the
// platform, once, within a day. Those before it end.
func (r *Room) AdminToken(ctx context.Context) (token string, err error) {
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM once WHERE purpose = ?", forAdmin); err != nil {
			return err
		}
		token, err = r.issue(ctx, tx, forAdmin, "", adminLife)
		return err
	})
	return token, err
}

// look finds whose a token is. The error has code Unauthorized.
func (r *Room) look(ctx context.Context, q database.Querier, token, purpose string) (id, person string, err error) {
	refused := &api.Error{Code: api.Unauthorized, Field: "token", Message: "the token is not known, was used, or has expired", Remedy: "ask for another: of an administrator, or by `cored admin-token` on the core's machine"}
	id, got, ok := splitSecret(oncePrefix, token)
	if !ok {
		return "", "", refused
	}
	var hash []byte
	var ends, epoch int64
	err = q.QueryRowContext(ctx, "SELECT hash, person, ends, epoch FROM once WHERE id = ? AND purpose = ?", id, purpose).Scan(&hash, &person, &ends, &epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", refused
	} else if err != nil {
		return "", "", err
	}
	if subtle.ConstantTimeCompare(got, hash) != 1 || r.cfg.Now().UnixMilli() >= ends || uint64(epoch) != r.cfg.Epoch { // check: once
		return "", "", refused
	}
	return id, person, nil
}

// use takes a token, once.
func (r *Room) use(ctx context.Context, tx *database.Tx, token, purpose string) (person string, err error) {
	id, person, err := r.look(ctx, tx, token, purpose)
	if err != nil {
		return "", err
	}
	res, err := tx.ExecContext(ctx, "DELETE FROM once WHERE id = ?", id)
	if err != nil {
		return "", err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return "", errors.Join(err, &api.Error{Code: api.Unauthorized, Field: "token", Message: "the token was used"})
	}
	return person, nil
}

// Setup makes an administrator by an AdminToken. bind gives the uid its role; when what comes
// after it fails, the uid is nobody's, and the token is still good.
func (r *Room) Setup(ctx context.Context, token string, p Profile, password string, bind func(ctx context.Context, uid string) error) (*Person, error) {
	if _, _, err := r.look(ctx, r.db, token, forAdmin); err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	if old, err := r.byLogin(ctx, r.db, p.Login); err != nil || old != nil {
		return nil, errors.Join(err, &api.Error{Code: api.Conflict, Field: "login", Message: "there is a person with the name " + p.Login, Remedy: "choose another name"})
	}
	password, err := newPassword(password)
	if err != nil {
		return nil, err
	}
	hash, err := r.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	uid := r.cfg.NewUID()
	if err := bind(ctx, uid); err != nil {
		return nil, err
	}
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		if _, err := r.use(ctx, tx, token, forAdmin); err != nil {
			return err
		}
		return r.insert(ctx, tx, uid, p, hash)
	})
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, uid)
}

// SetPassword sets a person's password by a token that they were given. Their sessions end.
func (r *Room) SetPassword(ctx context.Context, token, password string) (*Person, error) {
	if _, _, err := r.look(ctx, r.db, token, forPassword); err != nil {
		return nil, err
	}
	password, err := newPassword(password)
	if err != nil {
		return nil, err
	}
	hash, err := r.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	var uid string
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		if uid, err = r.use(ctx, tx, token, forPassword); err != nil {
			return err
		}
		return r.setHash(ctx, tx, uid, hash)
	})
	if err != nil {
		return nil, err
	}
	return r.Get(ctx, uid)
}

// ChangePassword sets the password of somebody who proves it once more. Their sessions end.
func (r *Room) ChangePassword(ctx context.Context, c Credentials, password, address string) error {
	password, err := newPassword(password)
	if err != nil {
		return err
	}
	p, err := r.Login(ctx, c, address)
	if err != nil {
		return err
	}
	hash, err := r.hash(ctx, password)
	if err != nil {
		return err
	}
	return r.db.Write(ctx, func(tx *database.Tx) error { return r.setHash(ctx, tx, p.UID, hash) })
}

func (r *Room) setHash(ctx context.Context, tx *database.Tx, uid, hash string) error {
	if _, err := tx.ExecContext(ctx, "UPDATE people SET password = ? WHERE uid = ?", hash, uid); err != nil {
		return err
	}
	return r.forget(ctx, tx, uid)
}
