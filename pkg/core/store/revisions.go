package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// What is applied becomes a revision: immutable, numbered for each object, with the digests of
// what it refers to. The table given says which revision a device has, and the renderer reads
// nothing else. A plain write gives its revision to all at once, in its own transaction: a rollout
// of one wave. So that this costs one row however many devices there are, one row of an object is
// for all devices that have none of their own; a Rollout of several waves writes those.

//go:embed rollouts/migrations/*/*.sql
var rolloutFiles embed.FS

// rolloutVersions is where the version of these tables stands: they are a room of their own.
const rolloutVersions = "rollout_db_version"

func migrateRollouts(ctx context.Context, db *database.DB) error {
	files, err := fs.Sub(rolloutFiles, "rollouts")
	if err != nil {
		return err
	}
	return db.Migrate(ctx, files, rolloutVersions)
}

// Revision is what an object was at one time.
type Revision struct {
	Key    api.Key
	Number int64
	// Digest is "sha256:…" of what it says and pins; a Secret's covers a random number too, so
	// that it tells nothing of the values.
	Digest string
	Pins   []api.Pin
	// Spec and Status are as they were; a revoked one has none.
	Spec, Status json.RawMessage
	Created      int64 // Unix milliseconds
	Revoked      int64 // likewise; 0: it is not
}

// Object is what it says, as an object.
func (r *Revision) Object() *api.Object {
	return &api.Object{APIVersion: api.Version, Kind: r.Key.Kind, Metadata: api.Meta{Tenant: r.Key.Tenant, Name: r.Key.Name}, Spec: r.Spec, Status: r.Status}
}

// Given is which revisions of an object devices have.
type Given struct {
	// All is that of every device without one of its own; 0: they have none.
	All int64
	// Own are those of single devices.
	Own map[api.DeviceID]OwnRevision
	// Revisions holds those that are named.
	Revisions map[int64]*Revision
}

// OwnRevision is one device's revision of an object; 0: it has none.
type OwnRevision struct {
	Number int64
	Permit *api.Permit
	// Rollout is the UID of who gave it, or Pinned.
	Rollout string
}

// Pinned stands for a person, whom no rollout overrules.
const Pinned = "pin"

// Revisions tells what was applied, and who has what of it.
type Revisions interface {
	// GivenOf tells which revisions devices have of objects; keys nil: of all objects. Of what
	// nobody ever had there is no entry.
	GivenOf(ctx context.Context, keys []api.Key) (map[api.Key]*Given, error)
	// Revision returns one, the newest for the number 0; code NotFound when there is none.
	Revision(ctx context.Context, key api.Key, number int64) (*Revision, error)
}

const revisionColumns = "kind, tenant, name, number, digest, pins, spec, status, created, revoked"

// revisionsKept is how many of an object's revisions stay that no device has.
const revisionsKept = 50

// revise keeps a written object as a revision where its content is new, and gives it to all unless
// it is held or a rollout is under way.
func (s *SQL) revise(ctx context.Context, w *writer, o *api.Object, hold bool) error {
	if !api.HasRevisions(o.Kind) {
		return nil
	}
	key := o.Key()
	last, err := s.revision(ctx, w, key, 0)
	if err != nil && api.CodeOf(err) != api.NotFound {
		return err
	}
	r := &Revision{Key: key, Number: 1, Spec: o.Spec, Created: o.Metadata.Updated.UnixMilli()}
	if o.Kind == api.KindApp {
		r.Status = o.Status
	}
	if r.Pins, err = s.pinsOf(ctx, w, o); err != nil {
		return err
	}
	if last != nil {
		if last.Revoked == 0 && bytes.Equal(last.Spec, r.Spec) && bytes.Equal(last.Status, r.Status) {
			return nil
		}
		r.Number = last.Number + 1
	}
	if err := s.keepRevision(ctx, w, r); err != nil || hold {
		return err
	}
	res, err := w.ExecContext(ctx, "UPDATE busy SET next = ? WHERE kind = ? AND tenant = ? AND name = ?", r.Number, key.Kind, key.Tenant, key.Name)
	if err != nil {
		return err
	}
	if waits, err := res.RowsAffected(); err != nil || waits > 0 {
		return err
	}
	return s.plain(ctx, w, key, r.Number)
}

