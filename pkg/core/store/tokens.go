package store

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Role names one of the accounts of the platform that are there from the first token on, for
// whoever needs no finer ones: bound at the root, they may do something in every tenant.
type Role string

// The accounts.
const (
	Admin   Role = "admin"   // platform-admin
	Viewer  Role = "viewer"  // viewer
	Rescuer Role = "rescuer" // rescuer
)

// given is the role that the account is bound to.
func (r Role) given() string {
	return map[Role]string{Admin: api.RolePlatformAdmin, Viewer: api.RoleViewer, Rescuer: api.RoleRescuer}[r]
}

// Principal is who a token speaks for: the token's own name, and the uid of its account.
type Principal struct {
	TokenID string
	Name    string
	Account string
}

// Tokens keeps bearer tokens of service accounts. Only a hash of the secret part is kept.
type Tokens interface {
	// CreateToken makes a token of one of the platform's own accounts, which it makes and
	// binds when that is not there, and returns its text, "tp1.<id>.<secret>", which nobody
	// can read again. expires is zero for one that lasts.
	CreateToken(ctx context.Context, name string, role Role, expires time.Time, rand io.Reader) (token string, err error)
	// CreateTokenOf makes a token of a service account (code NotFound when there is none).
	CreateTokenOf(ctx context.Context, name string, account api.Key, expires time.Time, rand io.Reader) (token string, err error)
	// CheckToken tells whose token it is, or fails with code Unauthorized.
	CheckToken(ctx context.Context, token string) (Principal, error)
	// RevokeToken forgets a token by its id (code NotFound when there is none).
	RevokeToken(ctx context.Context, id string) error
	// ListTokens tells what tokens there are, the oldest first, expired ones too.
	ListTokens(ctx context.Context) ([]TokenInfo, error)
}

// TokenInfo is what is known of a token. Of is its account's key; Expires is zero for one that
// lasts.
type TokenInfo struct {
	Principal
	Of               api.Key
	Created, Expires time.Time
}

const tokenPrefix = "tp1"

// CreateToken implements Tokens.
func (s *SQL) CreateToken(ctx context.Context, name string, role Role, expires time.Time, rand io.Reader) (token string, err error) {
	if role.given() == "" {
		return "", &api.Error{Code: api.Invalid, Field: "role", Message: fmt.Sprintf("there is no role %q", role), Remedy: "the roles are admin, viewer and rescuer"}
	}
	err = s.tx(ctx, func(w *writer) error {
		account, err := s.ownAccount(ctx, w, role)
		if err == nil {
			token, err = s.mint(ctx, w, name, account, expires, rand)
		}
		return err
	})
	return token, err
}

// CreateTokenOf implements Tokens.
func (s *SQL) CreateTokenOf(ctx context.Context, name string, account api.Key, expires time.Time, rand io.Reader) (token string, err error) {
	err = s.tx(ctx, func(w *writer) error {
		o, err := s.get(ctx, w, account)
		if err == nil {
			token, err = s.mint(ctx, w, name, o.Metadata.UID, expires, rand)
		}
		return err
	})
	return token, err
}

// MakeOwnAccounts makes the platform's own accounts where not even the first is there.
func (s *SQL) MakeOwnAccounts(ctx context.Context) error {
	return s.tx(ctx, func(w *writer) error {
		if _, err := s.get(ctx, w, api.Key{Tenant: api.PlatformTenant, Kind: api.KindServiceAccount, Name: string(Admin)}); err == nil || api.CodeOf(err) != api.NotFound {
			return err
		}
		for _, role := range []Role{Admin, Viewer, Rescuer} {
			if _, err := s.ownAccount(ctx, w, role); err != nil {
				return err
			}
		}
		return nil
	})
}

