// Package state answers: what must a device still know after its power was cut, and
// how does it get that back when the disk has damaged it?
//
// One bbolt file holds it all: the link's manifest, floors and reported entries, the
// spool's cursor, app bundles, the meter's baselines. The file is made by creating it
// under another name and renaming it; it is checked page by page before it is mapped
// (check.go); a verified copy is made beside it (copy.go), soon after each change of
// the manifest and every now and then. A file that fails the check is moved aside and
// rebuilt from the copy, or from nothing: the parent then fills in the rest. The
// warning "state-rebuilt" tells of it.
package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Config is what a Store is made of. Path and Log are required.
type Config struct {
	// Path is the bbolt file. Beside it stand Path.copy (the verified copy), Path.bad
	// (the last file that failed the check) and Path.reserve (room for a full disk).
	Path string
	// CopyAfter is the least time between two copies (default 10 s), CopyEvery the
	// longest while there are changes (default 10 min).
	CopyAfter, CopyEvery time.Duration
	Now                  func() time.Time
	Log                  *slog.Logger
}

// Origin says where the content came from when the store was opened.
type Origin int

// The origins.
const (
	Intact    Origin = iota // the file as it was left
	Fresh                   // there was none
	FromCopy                // damaged; the verified copy took its place
	FromEmpty               // damaged, and so was the copy
)

func (o Origin) String() string {
	return [...]string{"intact", "fresh", "rebuilt from the verified copy", "rebuilt from nothing"}[o]
}

// Rebuilt reports whether the content may be older than what this device has told
// others.
func (o Origin) Rebuilt() bool { return o == FromCopy || o == FromEmpty }

// Store is the open file. It is safe for use by many goroutines. It implements
// link.Store.
type Store struct {
	cfg    Config
	db     *bbolt.DB
	origin Origin

	writing sync.Mutex // one write at a time, so that late changes keep their order
	mu      sync.Mutex
	late    map[pair]pending // committed without sync, not yet in the file
	order   uint64
	full    time.Time // since when writes fail for want of room; zero when they do not
	tight   time.Time // since when the disk has next to no room; zero when it has
	free    uint64    // bytes, when last looked at
	rebuilt time.Time
	copied  time.Time
	badCopy error
	dirty   bool
	kick    chan struct{}
}

// lateWait is how long an unsynced commit may stay in memory.
const lateWait = 2 * time.Second

// maxLate bounds the pairs that wait.
const maxLate = 4096

var ownBucket = []byte("state") // this package's own notes

// Open opens, checks, and where needed rebuilds or makes the file. It fails when
// another process holds it, and when the disk does not let it be made.
func Open(cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.CopyAfter == 0 {
		cfg.CopyAfter = 10 * time.Second
	}
	if cfg.CopyEvery == 0 {
		cfg.CopyEvery = 10 * time.Minute
	}
	s := &Store{cfg: cfg, late: map[pair]pending{}, kick: make(chan struct{}, 1)}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("state %s: %w", cfg.Path, err)
	}
	s.reserve()
	if err := s.noteOrigin(); err != nil {
		s.db.Close()
		return nil, fmt.Errorf("state %s: %w", cfg.Path, err)
	}
	s.allocate()
	return s, nil
}

func (s *Store) open() error {
	err := CheckFile(s.cfg.Path)
	if err == nil {
		s.db, err = openBolt(s.cfg.Path)
		if errors.Is(err, berrors.ErrTimeout) {
			return errors.New("another edged is using it")
		}
	}
	switch {
	case err == nil:
		s.origin = Intact
		return nil
	case errors.Is(err, fs.ErrNotExist):
		s.origin = Fresh
	case errors.Is(err, ErrCorrupt):
		s.cfg.Log.Error("state file is damaged", "path", s.cfg.Path, "err", err)
		s.origin = FromEmpty
		if err := os.Rename(s.cfg.Path, s.cfg.Path+".bad"); err != nil {
			return err
		}
	default:
		return err
	}
	if s.restoreCopy() {
		s.origin = FromCopy
	} else if err := create(s.cfg.Path); err != nil {
		return err
	}
	s.db, err = openBolt(s.cfg.Path)
	return err
}

// openBolt opens a file that passed Check. A fault while bbolt looks at it counts as
// damage too: the disk may give other bytes the second time.
func openBolt(path string) (db *bbolt.DB, err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
}

