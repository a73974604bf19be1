package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"slices"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Config says where the database is and what it is given.
type Config struct {
	// Place is where the database is: see database.Config. "" keeps it in memory, gone with
	// Close.
	Place string
	// Now is the clock of Created and Updated.
	Now func() time.Time
	// NewUID makes the UID of a new object, never the same twice.
	NewUID func() string
	// History is how many changes a watch can look back. Default 32,768.
	History int
	// Vault encrypts the values of secrets; nil keeps them in clear, and fails on those
	// that are encrypted.
	Vault *Vault
	// Auditor writes down what changed, in the transaction that changes it; may be nil.
	Auditor Auditor
	// Rooms brings the tables of other rooms up to date that share the store's transactions; may
	// be nil.
	Rooms func(context.Context, *database.DB) error
	// Sealed has rooms seal what they keep again, each value by again, when keys change. The
	// tables are there.
	Sealed func(ctx context.Context, tx *database.Tx, again func(place string, sealed []byte) ([]byte, error)) error
}

// SQL is a Store, a Manifests and a Tokens in one database. A commit is on the disk when it
// returns.
type SQL struct {
	cfg     Config
	db      *database.DB
	history *history
	deafen  func() // ends listening to other processes; nil where there are none

	rotation sync.Mutex // of keys
}

// Schema is where PostgreSQL has the tables of the store and of the rooms that share its
// transactions.
const Schema = "core"

// The statements that run for every device, every report and every request.
const (
	sqlGet   = "SELECT " + columns + " FROM objects WHERE kind = ? AND tenant = ? AND name = ?"
	sqlWrite = "INSERT INTO objects (" + columns + ") VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (kind, tenant, name) DO UPDATE SET uid = excluded.uid," +
		" labels = excluded.labels, annotations = excluded.annotations, spec = excluded.spec, status = excluded.status, revision = excluded.revision," +
		" generation = excluded.generation, created = excluded.created, updated = excluded.updated"
	sqlStatus    = "SELECT status FROM objects WHERE kind = ? AND tenant = ? AND name = ?"
	sqlPutStatus = "UPDATE objects SET status = ?, revision = ? WHERE kind = ? AND tenant = ? AND name = ?"
	sqlCount     = "SELECT value FROM meta WHERE key = ?"
	sqlSetCount  = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
	sqlToken     = "SELECT hash, name, account, expires FROM tokens WHERE id = ?"
	sqlPutBox    = "INSERT INTO boxes (device, tenant, name, public_key, seal_key, token) VALUES (?,?,?,?,?,?)" +
		" ON CONFLICT (device) DO UPDATE SET seal_key = excluded.seal_key, token = excluded.token"
)

// Open opens or creates the database and brings its schema up to date.
func Open(ctx context.Context, cfg Config) (_ *SQL, err error) {
	if cfg.History == 0 {
		cfg.History = 32768
	}
	s := &SQL{cfg: cfg}
	if s.db, err = database.Open(ctx, database.Config{Place: cfg.Place, Schema: Schema, Cache: 8192}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.db.Close())
		}
	}()
	if err := Migrate(ctx, s.db); err != nil {
		return nil, err
	}
	if cfg.Rooms != nil {
		if err := cfg.Rooms(ctx, s.db); err != nil {
			return nil, err
		}
	}
	if err := s.db.Prepare(ctx, sqlGet, sqlWrite, sqlStatus, sqlPutStatus, sqlCount, sqlSetCount, sqlToken, sqlPutBox); err != nil {
		return nil, err
	}
	revision, err := s.counter(ctx, s.db, "revision")
	if err != nil {
		return nil, err
	}
	s.history = newHistory(cfg.History, revision)
	if err := s.adoptTokens(ctx); err != nil {
		return nil, err
	}
	s.listen()
	return s, nil
}

// Migrate brings a database's schema up to date.
func Migrate(ctx context.Context, db *database.DB) error {
	if err := db.Migrate(ctx, migrations, database.VersionTable); err != nil {
		return err
	}
	return migrateRollouts(ctx, db)
}

// Close ends every watch and closes the database.
func (s *SQL) Close() error {
	s.history.close()
	if s.deafen != nil {
		s.deafen()
	}
	return s.db.Close()
}

// Database is where the store is, for rooms that share its transactions.
func (s *SQL) Database() *database.DB { return s.db }

// Vault is what seals, for rooms that share the database; nil where nothing is sealed.
func (s *SQL) Vault() *Vault { return s.cfg.Vault }

// BackupTo writes a consistent copy of the database to a new file of SQLite, while others
// write.
func (s *SQL) BackupTo(ctx context.Context, path string) error { return s.db.BackupTo(ctx, path) }

// writer is a writing transaction: it numbers the changes and remembers them.
type writer struct {
	*database.Tx
	revision int64
	changes  []change
	audit    []api.AuditEntry
}

// changed numbers a change of an object; the watchers hear of it after the commit.
func (w *writer) changed(c change) int64 {
	w.revision++
	c.revision = w.revision
	w.changes = append(w.changes, c)
	return w.revision
}