// turn gives a revision to all devices that have none of their own, and notes it.
func (s *SQL) turn(ctx context.Context, w *writer, key api.Key, number int64, rollout string) error {
	var before, seq int64
	err := w.QueryRowContext(ctx, "SELECT revision FROM given WHERE kind = ? AND tenant = ? AND name = ? AND device = ''", key.Kind, key.Tenant, key.Name).Scan(&before)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if before == number {
		return nil
	}
	if err := w.QueryRowContext(ctx, "SELECT COALESCE(MAX(seq), 0) FROM turns WHERE kind = ? AND tenant = ? AND name = ?", key.Kind, key.Tenant, key.Name).Scan(&seq); err != nil {
		return err
	}
	if _, err := w.ExecContext(ctx, "INSERT INTO given (kind, tenant, name, device, revision, rollout) VALUES (?,?,?,'',?,?)"+
		" ON CONFLICT (kind, tenant, name, device) DO UPDATE SET revision = excluded.revision, rollout = excluded.rollout", key.Kind, key.Tenant, key.Name, number, rollout); err != nil {
		return err
	}
	_, err = w.ExecContext(ctx, "INSERT INTO turns (kind, tenant, name, seq, revision, before, rollout, time) VALUES (?,?,?,?,?,?,?,?)",
		key.Kind, key.Tenant, key.Name, seq+1, number, before, rollout, s.cfg.Now().UnixMilli())
	return err
}

// pinsOf are the newest revisions of what an object refers to.
func (s *SQL) pinsOf(ctx context.Context, q database.Querier, o *api.Object) (pins []api.Pin, err error) {
	if o.Kind != api.KindApp {
		return nil, nil
	}
	var status api.AppObjectStatus
	_ = json.Unmarshal(orEmpty(o.Status), &status) // one that cannot be read refers to nothing
	for kind, names := range map[string][]string{api.KindConfig: status.Configs, api.KindSecret: status.Secrets} {
		for _, name := range names {
			p := api.Pin{Kind: kind, Name: name}
			err := q.QueryRowContext(ctx, "SELECT number, digest FROM revisions WHERE kind = ? AND tenant = ? AND name = ? ORDER BY number DESC LIMIT 1",
				kind, o.Metadata.Tenant, name).Scan(&p.Revision, &p.Digest)
			if errors.Is(err, sql.ErrNoRows) {
				continue // it does not exist yet
			}
			if err != nil {
				return nil, err
			}
			pins = append(pins, p)
		}
	}
	slices.SortFunc(pins, func(a, b api.Pin) int { return strings.Compare(a.Kind+"/"+a.Name, b.Kind+"/"+b.Name) })
	return pins, nil
}

// saltSize is how many random bytes come before a Secret's spec.
const saltSize = 16

// keepRevision writes a new revision, and drops the oldest that nobody has any more.
func (s *SQL) keepRevision(ctx context.Context, w *writer, r *Revision) error {
	pins, err := json.Marshal(r.Pins)
	if err != nil {
		return err
	}
	spec := []byte(r.Spec)
	if r.Key.Kind == api.KindSecret {
		salt := make([]byte, saltSize)
		_, _ = rand.Read(salt) // crypto/rand.Read never fails
		spec = append(salt, spec...)
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(r.Key.Kind), spec, r.Status, pins} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	r.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	if r.Key.Kind == api.KindSecret && s.cfg.Vault != nil {
		spec = s.cfg.Vault.seal(revisionPlace(r.Key, r.Number), spec)
	}
	k := r.Key
	if _, err := w.ExecContext(ctx, "INSERT INTO revisions ("+revisionColumns+") VALUES (?,?,?,?,?,?,?,?,?,0)", k.Kind, k.Tenant, k.Name, r.Number, r.Digest, string(pins), spec, []byte(r.Status), r.Created); err != nil {
		return err
	}
	_, err = w.ExecContext(ctx, "DELETE FROM revisions WHERE kind = ?1 AND tenant = ?2 AND name = ?3 AND number <= ?4"+
		" AND number NOT IN (SELECT revision FROM given WHERE kind = ?1 AND tenant = ?2 AND name = ?3)", k.Kind, k.Tenant, k.Name, r.Number-revisionsKept)
	return err
}

