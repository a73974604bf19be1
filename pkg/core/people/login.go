package people

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Credentials are what somebody proves by who they are.
type Credentials struct {
	Login    string `json:"login" maxLength:"64" doc:"The name of the account."`
	Password string `json:"password" maxLength:"1024"`
	Code     string `json:"code,omitempty" maxLength:"64" doc:"Of the authenticator, or a recovery code; where there is a second factor."`
}

// wrong is the one answer to whoever does not get in. why is for the log.
func wrong(why string) error {
	return &api.Error{Code: api.Unauthorized, Message: "name, password or code is wrong", Remedy: "try again; an administrator resets passwords", Err: errors.New(why)}
}

// Login finds who somebody is by their credentials. The error has code Unauthorized, with the
// field "code" where the password is right and nothing but a code is missing, or TooMany.
//
// A name that is not there takes the work of one that is, and is locked out alike.
func (r *Room) Login(ctx context.Context, c Credentials, address string) (*Person, error) {
	login := strings.ToLower(strings.TrimSpace(c.Login))
	by := subjects(login, address)
	if err := r.begin(ctx, by); err != nil {
		return nil, err
	}
	a, err := r.byLogin(ctx, r.db, login)
	if err != nil {
		return nil, err
	}
	hash := ""
	if a != nil {
		hash = a.password
	}
	ok, current, err := r.verify(ctx, c.Password, hash)
	switch {
	case err != nil:
		return nil, err
	case a == nil:
		return nil, wrong("there is no such account")
	case !ok: // check: password
		return nil, wrong("the password is wrong")
	case a.Disabled: // check: disabled
		return nil, wrong("the account is disabled")
	}
	renewed := ""
	if !current { // the cost of hashes has changed since
		if renewed, err = r.hash(ctx, c.Password); err != nil {
			return nil, err
		}
	}
	asks := a.SecondFactor && strings.TrimSpace(c.Code) == ""
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		if a.SecondFactor && !asks { // check: second factor
			if err := r.takeCode(ctx, tx, a, c.Code); err != nil {
				return err
			}
		}
		if renewed != "" {
			if _, err := tx.ExecContext(ctx, "UPDATE people SET password = ? WHERE uid = ? AND password = ?", renewed, a.UID, a.password); err != nil {
				return err
			}
		}
		return r.succeeded(ctx, tx, by, !asks)
	})
	if err != nil {
		return nil, err
	}
	if asks { // check: a code is asked for
		return nil, &api.Error{Code: api.Unauthorized, Field: "code", Message: "a code is needed", Remedy: "send the code that your authenticator shows, or a recovery code, along"}
	}
	return r.Get(ctx, a.UID)
}

// takeCode takes a code of the authenticator, or a recovery code: each once.
func (r *Room) takeCode(ctx context.Context, tx *database.Tx, a *account, code string) error {
	if six := digits(code); six != "" {
		secret, err := r.cfg.Open(factorPlace(a.UID), a.totp)
		if err != nil {
			return err
		}
		step, ok := matchTOTP(secret, six, r.cfg.Now(), a.step)
		if !ok {
			return wrong("the code is wrong, or was used")
		}
		// a.step was read before: of two at once with the same code one comes second.
		res, err := tx.ExecContext(ctx, "UPDATE people SET step = ? WHERE uid = ? AND step < ?", step, a.UID, step)
		return once(res, err, "the code was used")
	}
	res, err := tx.ExecContext(ctx, "DELETE FROM recovery_codes WHERE person = ? AND hash = ?", a.UID, codeHash(code))
	return once(res, err, "the recovery code is wrong, or was used")
}

func once(res interface{ RowsAffected() (int64, error) }, err error, why string) error {
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, wrong(why))
	}
	return nil
}

// Recovery codes have 80 random bits, so that one SHA-256 is enough.
const (
	codeCount = 10
	codeBytes = 10
)

// codeHash is what is kept of a recovery code, however it is written.
func codeHash(code string) []byte {
	code = strings.NewReplacer("-", "", " ", "", "0", "O", "1", "L", "8", "B").Replace(strings.ToUpper(code))
	sum := sha256.Sum256([]byte(code))
	return sum[:]
}

// Factor is a second factor that is being set up.
type Factor struct {
	Secret string `json:"secret" doc:"For an authenticator that is typed into, in base32."`
	URI    string `json:"uri" doc:"For a picture that an authenticator reads."`
}

