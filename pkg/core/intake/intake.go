// Package intake answers: what did devices report and record, counted exactly once?
//
// One SQLite file holds each device's reported state, its attachment, and the ledger of
// its records. Everything is written by one caller, the core's link, which hands over
// all that came in meanwhile: it shares one transaction, and nothing is acknowledged
// before its commit is on the disk (WAL, synchronous=FULL).
package intake

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/sqlite"
	"tributary.dev/tributary/pkg/link"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is what a store needs.
type Config struct {
	// Path of ledger.db; its folder exists.
	Path string
	Now  func() time.Time
	Log  *slog.Logger
	// KeepUnbacked has devices keep what is counted until MarkSafe says that a backup
	// holds it. Without it, counted is safe.
	KeepUnbacked bool
	// Changed is called after a commit for each device whose reported state or
	// attachment changed. It must return at once.
	Changed func(api.DeviceID)
}

// Store implements link.CoreStore, and answers questions from any goroutine.
type Store struct {
	cfg     Config
	keeping atomic.Bool // KeepUnbacked, or turned on since
	write   *sql.DB
	read    *sql.DB

	mu       sync.Mutex // of writing, and of what follows
	stmts    *statements
	devices  map[api.DeviceID]*device
	services map[service]int64
	seen     map[api.DeviceID]time.Time // not yet written
}

var _ link.CoreStore = (*Store)(nil)

// service names who used something.
type service struct{ app, name string }

// Open opens or creates the ledger and brings its schema up to date.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, devices: make(map[api.DeviceID]*device), services: make(map[service]int64), seen: make(map[api.DeviceID]time.Time)}
	s.keeping.Store(cfg.KeepUnbacked)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the ledger %s: %w", cfg.Path, err), s.Close())
		}
	}()
	if s.write, err = sqlite.Open(cfg.Path, sqlite.Options{Conns: 1, Cache: 16384}); err != nil {
		return nil, err
	}
	if err = sqlite.Migrate(ctx, s.write, migrations); err != nil {
		return nil, err
	}
	if s.read, err = sqlite.Open(cfg.Path, sqlite.Options{Conns: 4}); err != nil {
		return nil, err
	}
	if s.stmts, err = prepare(ctx, s.write); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// Close writes what is pending and closes the database.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.write != nil && s.stmts != nil {
		errs = append(errs, s.flushSeen(context.Background()))
	}
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	s.read, s.write = nil, nil
	return errors.Join(errs...)
}

// device is what the writer keeps in memory of one device.
type device struct {
	id         api.DeviceID
	dev        int64 // its number in the file; 0 before it is written
	attachment []byte
	stateEpoch uint64
	stateSeq   uint64
	position
	recent [recentBatches]boundary // newest first
}

// clone copies the device for a transaction that may fail.
func (d *device) clone() *device { c := *d; return &c }

func (s *Store) load(ctx context.Context) error {
	rows, err := s.write.QueryContext(ctx, `SELECT dev, device, attachment, state_epoch, state_seq, epoch, acked, hash, safe FROM devices`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		d := &device{}
		var id, hash []byte
		var stateEpoch, stateSeq, epoch, acked, safe int64
		if err := rows.Scan(&d.dev, &id, &d.attachment, &stateEpoch, &stateSeq, &epoch, &acked, &hash, &safe); err != nil {
			return err
		}
		copy(d.id[:], id)
		d.stateEpoch, d.stateSeq = uint64(stateEpoch), uint64(stateSeq)
		d.epoch, d.acked, d.safe = uint64(epoch), uint64(acked), uint64(safe)
		d.known = hash != nil
		copy(d.hash[:], hash)
		s.devices[d.id] = d
	}
	return rows.Err()
}

// inTx runs fn in one transaction. What fn changed in memory it must change in clones,
// and hand over after the commit.
func (s *Store) inTx(ctx context.Context, fn func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