// tx runs f in a writing transaction and tells the watchers of its changes after the
// commit. errDryRun from f ends it without a commit and without an error. f runs again when
// the database says so.
//
// The counter of revisions is the first row that each takes, and holds till its end: the
// order of commits is that of revisions, whoever else writes.
func (s *SQL) tx(ctx context.Context, f func(w *writer) error) error {
	s.history.order.Lock()
	defer s.history.order.Unlock()
	var changes []change
	err := s.db.Write(ctx, func(tx *database.Tx) error {
		w := &writer{Tx: tx}
		var err error
		if w.revision, err = s.lockRevision(ctx, tx); err != nil {
			return err
		}
		if err := s.caughtUp(ctx, w); err != nil {
			return err
		}
		if err := f(w); err != nil {
			return err
		}
		if changes = w.changes; len(changes) == 0 {
			return s.auditAll(ctx, w)
		}
		if slices.ContainsFunc(changes, change.decides) {
			if err := setCounter(ctx, w, "access", w.revision); err != nil {
				return err
			}
		}
		if err := s.leave(ctx, w); err != nil {
			return err
		}
		if err := setCounter(ctx, w, "revision", w.revision); err != nil {
			return err
		}
		return s.auditAll(ctx, w)
	})
	if err == errDryRun {
		return nil
	}
	if err == nil {
		s.history.add(changes)
	}
	return err
}

// lockRevision reads the counter of revisions and keeps other writers from it.
func (s *SQL) lockRevision(ctx context.Context, tx *database.Tx) (v int64, err error) {
	if tx.Dialect() == database.SQLite {
		return s.counter(ctx, tx, "revision")
	}
	for range 2 {
		err = tx.QueryRowContext(ctx, sqlCount+tx.Dialect().ForUpdate(), "revision").Scan(&v)
		if !errors.Is(err, sql.ErrNoRows) {
			break
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO meta (key, value) VALUES ('revision', 0) ON CONFLICT (key) DO NOTHING"); err != nil {
			return 0, err
		}
	}
	return v, err
}

var errDryRun = errors.New("dry run")

// counter reads a number of the meta table; 0 when never written.
func (s *SQL) counter(ctx context.Context, q database.Querier, key string) (int64, error) {
	var v int64
	err := q.QueryRowContext(ctx, sqlCount, key).Scan(&v)
	if err == sql.ErrNoRows {
		return 0, nil
	}
	return v, err
}

func setCounter(ctx context.Context, q database.Querier, key string, v int64) error {
	_, err := q.ExecContext(ctx, sqlSetCount, key, v)
	return err
}

// Noted is a number that a room of the core noted; 0 when it never did.
func (s *SQL) Noted(ctx context.Context, name string) (int64, error) {
	return s.counter(ctx, s.db, "noted."+name)
}

// Note keeps a number for a room of the core.
func (s *SQL) Note(ctx context.Context, name string, v int64) error {
	return s.tx(ctx, func(w *writer) error { return setCounter(ctx, w, "noted."+name, v) })
}

// decides reports whether a change may alter who may do what.
func (c change) decides() bool {
	return !c.statusOnly && slices.Contains([]string{api.KindTenant, api.KindServiceAccount, api.KindRoleBinding, api.KindFleet}, c.key.Kind)
}

// AccessRevision is the revision of the last change that may alter who may do what.
func (s *SQL) AccessRevision(ctx context.Context) (int64, error) {
	return s.counter(ctx, s.db, "access")
}

// Epoch returns the core's epoch, at least 1: manifests are ordered by it first.
func (s *SQL) Epoch(ctx context.Context) (uint64, error) {
	v, err := s.counter(ctx, s.db, "epoch")
	return uint64(max(v, 1)), err
}

// epochGap is how many revisions a new epoch leaves out: more than a store writes between
// two backups, and room for millions of epochs in what JSON's numbers hold exactly.
const epochGap = 1_000_000_000

// Restored tells when the backup was made that this store was restored from; zero for a
// store that never was.
func (s *SQL) Restored(ctx context.Context) (time.Time, error) {
	v, err := s.counter(ctx, s.db, "restored")
	if v == 0 || err != nil {
		return time.Time{}, err
	}
	return time.Unix(v, 0), nil
}

// SetRestored notes when the backup was made that this store comes from.
func (s *SQL) SetRestored(ctx context.Context, made time.Time) error {
	return s.tx(ctx, func(w *writer) error { return setCounter(ctx, w, "restored", made.Unix()) })
}

// SetEpoch starts a higher epoch; an equal or lower one is refused (code Invalid).
func (s *SQL) SetEpoch(ctx context.Context, epoch uint64) error {
	return s.tx(ctx, func(w *writer) error {
		now, err := s.counter(ctx, w, "epoch")
		if err != nil {
			return err
		}
		if int64(epoch) <= max(now, 1) {
			return api.Errorf(api.Invalid, "epoch %d is not higher than %d", epoch, max(now, 1))
		}
		// What this store wrote after the copy was made that it comes from has revisions too,
		// and somebody may go on from one of those: they are left out, and listed again.
		w.revision += epochGap
		if err := setCounter(ctx, w, "revision", w.revision); err != nil {
			return err
		}
		s.history.jump(w.revision)
		return setCounter(ctx, w, "epoch", int64(epoch))
	})
}

// BackedUp reports whether a backup was ever made of this core.
func (s *SQL) BackedUp(ctx context.Context) (bool, error) {
	v, err := s.counter(ctx, s.db, "backups")
	return v > 0, err
}

// NoteBackup counts a backup that was made.
func (s *SQL) NoteBackup(ctx context.Context) error {
	return s.tx(ctx, func(w *writer) error {
		v, err := s.counter(ctx, w, "backups")
		if err != nil {
			return err
		}
		return setCounter(ctx, w, "backups", v+1)
	})
}
