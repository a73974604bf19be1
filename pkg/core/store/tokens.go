package store

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Role is what the bearer of a token may do.
type Role string

// The roles.
const (
	Admin  Role = "admin"  // everything
	Viewer Role = "viewer" // read everything but secrets, change nothing
	// Rescuer reads as a viewer does, and answers boxes' challenges.
	Rescuer Role = "rescuer"
)

// Principal is a person, as the token tells.
type Principal struct {
	TokenID string
	Name    string
	Role    Role
}

// Tokens keeps bearer tokens of people. Only a hash of the secret part is kept.
type Tokens interface {
	// CreateToken makes a token and returns its text, "tp1.<id>.<secret>", which
	// nobody can read again. expires is zero for one that lasts.
	CreateToken(ctx context.Context, name string, role Role, expires time.Time, rand io.Reader) (token string, err error)
	// CheckToken tells whose token it is, or fails with code Unauthorized.
	CheckToken(ctx context.Context, token string) (Principal, error)
	// RevokeToken forgets a token by its id (code NotFound when there is none).
	RevokeToken(ctx context.Context, id string) error
	// ListTokens tells what tokens there are, the oldest first, expired ones too.
	ListTokens(ctx context.Context) ([]TokenInfo, error)
}

// TokenInfo is what is known of a token. Expires is zero for one that lasts.
type TokenInfo struct {
	Principal
	Created, Expires time.Time
}

const tokenPrefix = "tp1"

// CreateToken implements Tokens.
func (s *SQL) CreateToken(ctx context.Context, name string, role Role, expires time.Time, rand io.Reader) (string, error) {
	if role != Admin && role != Viewer && role != Rescuer {
		return "", &api.Error{Code: api.Invalid, Field: "role", Message: fmt.Sprintf("there is no role %q", role), Remedy: "the roles are admin, viewer and rescuer"}
	}
	var b [6 + 24]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return "", err
	}
	id, secret := base64.RawURLEncoding.EncodeToString(b[:6]), base64.RawURLEncoding.EncodeToString(b[6:])
	hash := sha256.Sum256([]byte(secret))
	var until int64
	if !expires.IsZero() {
		until = expires.Unix()
	}
	_, err := s.db.ExecContext(ctx, "INSERT INTO tokens (id, hash, name, role, created, expires) VALUES (?,?,?,?,?,?)", id, hash[:], database.Legible(name), string(role), s.cfg.Now().Unix(), until)
	return tokenPrefix + "." + id + "." + secret, err
}

// CheckToken implements Tokens. The secret has 192 random bits, so one SHA-256 is
// enough: there is nothing to guess that a slow hash would protect.
func (s *SQL) CheckToken(ctx context.Context, token string) (Principal, error) {
	refused := &api.Error{Code: api.Unauthorized, Message: "the token is not known, or has expired", Remedy: "make one with `cored token create`"}
	parts := strings.Split(token, ".")
	if len(token) > 200 || len(parts) != 3 || parts[0] != tokenPrefix || !database.Text(parts[1]) {
		return Principal{}, refused
	}
	p := Principal{TokenID: parts[1]}
	var hash []byte
	var expires int64
	err := s.db.QueryRowContext(ctx, sqlToken, p.TokenID).Scan(&hash, &p.Name, &p.Role, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return Principal{}, refused
	} else if err != nil {
		return Principal{}, err
	}
	got := sha256.Sum256([]byte(parts[2]))
	if subtle.ConstantTimeCompare(got[:], hash) != 1 || expires != 0 && s.cfg.Now().Unix() >= expires {
		return Principal{}, refused
	}
	return p, nil
}

// ListTokens implements Tokens.
func (s *SQL) ListTokens(ctx context.Context) ([]TokenInfo, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT id, name, role, created, expires FROM tokens ORDER BY created, id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []TokenInfo
	for rows.Next() {
		var t TokenInfo
		var created, expires int64
		if err := rows.Scan(&t.TokenID, &t.Name, &t.Role, &created, &expires); err != nil {
			return nil, err
		}
		if t.Created = time.Unix(created, 0); expires != 0 {
			t.Expires = time.Unix(expires, 0)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// RevokeToken implements Tokens.
func (s *SQL) RevokeToken(ctx context.Context, id string) error {
	if !database.Text(id) {
		return api.Errorf(api.NotFound, "there is no token %q", id)
	}
	res, err := s.db.ExecContext(ctx, "DELETE FROM tokens WHERE id = ?", id)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, &api.Error{Code: api.NotFound, Message: "there is no token " + id})
	}
	return nil
}
