// Package audit answers: who did what, and was any of that changed since?
//
// Each act is a row of one table, written in the transaction of what it tells of. A row's
// hash covers the row and the hash of the one before, and the newest hash is signed and kept
// outside of the database, by Heads. Verify holds all of that against each other, and against
// what the rows say that objects and tokens are.
package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Migrate brings the log's tables up to date. They are in the database of the store.
func Migrate(ctx context.Context, db *database.DB) error {
	return db.Migrate(ctx, migrations, "audit_db_version")
}

// canonical writes the same value always as the same bytes (RFC 8949, section 4.2.1).
var canonical = func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// Chain writes rows. All methods may be called from any goroutine.
type Chain struct {
	key Key
	now func() time.Time
}

// NewChain makes a writer.
func NewChain(key Key, now func() time.Time) *Chain { return &Chain{key: key, now: now} }

// epochOf is the core's epoch as the store has it.
func epochOf(ctx context.Context, q database.Querier) (epoch uint64, err error) {
	var v int64
	err = q.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = 'epoch'").Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return 1, nil
	}
	return uint64(max(v, 1)), err
}

const columns = "seq, epoch, time, tenant, tenant_name, actor, actor_name, how, source, request, action, kind, name, uid, old, new, outcome, message, count, hash"

// perInsert bounds the rows of one statement.
const perInsert = 200

// Append writes rows within a transaction of the store's database: after everything else, as it
// holds the end of the log until the transaction's own. Origin, unless an entry has its own, is
// that of ctx; Seq, Epoch, Time and Hash are the log's to set. An entry names its tenant by
// TenantName alone.
func (c *Chain) Append(ctx context.Context, tx *database.Tx, entries ...api.AuditEntry) error {
	if len(entries) == 0 {
		return nil
	}
	seq, hash, err := lockHead(ctx, tx)
	if err != nil {
		return err
	}
	epoch, err := epochOf(ctx, tx)
	if err != nil {
		return err
	}
	uids := map[string]string{}
	origin, now := api.OriginOf(ctx), c.now().UTC().Truncate(time.Millisecond)
	for at := 0; at < len(entries); at += perInsert {
		part := entries[at:min(at+perInsert, len(entries))]
		args := make([]any, 0, 20*len(part))
		for _, e := range part {
			seq++
			e.Seq, e.Epoch, e.Time = seq, epoch, now
			if e.Origin == (api.Origin{}) {
				e.Origin = origin
			}
			if err := settle(ctx, tx, &e, uids); err != nil {
				return err
			}
			hash = rowHash(hash, &e)
			args = append(args, e.Seq, int64(e.Epoch), e.Time.UnixMilli(), e.Tenant, e.TenantName, e.Actor, e.Name, e.How, e.Source, e.Request, e.Action, e.Kind, e.Object, e.UID, e.Old, e.New, e.Outcome, e.Message, e.Count, hash)
		}
		row := "(?" + strings.Repeat(",?", 19) + ")"
		if _, err := tx.ExecContext(ctx, "INSERT INTO audit ("+columns+") VALUES "+row+strings.Repeat(","+row, len(part)-1), args...); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, "UPDATE audit_head SET seq = ?, hash = ? WHERE id = 1", seq, hash)
	return err
}

// lockHead reads the end of the log and keeps others from writing there.
func lockHead(ctx context.Context, tx *database.Tx) (seq int64, hash []byte, err error) {
	for range 2 {
		err = tx.QueryRowContext(ctx, "SELECT seq, hash FROM audit_head WHERE id = 1"+tx.Dialect().ForUpdate()).Scan(&seq, &hash)
		if !errors.Is(err, sql.ErrNoRows) {
			break
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, ?) ON CONFLICT (id) DO NOTHING", make([]byte, sha256.Size)); err != nil {
			return 0, nil, err
		}
	}
	return seq, hash, err
}

// maxText bounds each text of a row.
const maxText = 1024

// settle brings an entry into the form in which it is stored, so that it reads back as it was hashed.
func settle(ctx context.Context, q database.Querier, e *api.AuditEntry, uids map[string]string) error {
	for _, s := range []*string{&e.TenantName, &e.Actor, &e.Name, &e.How, &e.Source, &e.Request, &e.Action, &e.Kind, &e.Object, &e.UID, &e.Outcome, &e.Message} {
		*s = clip(database.Legible(*s))
	}
	if e.Outcome == "" {
		e.Outcome = api.AuditDone
	}
	if e.TenantName == "" {
		e.TenantName = api.PlatformTenant
	}
	uid, known := uids[e.TenantName]
	if !known {
		var err error
		if uid, err = tenantUID(ctx, q, e.TenantName); err != nil {
			return err
		}
		uids[e.TenantName] = uid
	}
	if e.Tenant == "" {
		e.Tenant = uid
	}
	return nil
}

