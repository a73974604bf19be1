package store

import (
	"context"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Auditor writes down who changed what. Its rows are the last of their transaction, as they hold
// the end of the log until that ends.
type Auditor interface {
	Append(ctx context.Context, tx *database.Tx, entries ...api.AuditEntry) error
	// Digest is of what people say of an object, DigestToken of a token.
	Digest(o *api.Object) []byte
	DigestToken(t AuditedToken) []byte
}

// AuditedToken is what a token is digested of.
type AuditedToken struct {
	ID, Name, Account string
	Hash              []byte
	Expires           int64
}

// KindToken is the kind of tokens in the audit log.
const KindToken = "Token"

// audited notes a change of an object; old or o is nil where there is none.
func (s *SQL) audited(w *writer, action string, old, o *api.Object) {
	if s.cfg.Auditor == nil {
		return
	}
	of := o
	if of == nil {
		of = old
	}
	m := of.Metadata
	e := api.AuditEntry{TenantName: m.Tenant, Action: action, Kind: of.Kind, Object: m.Name, UID: m.UID, Old: s.cfg.Auditor.Digest(old), New: s.cfg.Auditor.Digest(o)}
	if of.Kind == api.KindTenant { // a tenant's own rows are its own, also that of its end
		if e.TenantName = m.Name; o == nil {
			e.Tenant = m.UID
		}
	}
	w.audit = append(w.audit, e)
}

// auditedToken notes a token that is made (deleted: that is gone).
func (s *SQL) auditedToken(w *writer, tenant string, t AuditedToken, deleted bool) {
	if s.cfg.Auditor == nil {
		return
	}
	e := api.AuditEntry{TenantName: tenant, Action: "create", Kind: KindToken, Object: t.Name, UID: t.ID, New: s.cfg.Auditor.DigestToken(t)}
	if deleted {
		e.Action, e.Old, e.New = "delete", e.New, nil
	}
	w.audit = append(w.audit, e)
}

func (s *SQL) auditAll(ctx context.Context, w *writer) error {
	if s.cfg.Auditor == nil {
		return nil
	}
	return s.cfg.Auditor.Append(ctx, w.Tx, w.audit...)
}

// Adopt notes all that was there before the audit log was, once.
func (s *SQL) Adopt(ctx context.Context) error {
	if done, err := s.counter(ctx, s.db, "audited"); err != nil || done > 0 || s.cfg.Auditor == nil {
		return err
	}
	return s.tx(ctx, func(w *writer) error {
		if done, err := s.counter(ctx, w, "audited"); err != nil || done > 0 {
			return err
		}
		if err := setCounter(ctx, w, "audited", 1); err != nil {
			return err
		}
		w.audit = append(w.audit, api.AuditEntry{Action: "begin", Message: "the audit log begins; what was there before follows"})
		objects, err := s.all(ctx, w)
		if err != nil {
			return err
		}
		for _, o := range objects {
			s.audited(w, "adopt", nil, o)
		}
		tokens, err := s.tokensOf(ctx, w, "1 = 1")
		for _, t := range tokens {
			s.auditedToken(w, api.PlatformTenant, t, false)
		}
		return err
	})
}

// Audit writes rows of the audit log that go along with no change of an object.
func (s *SQL) Audit(ctx context.Context, entries ...api.AuditEntry) error {
	if s.cfg.Auditor == nil {
		return nil
	}
	return s.db.Write(ctx, func(tx *database.Tx) error { return s.cfg.Auditor.Append(ctx, tx, entries...) })
}

// EverythingIn is all objects as a transaction sees them, with their secrets opened.
func (s *SQL) EverythingIn(ctx context.Context, tx *database.Tx) ([]*api.Object, error) {
	return s.all(ctx, tx)
}

func (s *SQL) all(ctx context.Context, q database.Querier) (out []*api.Object, err error) {
	rows, err := q.QueryContext(ctx, "SELECT "+columns+" FROM objects ORDER BY kind, tenant, name")
	if err != nil {
		return nil, err
	}
	return out, each(rows, func() error {
		o, err := s.scan(rows.Scan)
		out = append(out, o)
		return err
	})
}

func (s *SQL) tokensOf(ctx context.Context, q database.Querier, where string, args ...any) (out []AuditedToken, err error) {
	rows, err := q.QueryContext(ctx, "SELECT id, hash, name, account, expires FROM tokens WHERE "+where+" ORDER BY id", args...)
	if err != nil {
		return nil, err
	}
	return out, each(rows, func() error {
		var t AuditedToken
		err := rows.Scan(&t.ID, &t.Hash, &t.Name, &t.Account, &t.Expires)
		out = append(out, t)
		return err
	})
}

// tenantOfAccount is where a service account is; the platform's for one that is gone.
func (s *SQL) tenantOfAccount(ctx context.Context, q database.Querier, uid string) string {
	tenant := api.PlatformTenant
	_ = q.QueryRowContext(ctx, "SELECT tenant FROM objects WHERE kind = ? AND uid = ?", api.KindServiceAccount, uid).Scan(&tenant)
	return tenant
}