// create makes an empty file under another name and renames it when it is whole.
func create(path string) error {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openBolt(temp)
	if err != nil {
		return err
	}
	for range 2 { // both meta pages then know of no free list
		err = errors.Join(err, db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucketIfNotExists(ownBucket); return err }))
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return putInPlace(temp, path)
}

func putInPlace(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// noteOrigin remembers a rebuild, so that its warning outlives a restart. A start after which
// nothing has changed writes nothing: it would wait for the disk.
func (s *Store) noteOrigin() error {
	key, noted := []byte("rebuilt"), false
	err := s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(ownBucket)
		if b == nil {
			return nil
		}
		noted = true
		if v := b.Get(key); len(v) == 8 {
			s.rebuilt = time.Unix(int64(binary.BigEndian.Uint64(v)), 0)
		}
		return nil
	})
	if err != nil || noted && !s.origin.Rebuilt() {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(ownBucket)
		if err != nil || !s.origin.Rebuilt() {
			return err
		}
		s.rebuilt = s.cfg.Now()
		return b.Put(key, binary.BigEndian.AppendUint64(nil, uint64(s.rebuilt.Unix())))
	})
}

// DB is the bbolt file, for parts that keep their own buckets (the spool's cursor).
func (s *Store) DB() *bbolt.DB { return s.db }

// Origin says where the content came from.
func (s *Store) Origin() Origin { return s.origin }

// showRebuilt is how long the warning of a rebuild is shown.
const showRebuilt = 24 * time.Hour

// Warnings are state-rebuilt, disk-full and state-copy-stale, where they apply.
func (s *Store) Warnings() []api.Warning {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []api.Warning
	if !s.rebuilt.IsZero() && s.cfg.Now().Sub(s.rebuilt) < showRebuilt {
		out = append(out, api.Warning{Name: "state-rebuilt", Severity: api.Degraded, Since: s.rebuilt.Unix(),
			Message: "the state file was damaged and has been rebuilt; if it comes again, replace the disk"})
	}
	if w, ok := s.fullWarning(); ok {
		out = append(out, w)
	}
	if s.badCopy != nil {
		out = append(out, api.Warning{Name: "state-copy-stale", Severity: api.Degraded, Since: s.copied.Unix(),
			Message: "the state file cannot be copied: " + s.badCopy.Error()})
	}
	return out
}

// Run writes late commits and makes verified copies until ctx ends; then it writes
// what is left and makes a last copy where something changed.
func (s *Store) Run(ctx context.Context) error {
	flush := time.NewTicker(lateWait)
	defer flush.Stop()
	s.lookAtRoom()
	for {
		select {
		case <-ctx.Done():
			s.flushLate()
			s.copyIfDue(0)
			return nil
		case <-flush.C:
			s.flushLate()
			s.lookAtRoom()
			s.allocate()
			s.copyIfDue(s.cfg.CopyEvery)
			s.reserve()
		case <-s.kick:
			s.copyIfDue(s.cfg.CopyAfter)
		}
	}
}

// Close closes the file; nothing may be called after it. Late commits are written.
func (s *Store) Close() error {
	s.flushLate()
	return s.db.Close()
}

// reserveBytes is given up when the disk is full, so that the next commits have room.
const reserveBytes = 512 << 10

// reserve takes back what was given up, where there is room and the disk is not full.
func (s *Store) reserve() {
	path := s.cfg.Path + ".reserve"
	if info, err := os.Stat(path); err == nil && info.Size() == reserveBytes || s.isFull() {
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	err = syscall.Fallocate(int(f.Fd()), 0, 0, reserveBytes)
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
}

func (s *Store) isFull() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.full.IsZero() }

// update commits, giving the reserve up when the disk is full, and notes which it was.
func (s *Store) update(fn func(*bbolt.Tx) error) error {
	err := s.db.Update(fn)
	if errors.Is(err, syscall.ENOSPC) && os.Remove(s.cfg.Path+".reserve") == nil {
		s.setFull(true)
		if err = s.db.Update(fn); err == nil {
			return nil // on the reserve: still full
		}
	}
	s.setFull(errors.Is(err, syscall.ENOSPC))
	return err
}

func (s *Store) setFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case full && s.full.IsZero():
		s.full = s.cfg.Now()
		s.cfg.Log.Error("the disk is full", "path", s.cfg.Path)
	case !full && !s.full.IsZero():
		s.full = time.Time{}
		s.cfg.Log.Info("the disk has room again", "path", s.cfg.Path)
	}
}
