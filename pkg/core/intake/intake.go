// Package intake answers: what did devices report and record, counted exactly once?
//
// One database holds each device's reported state, its attachment, and the ledger of its
// records. Everything is written by one caller, the core's link, which hands over all that
// came in meanwhile: it shares one transaction, and nothing is acknowledged before its
// commit is on the disk.
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
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/link"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Config is what a store needs.
type Config struct {
	// Place is where the ledger is: see database.Config. A file's folder exists.
	Place string
	Now   func() time.Time
	Log   *slog.Logger
	// KeepUnbacked has devices keep what is counted until MarkSafe says that a backup
	// holds it. Without it, counted is safe.
	KeepUnbacked bool
	// Shared: other cores write this ledger, too, each what comes to it. What is kept in memory
	// of devices is then looked after in each transaction, and others hear of changes
	// (database.Tx.Say, on Said).
	Shared bool
	// Migrate brings the tables of all rooms up to date that share the ledger's database, so
	// that a backup has them. Nil: those of the ledger alone.
	Migrate func(context.Context, *database.DB) error
	// Changed is called after a commit for each device whose reported state or
	// attachment changed. It must return at once.
	Changed func(api.DeviceID)
}

// What is said to other cores of a ledger that is shared: devices of which something else is
// known now, and those of which a backup holds more.
const (
	Said     = "device"
	SaidSafe = "safe"
)

// Store implements link.CoreStore, and answers questions from any goroutine.
type Store struct {
	cfg     Config
	under   atomic.Pointer[context.Context]
	keeping atomic.Bool // KeepUnbacked, or turned on since
	db      *database.DB

	mu       sync.Mutex // of writing, and of what follows
	stale    bool       // devices may not be what the database says
	devices  map[api.DeviceID]*device
	services map[service]int64
	seen     map[api.DeviceID]time.Time // not yet written
}

var _ link.CoreStore = (*Store)(nil)

// Schema is where PostgreSQL has the tables of the ledger.
const Schema = "ledger"

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
			err = errors.Join(fmt.Errorf("open the ledger: %w", err), s.Close())
		}
	}()
	if s.db, err = database.Open(ctx, database.Config{Place: cfg.Place, Schema: Schema, Cache: 16384}); err != nil {
		return nil, err
	}
	migrate := cfg.Migrate
	if migrate == nil {
		migrate = Migrate
	}
	if err = migrate(ctx, s.db); err != nil {
		return nil, err
	}
	if err = s.db.Prepare(ctx, hot...); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// Database is the ledger's, for rooms whose tables are in it. It ends with the ledger.
func (s *Store) Database() *database.DB { return s.db }

// Migrate brings a database's schema up to date.
func Migrate(ctx context.Context, db *database.DB) error {
	return db.Migrate(ctx, migrations, database.VersionTable)
}

// Close writes what is pending and closes the database.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	err := errors.Join(s.flushSeen(context.Background()), s.db.Close())
	s.db = nil
	return err
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

// load reads what the writer keeps in memory of devices.
func (s *Store) load(ctx context.Context) error {
	rows, err := s.db.QueryContext(ctx, `SELECT `+deviceColumns+` FROM devices`)
	if err != nil {
		return err
	}
	defer rows.Close()
	devices := make(map[api.DeviceID]*device, len(s.devices))
	for rows.Next() {
		d, err := scanDevice(rows)
		if err != nil {
			return err
		}
		devices[d.id] = d
	}
	if err := rows.Err(); err != nil {
		return err
	}
	s.devices, s.stale = devices, false
	return nil
}

const deviceColumns = `dev, device, attachment, state_epoch, state_seq, epoch, acked, hash, safe`

// scanDevice reads a row of deviceColumns.
func scanDevice(rows *sql.Rows) (*device, error) {
	d := &device{}
	var id, hash []byte
	var stateEpoch, stateSeq, epoch, acked, safe int64
	if err := rows.Scan(&d.dev, &id, &d.attachment, &stateEpoch, &stateSeq, &epoch, &acked, &hash, &safe); err != nil {
		return nil, err
	}
	copy(d.id[:], id)
	d.stateEpoch, d.stateSeq = uint64(stateEpoch), uint64(stateSeq)
	d.epoch, d.acked, d.safe = uint64(epoch), uint64(acked), uint64(safe)
	d.known = hash != nil
	copy(d.hash[:], hash)
	return d, nil
}

// fresh makes memory what the database says again, after a transaction of which nobody knows
// how it ended: a server may have committed what it could not tell of.
func (s *Store) fresh(ctx context.Context) error {
	if !s.stale {
		return nil
	}
	clear(s.services)
	if err := s.load(ctx); err != nil {
		return fmt.Errorf("read the ledger's devices again: %w", s.db.Explain(err))
	}
	return nil
}

// Work has reported state and records taken in under the values of ctx: its fence, where several
// cores share the ledger. What is in memory is read anew.
func (s *Store) Work(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx = context.WithoutCancel(ctx) // what has begun is ended
	s.under.Store(&ctx)
	s.stale = s.stale || s.cfg.Shared
}

// work is the context of what comes in.
func (s *Store) work() context.Context {
	if ctx := s.under.Load(); ctx != nil {
		return *ctx
	}
	return context.Background()
}

// inTx runs fn in one transaction. What fn changes in memory it must change in clones, and
// hand over after the commit; it may run again.
func (s *Store) inTx(ctx context.Context, fn func(*database.Tx) error) error {
	err := s.db.Write(ctx, fn)
	s.stale = s.stale || err != nil && !errors.Is(err, errMoved)
	return err
}