// factorPlace binds the sealed secret to its person.
func factorPlace(uid string) string { return "totp\x00" + uid }

// NewFactor begins to set up a second factor: it counts once a code confirmed it. One that is
// there goes on counting until then.
func (r *Room) NewFactor(ctx context.Context, uid, at string) (*Factor, error) {
	secret, err := random(r.cfg.Random, totpSecret)
	if err != nil {
		return nil, err
	}
	a, err := r.byUID(ctx, r.db, uid)
	if err != nil {
		return nil, err
	}
	if a.password == "" {
		return nil, &api.Error{Code: api.Conflict, Message: "this person has no password", Remedy: "their provider asks for a second factor, if any"}
	}
	if _, err := r.db.ExecContext(ctx, "UPDATE people SET trial = ? WHERE uid = ?", r.cfg.Seal(factorPlace(uid), secret), uid); err != nil {
		return nil, err
	}
	return &Factor{Secret: base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret), URI: totpURI(secret, a.Login, at)}, nil
}

// ConfirmFactor makes the second factor that was begun count, by a code of it, and gives new
// recovery codes.
func (r *Room) ConfirmFactor(ctx context.Context, uid, code, address string) (codes []string, err error) {
	by := subjects("factor "+uid, address)
	if err := r.begin(ctx, by); err != nil {
		return nil, err
	}
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		a, err := r.byUID(ctx, tx, uid)
		if err != nil {
			return err
		}
		if len(a.trial) == 0 {
			return &api.Error{Code: api.Conflict, Message: "no second factor is being set up", Remedy: "begin one first"}
		}
		secret, err := r.cfg.Open(factorPlace(uid), a.trial)
		if err != nil {
			return err
		}
		step, ok := matchTOTP(secret, digits(code), r.cfg.Now(), 0)
		if !ok {
			return &api.Error{Code: api.Invalid, Field: "code", Message: "this is not the authenticator's code of now", Remedy: "check the clocks of both machines, and try the next code"}
		}
		if _, err := tx.ExecContext(ctx, "UPDATE people SET totp = trial, trial = ?, step = ? WHERE uid = ?", []byte{}, step, uid); err != nil {
			return err
		}
		if codes, err = r.newCodes(ctx, tx, uid); err != nil {
			return err
		}
		return r.succeeded(ctx, tx, by, true)
	})
	return codes, err
}

// NewCodes gives new recovery codes; those before end.
func (r *Room) NewCodes(ctx context.Context, uid string) (codes []string, err error) {
	err = r.db.Write(ctx, func(tx *database.Tx) error {
		a, err := r.byUID(ctx, tx, uid)
		if err == nil && !a.SecondFactor {
			err = &api.Error{Code: api.Conflict, Message: "there is no second factor to recover from", Remedy: "set one up first"}
		}
		if err == nil {
			codes, err = r.newCodes(ctx, tx, uid)
		}
		return err
	})
	return codes, err
}

func (r *Room) newCodes(ctx context.Context, tx *database.Tx, uid string) ([]string, error) {
	if _, err := tx.ExecContext(ctx, "DELETE FROM recovery_codes WHERE person = ?", uid); err != nil {
		return nil, err
	}
	var codes []string
	for range codeCount {
		b, err := random(r.cfg.Random, codeBytes)
		if err != nil {
			return nil, err
		}
		text := base32.StdEncoding.EncodeToString(b)
		code := fmt.Sprintf("%s-%s-%s-%s", text[:4], text[4:8], text[8:12], text[12:])
		if _, err := tx.ExecContext(ctx, "INSERT INTO recovery_codes (person, hash) VALUES (?,?)", uid, codeHash(code)); err != nil {
			return nil, err
		}
		codes = append(codes, code)
	}
	return codes, nil
}

// DropFactor takes the second factor away.
func (r *Room) DropFactor(ctx context.Context, uid string) error {
	return r.db.Write(ctx, func(tx *database.Tx) error { return r.dropFactor(ctx, tx, uid) })
}

func (r *Room) dropFactor(ctx context.Context, tx *database.Tx, uid string) error {
	_, err := tx.ExecContext(ctx, "UPDATE people SET totp = ?, trial = ? WHERE uid = ?", []byte{}, []byte{}, uid)
	if err == nil {
		_, err = tx.ExecContext(ctx, "DELETE FROM recovery_codes WHERE person = ?", uid)
	}
	return err
}