func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	for s = s[:maxText]; !utf8.ValidString(s); {
		s = s[:len(s)-1]
	}
	return s
}

// tenantUID is by what a tenant is known for ever. Those that are always there have no object,
// and their names are never another's. What belongs to a tenant that is not there is the platform's.
func tenantUID(ctx context.Context, q database.Querier, name string) (uid string, err error) {
	if name == api.PlatformTenant || name == api.DefaultTenant {
		return name, nil
	}
	err = q.QueryRowContext(ctx, "SELECT uid FROM objects WHERE kind = ? AND tenant = ? AND name = ?", api.KindTenant, api.DefaultTenant, name).Scan(&uid)
	if errors.Is(err, sql.ErrNoRows) {
		return api.PlatformTenant, nil
	}
	return uid, err
}

// hashed is what a row's hash covers, in this order for ever.
type hashed struct {
	_                                            struct{} `cbor:",toarray"`
	Before                                       []byte
	Seq, Epoch, Time                             int64
	Tenant, TenantName, Actor, Name, How, Source string
	Request, Action, Kind, Object, UID           string
	Old, New                                     []byte
	Outcome, Message                             string
	Count                                        int64
}

// rowHash is the hash of a row that follows one of a hash.
func rowHash(before []byte, e *api.AuditEntry) []byte {
	if len(e.Old) == 0 {
		e.Old = nil
	}
	if len(e.New) == 0 {
		e.New = nil
	}
	raw, err := canonical.Marshal(hashed{Before: before, Seq: e.Seq, Epoch: int64(e.Epoch), Time: e.Time.UnixMilli(), Tenant: e.Tenant, TenantName: e.TenantName, Actor: e.Actor, Name: e.Name, How: e.How,
		Source: e.Source, Request: e.Request, Action: e.Action, Kind: e.Kind, Object: e.Object, UID: e.UID, Old: e.Old, New: e.New, Outcome: e.Outcome, Message: e.Message, Count: e.Count})
	if err != nil {
		panic(err) // texts and numbers always encode
	}
	sum := sha256.Sum256(raw)
	return sum[:]
}

// Digest is a keyed digest of what people, and the core in their name, say of an object: all but
// what devices tell (the labels under api.Reserved, and the status but for what decides something).
// It is keyed, because else a short secret could be guessed from it.
func (c *Chain) Digest(o *api.Object) []byte { return c.key.digestObject(o) }

func (k Key) digestObject(o *api.Object) []byte {
	if o == nil {
		return nil
	}
	m := o.Metadata
	labels := map[string]string{}
	for name, v := range m.Labels {
		if !strings.HasPrefix(name, api.Reserved) {
			labels[name] = v
		}
	}
	annotations := m.Annotations
	if annotations == nil {
		annotations = map[string]string{}
	}
	return k.mac("object", o.Kind, m.Tenant, m.Name, m.UID, labels, annotations, append([]byte{}, o.Spec...), deciding(o))
}

// deciding is the part of a status by which something is decided and which no device tells.
func deciding(o *api.Object) []string {
	var s struct {
		ID           string `json:"id"`
		Token        string `json:"token"`
		Repo, Bundle string
	}
	_ = json.Unmarshal(o.Status, &s) // none decides nothing
	switch o.Kind {
	case api.KindDevice:
		return []string{s.ID}
	case api.KindJoinToken:
		return []string{s.Token}
	case api.KindApp:
		return []string{s.Repo, s.Bundle}
	}
	return []string{}
}

// mac is HMAC-SHA-256 over canonical CBOR.
func (k Key) mac(values ...any) []byte {
	raw, err := canonical.Marshal(values)
	if err != nil {
		panic(err) // texts, numbers and maps of texts always encode
	}
	sum := hmac.New(sha256.New, k.digests[:])
	sum.Write(raw)
	return sum.Sum(nil)
}

// End tells the sequence and the hash of the last row.
func End(ctx context.Context, q database.Querier) (seq int64, hash []byte, err error) {
	err = q.QueryRowContext(ctx, "SELECT seq, hash FROM audit_head WHERE id = 1").Scan(&seq, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, make([]byte, sha256.Size), nil
	}
	if err != nil {
		err = fmt.Errorf("read the end of the audit log: %w", err)
	}
	return seq, hash, err
}