// ownAccount is the uid of one of the platform's own accounts, made and bound when it is not.
func (s *SQL) ownAccount(ctx context.Context, w *writer, role Role) (uid string, err error) {
	binding, err := json.Marshal(api.RoleBindingSpec{Role: role.given(), Subjects: []api.Subject{{ServiceAccount: string(role)}}})
	if err != nil {
		return "", err
	}
	for _, o := range []*api.Object{{Kind: api.KindServiceAccount, Spec: []byte(`{}`)}, {Kind: api.KindRoleBinding, Spec: binding}} {
		o.APIVersion, o.Metadata = api.Version, api.Meta{Tenant: api.PlatformTenant, Name: string(role), Generation: 1}
		old, err := s.get(ctx, w, o.Key())
		if api.CodeOf(err) == api.NotFound && err != nil {
			o.Metadata.Revision = w.changed(change{key: o.Key()})
			s.stamp(o, nil)
			if err = s.writeRow(ctx, w, o); err == nil {
				s.audited(w, "create", nil, o)
				old = o
			}
		}
		if err != nil && old == nil {
			return "", err
		}
		if o.Kind == api.KindServiceAccount {
			uid = old.Metadata.UID
		}
	}
	return uid, nil
}

func (s *SQL) mint(ctx context.Context, w *writer, name, account string, expires time.Time, rand io.Reader) (string, error) {
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
	_, err := w.ExecContext(ctx, "INSERT INTO tokens (id, hash, name, role, account, created, expires) VALUES (?,?,?,'',?,?,?)", id, hash[:], database.Legible(name), account, s.cfg.Now().Unix(), until)
	s.auditedToken(w, s.tenantOfAccount(ctx, w, account), AuditedToken{id, database.Legible(name), account, hash[:], until}, false)
	return tokenPrefix + "." + id + "." + secret, err
}

// adoptTokens gives tokens that were made before there were accounts to the account that may
// do what they might.
func (s *SQL) adoptTokens(ctx context.Context) error {
	const orphans = "SELECT count(*) FROM tokens WHERE account = ''"
	var n int
	if err := s.db.QueryRowContext(ctx, orphans).Scan(&n); err != nil || n == 0 {
		return err
	}
	return s.tx(ctx, func(w *writer) error {
		for _, role := range []Role{Admin, Viewer, Rescuer} {
			if err := w.QueryRowContext(ctx, orphans+" AND role = ?", string(role)).Scan(&n); err != nil {
				return err
			}
			if n == 0 {
				continue
			}
			account, err := s.ownAccount(ctx, w, role)
			if err != nil {
				return err
			}
			if _, err := w.ExecContext(ctx, "UPDATE tokens SET account = ?, role = '' WHERE account = '' AND role = ?", account, string(role)); err != nil {
				return err
			}
		}
		return nil
	})
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
	err := s.db.QueryRowContext(ctx, sqlToken, p.TokenID).Scan(&hash, &p.Name, &p.Account, &expires)
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
	rows, err := s.db.QueryContext(ctx, "SELECT t.id, t.name, t.account, COALESCE(o.tenant, ''), COALESCE(o.name, ''), t.created, t.expires FROM tokens t LEFT JOIN objects o ON o.kind = ? AND o.uid = t.account ORDER BY t.created, t.id", api.KindServiceAccount)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []TokenInfo
	for rows.Next() {
		var t TokenInfo
		var created, expires int64
		if err := rows.Scan(&t.TokenID, &t.Name, &t.Account, &t.Of.Tenant, &t.Of.Name, &created, &expires); err != nil {
			return nil, err
		}
		t.Of.Kind = api.KindServiceAccount
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
	return s.tx(ctx, func(w *writer) error {
		tokens, err := s.tokensOf(ctx, w, "id = ?", id)
		if err != nil {
			return err
		}
		if len(tokens) == 0 {
			return &api.Error{Code: api.NotFound, Message: "there is no token " + id}
		}
		return s.dropTokens(ctx, w, s.tenantOfAccount(ctx, w, tokens[0].Account), "id = ?", id)
	})
}

// dropTokens forgets tokens of a tenant's account.
func (s *SQL) dropTokens(ctx context.Context, w *writer, tenant, where string, args ...any) error {
	tokens, err := s.tokensOf(ctx, w, where, args...)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		s.auditedToken(w, tenant, t, true)
	}
	_, err = w.ExecContext(ctx, "DELETE FROM tokens WHERE "+where, args...)
	return err
}