// revisionPlace binds a Secret's revision to its row.
func revisionPlace(k api.Key, number int64) string {
	return fmt.Sprintf("revision\x00%s\x00%s\x00%d", k.Tenant, k.Name, number)
}

func (s *SQL) scanRevision(scan func(...any) error) (*Revision, error) {
	r := &Revision{}
	var pins string
	var spec, status []byte
	if err := scan(&r.Key.Kind, &r.Key.Tenant, &r.Key.Name, &r.Number, &r.Digest, &pins, &spec, &status, &r.Created, &r.Revoked); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(pins), &r.Pins); err != nil {
		return nil, err
	}
	if r.Key.Kind == api.KindSecret && r.Revoked == 0 {
		var err error
		if spec, err = s.cfg.Vault.open(revisionPlace(r.Key, r.Number), spec); err != nil {
			return nil, fmt.Errorf("revision %d of %s: %w", r.Number, r.Key, err)
		}
		spec = spec[min(saltSize, len(spec)):]
	}
	r.Spec, r.Status = spec, status
	return r, nil
}

// Revision implements Revisions.
func (s *SQL) Revision(ctx context.Context, key api.Key, number int64) (*Revision, error) {
	return s.revision(ctx, s.db, key, number)
}

func (s *SQL) revision(ctx context.Context, q database.Querier, key api.Key, number int64) (*Revision, error) {
	text, args := "SELECT "+revisionColumns+" FROM revisions WHERE kind = ? AND tenant = ? AND name = ?", []any{key.Kind, key.Tenant, key.Name}
	if number != 0 {
		text, args = text+" AND number = ?", append(args, number)
	}
	gone := &api.Error{Code: api.NotFound, Message: fmt.Sprintf("there is no revision %d of %s %s", number, key.Kind, key.Name), Remedy: "see `edgectl rollout history " + strings.ToLower(key.Kind) + "/" + key.Name + "`"}
	if !storable(key) {
		return nil, gone
	}
	r, err := s.scanRevision(q.QueryRowContext(ctx, text+" ORDER BY number DESC LIMIT 1", args...).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, gone
	}
	return r, err
}

