package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config says where the database is and what it is given.
type Config struct {
	// Path of the database file; "" keeps it in memory, gone with Close.
	Path string
	// Now is the clock of Created and Updated.
	Now func() time.Time
	// NewUID makes the UID of a new object, never the same twice.
	NewUID func() string
	// History is how many changes a watch can look back. Default 32,768.
	History int
	// Vault encrypts the values of secrets; nil keeps them in clear, and fails on those
	// that are encrypted.
	Vault *Vault
}

// SQLite is a Store, a Manifests and a Tokens in one database file. It has one writing
// connection and a few reading ones; a commit is on the disk when it returns
// (WAL, synchronous=FULL).
type SQLite struct {
	cfg     Config
	write   *sql.DB
	read    *reader
	hot     hot // of write
	history *history

	rotation sync.Mutex // of keys
}

// OpenSQLite opens or creates the database and brings its schema up to date.
func OpenSQLite(ctx context.Context, cfg Config) (*SQLite, error) {
	if cfg.History == 0 {
		cfg.History = 32768
	}
	s := &SQLite{cfg: cfg}
	var err error
	if s.write, err = sqlite.Open(cfg.Path, sqlite.Options{Conns: 1, Cache: 8192, ForeignKeys: true}); err != nil {
		return nil, err
	}
	s.read = &reader{DB: s.write} // a database in memory belongs to one connection
	if cfg.Path != "" {
		db, err := sqlite.Open(cfg.Path, sqlite.Options{Conns: 4, ForeignKeys: true})
		if err != nil {
			s.write.Close()
			return nil, err
		}
		s.read = &reader{DB: db}
	}
	if err := sqlite.Migrate(ctx, s.write, migrations); err != nil {
		s.Close()
		return nil, fmt.Errorf("%s: %w", cfg.Path, err)
	}
	if s.hot, err = prepare(ctx, s.write, sqlGet, sqlWrite, sqlStatus, sqlPutStatus, sqlCount, sqlSetCount, sqlPutBox); err == nil {
		s.read.hot, err = prepare(ctx, s.read.DB, sqlGet, sqlCount, sqlToken)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	revision, err := s.counter(ctx, s.read, "revision")
	if err != nil {
		s.Close()
		return nil, err
	}
	s.history = newHistory(cfg.History, revision)
	return s, nil
}

// Close ends every watch and closes the database.
func (s *SQLite) Close() error {
	if s.history != nil {
		s.history.close()
	}
	if s.read.DB != s.write {
		s.read.Close()
	}
	return s.write.Close()
}

// BackupTo writes a consistent copy of the database to a new file, while others write.
func (s *SQLite) BackupTo(ctx context.Context, path string) error {
	_, err := s.read.ExecContext(ctx, "VACUUM INTO ?", path)
	return err
}

// querier is what a database and a transaction have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// writer is a writing transaction: it numbers the changes and remembers them.
type writer struct {
	*sql.Tx
	hot      hot
	revision int64
	changes  []change
}

// changed numbers a change of an object; the watchers hear of it after the commit.
func (w *writer) changed(c change) int64 {
	w.revision++
	c.revision = w.revision
	w.changes = append(w.changes, c)
	return w.revision
}

// tx runs f in a writing transaction and tells the watchers of its changes after the
// commit. errDryRun from f ends it without a commit and without an error.
func (s *SQLite) tx(ctx context.Context, f func(w *writer) error) error {
	s.history.order.Lock()
	defer s.history.order.Unlock()
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	w := &writer{Tx: tx, hot: s.hot}
	if w.revision, err = s.counter(ctx, w, "revision"); err != nil {
		return err
	}
	if err := f(w); err == errDryRun {
		return nil
	} else if err != nil {
		return err
	}
	if len(w.changes) > 0 {
		if err := setCounter(ctx, w, "revision", w.revision); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	s.history.add(w.changes)
	return nil
}

var errDryRun = errors.New("dry run")

// counter reads a number of the meta table; 0 when never written.
func (s *SQLite) counter(ctx context.Context, q querier, key string) (int64, error) {
	var v int64
	err := q.QueryRowContext(ctx, sqlCount, key).Scan(&v)
	if err == sql.ErrNoRows {
		return 0, nil
	}
	return v, err
}

func setCounter(ctx context.Context, q querier, key string, v int64) error {
	_, err := q.ExecContext(ctx, sqlSetCount, key, v)
	return err
}

// Epoch returns the core's epoch, at least 1: manifests are ordered by it first.
func (s *SQLite) Epoch(ctx context.Context) (uint64, error) {
	v, err := s.counter(ctx, s.read, "epoch")
	return uint64(max(v, 1)), err
}

// epochGap is how many revisions a new epoch leaves out: more than a store writes between
// two backups, and room for millions of epochs in what JSON's numbers hold exactly.
const epochGap = 1_000_000_000

// Restored tells when the backup was made that this store was restored from; zero for a
// store that never was.
func (s *SQLite) Restored(ctx context.Context) (time.Time, error) {
	v, err := s.counter(ctx, s.read, "restored")
	if v == 0 || err != nil {
		return time.Time{}, err
	}
	return time.Unix(v, 0), nil
}

// SetRestored notes when the backup was made that this store comes from.
func (s *SQLite) SetRestored(ctx context.Context, made time.Time) error {
	return s.tx(ctx, func(w *writer) error { return setCounter(ctx, w, "restored", made.Unix()) })
}

// SetEpoch starts a higher epoch; an equal or lower one is refused (code Invalid).
func (s *SQLite) SetEpoch(ctx context.Context, epoch uint64) error {
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
func (s *SQLite) BackedUp(ctx context.Context) (bool, error) {
	v, err := s.counter(ctx, s.read, "backups")
	return v > 0, err
}

// NoteBackup counts a backup that was made.
func (s *SQLite) NoteBackup(ctx context.Context) error {
	return s.tx(ctx, func(w *writer) error {
		v, err := s.counter(ctx, w, "backups")
		if err != nil {
			return err
		}
		return setCounter(ctx, w, "backups", v+1)
	})
}