// GivenOf implements Revisions.
func (s *SQL) GivenOf(ctx context.Context, keys []api.Key) (map[api.Key]*Given, error) {
	out := map[api.Key]*Given{}
	err := s.db.Read(ctx, func(tx *database.Tx) error {
		if keys == nil {
			return s.givenOf(ctx, tx, out, "", nil)
		}
		for _, k := range keys {
			if !storable(k) {
				continue
			}
			if err := s.givenOf(ctx, tx, out, " WHERE g.kind = ? AND g.tenant = ? AND g.name = ?", []any{k.Kind, k.Tenant, k.Name}); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func (s *SQL) givenOf(ctx context.Context, q database.Querier, out map[api.Key]*Given, where string, args []any) error {
	rows, err := q.QueryContext(ctx, "SELECT g.kind, g.tenant, g.name, g.device, g.revision, g.rollout, g.permit FROM given g"+where, args...)
	if err != nil {
		return err
	}
	err = each(rows, func() error {
		var k api.Key
		var device string
		var own OwnRevision
		var permit []byte
		if err := rows.Scan(&k.Kind, &k.Tenant, &k.Name, &device, &own.Number, &own.Rollout, &permit); err != nil {
			return err
		}
		g := out[k]
		if g == nil {
			g = &Given{Own: map[api.DeviceID]OwnRevision{}, Revisions: map[int64]*Revision{}}
			out[k] = g
		}
		if device == "" {
			g.All = own.Number
			return nil
		}
		id, err := api.ParseDeviceID(device)
		if err != nil {
			return err
		}
		if len(permit) > 0 {
			if err := json.Unmarshal(permit, &own.Permit); err != nil {
				return err
			}
		}
		g.Own[id] = own
		return nil
	})
	if err != nil {
		return err
	}
	rows, err = q.QueryContext(ctx, "SELECT "+revisionColumns+" FROM revisions WHERE (kind, tenant, name, number) IN (SELECT g.kind, g.tenant, g.name, g.revision FROM given g"+where+")", args...)
	if err != nil {
		return err
	}
	return each(rows, func() error {
		r, err := s.scanRevision(rows.Scan)
		if err == nil {
			out[r.Key].Revisions[r.Number] = r
		}
		return err
	})
}

// EachArtifact calls f with the status of every revision of every App that is kept, until f fails.
func (s *SQL) EachArtifact(ctx context.Context, f func(status []byte) error) error {
	rows, err := s.db.QueryContext(ctx, "SELECT status FROM revisions WHERE kind = ?", api.KindApp)
	if err != nil {
		return err
	}
	return each(rows, func() error {
		var status []byte
		if err := rows.Scan(&status); err != nil || len(status) == 0 {
			return err
		}
		return f(status)
	})
}

// AdoptRevisions makes the first revisions of objects that are older than revisions are. It may be
// called at every start.
func (s *SQL) AdoptRevisions(ctx context.Context) error {
	done, err := s.counter(ctx, s.db, "revisions")
	if err != nil || done > 0 {
		return err
	}
	return s.tx(ctx, func(w *writer) error {
		rows, err := w.QueryContext(ctx, "SELECT "+columns+" FROM objects ORDER BY kind, tenant, name")
		if err != nil {
			return err
		}
		var old []*api.Object
		if err := each(rows, func() error {
			o, err := s.scan(rows.Scan)
			if err == nil && api.HasRevisions(o.Kind) {
				old = append(old, o)
			}
			return err
		}); err != nil {
			return err
		}
		// An app pins what it refers to: that comes first.
		slices.SortStableFunc(old, func(a, b *api.Object) int { return rank(a.Kind) - rank(b.Kind) })
		for _, o := range old {
			if err := s.revise(ctx, w, o, false); err != nil {
				return err
			}
		}
		return setCounter(ctx, w, "revisions", 1)
	})
}

func rank(kind string) int {
	return slices.IndexFunc(api.Kinds, func(k api.Kind) bool { return k.Name == kind })
}

// forget drops what is kept of an object that is deleted, or of a device.
func (s *SQL) forget(ctx context.Context, w *writer, old *api.Object) error {
	if old.Kind == api.KindDevice {
		var status api.DeviceStatus
		_ = json.Unmarshal(orEmpty(old.Status), &status) // one that cannot be read was never given anything
		for _, table := range []string{"given", "rollout_devices", "slots"} {
			if _, err := w.ExecContext(ctx, "DELETE FROM "+table+" WHERE device = ?", status.ID.String()); err != nil {
				return err
			}
		}
	}
	if old.Kind == api.KindRollout {
		return s.forgetRollout(ctx, w, old)
	}
	if !api.HasRevisions(old.Kind) {
		return nil
	}
	k := old.Key()
	for _, table := range []string{"revisions", "given", "turns", "busy"} {
		if _, err := w.ExecContext(ctx, "DELETE FROM "+table+" WHERE kind = ? AND tenant = ? AND name = ?", k.Kind, k.Tenant, k.Name); err != nil {
			return err
		}
	}
	return nil
}

// resealRevisions does the revisions of secrets, and reports whether any was in clear.
func (s *SQL) resealRevisions(ctx context.Context, w *writer) (clear bool, err error) {
	rows, err := w.QueryContext(ctx, "SELECT tenant, name, number, spec FROM revisions WHERE kind = ? AND revoked = 0", api.KindSecret)
	if err != nil {
		return false, err
	}
	type row struct {
		key    api.Key
		number int64
		spec   []byte
	}
	var todo []row
	if err = each(rows, func() error {
		r := row{key: api.Key{Kind: api.KindSecret}}
		if err := rows.Scan(&r.key.Tenant, &r.key.Name, &r.number, &r.spec); err != nil {
			return err
		}
		if !s.cfg.Vault.current(r.spec) {
			todo = append(todo, r)
		}
		return nil
	}); err != nil {
		return false, err
	}
	for _, r := range todo {
		clear = clear || !isSealed(r.spec)
		plain, err := s.cfg.Vault.open(revisionPlace(r.key, r.number), r.spec)
		if err != nil {
			return false, fmt.Errorf("revision %d of %s: %w", r.number, r.key, err)
		}
		if _, err := w.ExecContext(ctx, "UPDATE revisions SET spec = ? WHERE kind = ? AND tenant = ? AND name = ? AND number = ?",
			s.cfg.Vault.seal(revisionPlace(r.key, r.number), plain), r.key.Kind, r.key.Tenant, r.key.Name, r.number); err != nil {
			return false, err
		}
	}
	return clear, nil
}
