// Package spool answers: how does an appended record survive until the core has acknowledged it?
//
// Records go to an append log of segments; all appenders that wait at one time share
// one write and one sync. The log is the truth; bbolt holds the cursor (what the core
// has counted, and what its backup holds) and an index of full segments, and both may
// be lost: records are then sent again, and the core knows them by number and chain.
//
// What was once cut into a batch is never altered, because the core may have counted
// it. What was never cut may be summed or given up when room runs out; see relief.go.
package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// Bounds and defaults.
const (
	DefaultMaxBytes = 256 << 20
	MinBytes        = 1 << 20
	minSegment      = 64 << 10
	maxSegment      = 8 << 20
)

// Errors that callers tell apart.
var (
	// ErrFull means that there is no room for the record, though all was given up
	// that may be. Events and telemetry meet it; usage only on a disk that has failed
	// to give a single block since the spool was made.
	ErrFull = errors.New("spool is full")
	// ErrNone means that there is nothing to cut.
	ErrNone = errors.New("no records")
	// ErrClosed follows Close.
	ErrClosed = errors.New("spool is closed")
)

// Config is what a spool needs.
type Config struct {
	Dir string
	// FS is the disk; nil means the machine's own.
	FS FS
	// DB holds the cursor, in buckets "spool" and "spool-index". Without one every
	// Open starts a new spool epoch and sends what is kept again.
	DB *bbolt.DB
	// MaxBytes bounds all files together; 0 means DefaultMaxBytes, at least MinBytes.
	MaxBytes int64
	Now      func() time.Time
	Rand     io.Reader
	Log      *slog.Logger
}

// Spool is safe for use by many goroutines.
type Spool struct {
	cfg     Config
	segSize int64

	mu      sync.Mutex
	segs    []*segment // in order; the last one is written to
	nonce   uint64
	cur     cursor
	sent    uint64 // numbers up to here may have left the device
	opened  uint64 // the last number when this process opened the spool
	spare   bool   // the spare file is there, allocated
	pending *group
	buffer  []byte        // to be used again
	tail    chan struct{} // closed when the last group so far is done
	warn    map[string]api.Warning
	saved   time.Time // when the cursor was last written
	index   []*segment
	closed  bool
}

// Open recovers the spool in cfg.Dir, or makes one.
func Open(cfg Config) (*Spool, error) {
	if cfg.FS == nil {
		cfg.FS = OS{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Spool{cfg: cfg, warn: make(map[string]api.Warning)}
	s.cfg.MaxBytes, s.segSize = sizes(cfg.MaxBytes)
	s.tail = make(chan struct{})
	close(s.tail)
	if err := s.recover(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open spool %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// sizes are the bound in force for a budget, and the size of a segment.
func sizes(budget int64) (most, segment int64) {
	if budget <= 0 {
		budget = DefaultMaxBytes
	}
	most = max(budget, MinBytes)
	return most, min(max(most/16, minSegment), maxSegment)
}

// recover reads what is on the disk and decides whether it is this spool's own past.
func (s *Spool) recover() error {
	if err := s.cfg.FS.MkdirAll(s.cfg.Dir); err != nil {
		return err
	}
	if err := s.settleSwap(); err != nil {
		return err
	}
	cur, err := s.loadCursor()
	if err != nil {
		return err
	}
	if err := s.loadSegments(); err != nil {
		return err
	}
	mark, err := s.mark()
	if err != nil {
		return err
	}
	p := past{cursor: cur, mark: mark}
	for _, g := range s.segs {
		p.segments, p.nonce, p.epoch, p.last = true, g.nonce, g.epoch, g.last()
		p.opens, s.sent = max(p.opens, g.opens), max(s.sent, g.sent)
	}
	verdict := judge(p)
	s.adopt(cur, verdict)
	if verdict != samePast {
		if err := s.beginEpoch(verdict, p); err != nil {
			return err
		}
	} else if err := s.reopenTail(); err != nil {
		return err
	}
	s.opened = s.active().last()
	s.cur.Opens = max(p.opens, s.cur.Opens) + 1
	s.cur.Nonce, s.cur.Mark = s.nonce, mark
	if err := s.appendNote(noteOpened, s.cur.Opens); err != nil {
		return err
	}
	if s.cfg.DB == nil {
		return nil
	}
	return s.saveCursor()
}

// past is what two witnesses, the log and the cursor, tell of a spool.
type past struct {
	segments           bool
	nonce, epoch, last uint64
	opens              uint64
	cursor             cursor
	mark               string
}

type verdict string

// What judge finds; all but samePast start a new spool epoch.
const (
	samePast   verdict = ""
	firstEver  verdict = "spool-created"
	recreated  verdict = "spool-recreated"
	copied     verdict = "spool-copied"
	rolledBack verdict = "spool-rolled-back"
	noCursor   verdict = "spool-cursor-lost"
)

// judge decides whether the files and the cursor are one spool's own, newest past.
// A copy or an old backup is not: another one may have sent records under the same
// numbers since.
func judge(p past) verdict {
	switch {
	case !p.segments && p.cursor.Nonce == 0:
		return firstEver
	case !p.segments:
		return recreated
	case p.cursor.Nonce == 0:
		return noCursor
	case p.cursor.Nonce != p.nonce || p.cursor.Mark != p.mark:
		return copied
	case p.opens < p.cursor.Opens:
		return rolledBack
	}
	return samePast
}

// adopt takes the cursor over as far as it fits the log.
func (s *Spool) adopt(cur cursor, v verdict) {
	s.cur = cur
	if len(s.segs) == 0 {
		return
	}
	first := s.segs[0]
	if cur.Acked < first.first-1 || v == noCursor || v == copied {
		s.cur.Acked, s.cur.Hash = first.first-1, first.prev
		s.cur.Safe = min(cur.Safe, s.cur.Acked)
	}
	s.nonce = s.active().nonce
	if v != samePast {
		// Whoever held these records may have sent them all.
		s.sent = s.active().last()
	}
}

// beginEpoch starts a segment of a new spool epoch behind everything known.
func (s *Spool) beginEpoch(v verdict, p past) error {
	var nonce [8]byte
	if _, err := io.ReadFull(s.cfg.Rand, nonce[:]); err != nil {
		return err
	}
	s.nonce = binary.BigEndian.Uint64(nonce[:]) | 1
	now := uint64(max(s.cfg.Now().Unix(), 1))
	epoch := max(now, p.epoch+1, p.cursor.Epoch+1)
	after := max(p.last, p.cursor.Acked, p.cursor.Last)
	h := header{epoch: epoch, first: after + 1, nonce: s.nonce, voidAfter: math.MaxUint64}
	err := s.newSegment(h)
	for errors.Is(err, syscall.ENOSPC) && s.segSize > minSegment {
		s.segSize /= 2 // better small files than no spool
		err = s.newSegment(h)
	}
	if err != nil {
		return err
	}
	if v != firstEver {
		s.cfg.Log.Warn("new spool epoch", "reason", string(v), "epoch", epoch, "after", after)
		s.raise(string(v), api.Degraded, fmt.Sprintf("the record spool was found anew; numbers go on from %d in epoch %d", after+1, epoch))
	}
	if len(s.segs) == 1 {
		s.cur.Acked, s.cur.Safe, s.cur.Hash = after, min(s.cur.Safe, after), record.Hash{}
	}
	return nil
}

// loadSegments opens every segment file, from the index where it is right.
func (s *Spool) loadSegments() error {
	names, err := s.cfg.FS.List(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(s.cfg.Dir, name)
		switch {
		case name == spareName:
			s.spare = true
		case strings.HasSuffix(name, ".tmp"):
			if err := s.cfg.FS.Remove(path); err != nil {
				return err
			}
		case strings.HasSuffix(name, suffix):
			g, err := s.openSegment(path)
			if errors.Is(err, errTorn) {
				s.cfg.Log.Error("spool segment set aside", "name", name, "err", err)
				s.raise("spool-damaged", api.Critical, "a segment of the record spool is unreadable and was set aside: "+name)
				if err := s.cfg.FS.Rename(path, path+".bad"); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return err
			}
			s.segs = append(s.segs, g)
		}
	}
	slices.SortFunc(s.segs, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return s.scanSegments()
}

func (s *Spool) openSegment(path string) (*segment, error) {
	f, err := s.cfg.FS.Open(path)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, headerSize)
	if n, err := f.ReadAt(buf, 0); n < headerSize && err != nil && err != io.EOF {
		return nil, errors.Join(err, f.Close())
	}
	h, err := decodeHeader(buf)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segment{header: h, name: path, file: f}, nil
}

// scanSegments fills in what segments hold. A segment ends where the next begins, and
// earlier where a later one declares records void.
func (s *Spool) scanSegments() error {
	limits := make([]uint64, len(s.segs))
	limit := uint64(math.MaxUint64)
	for i := len(s.segs) - 1; i >= 0; i-- {
		limits[i] = limit
		limit = min(limit, s.segs[i].first)
		if v := s.segs[i].voidAfter; v != math.MaxUint64 {
			limit = min(limit, v+1)
		}
	}
	kept := s.segs[:0]
	for i, g := range s.segs {
		if g.first >= limits[i] {
			if err := errors.Join(g.file.Close(), s.cfg.FS.Remove(g.name)); err != nil {
				return err
			}
			continue
		}
		kept = append(kept, g)
		if s.indexed(g, limits[i]) {
			continue
		}
		if err := g.scan(limits[i]); err != nil {
			return err
		}
		if g.damaged && i < len(s.segs)-1 {
			s.raise("spool-damaged", api.Critical, fmt.Sprintf("records after %d are unreadable", g.last()))
		}
	}
	s.segs = kept
	return nil
}

// reopenTail clears what a torn write left behind the last whole entry, and allocates
// the rest of the segment.
func (s *Spool) reopenTail() error {
	g := s.active()
	if g.damaged {
		if err := g.file.Truncate(g.size); err != nil {
			return err
		}
		if err := g.file.Sync(); err != nil {
			return err
		}
		g.alloc, g.damaged = g.size, false
	}
	if g.alloc < s.segSize {
		if err := g.file.Allocate(s.segSize); err == nil {
			g.alloc = s.segSize
		}
	}
	s.ensureSpare()
	return nil
}

func (s *Spool) active() *segment { return s.segs[len(s.segs)-1] }

// newSegment makes the file of h and writes to it from now on.
func (s *Spool) newSegment(h header) error {
	g, err := s.createSegment(h, notes(s.cur.Opens, s.sent))
	if err != nil {
		return err
	}
	s.segs = append(s.segs, g)
	s.ensureSpare()
	return nil
}

// createSegment writes a segment under a temporary name, syncs it and puts it in its
// place, so that a segment file always has a whole header.
func (s *Spool) createSegment(h header, entries []byte) (*segment, error) {
	g := &segment{header: h, name: segmentName(s.cfg.Dir, h.first)}
	b := append(g.encode(), entries...)
	sign(b[headerSize:], g.salt)
	tmp := g.name + ".tmp"
	f, err := s.cfg.FS.Create(tmp)
	if err != nil {
		return nil, err
	}
	g.file, g.alloc = f, max(s.segSize, int64(len(b)))
	if err = f.Allocate(g.alloc); err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.cfg.FS.Rename(tmp, g.name)
	}
	if err == nil {
		err = s.cfg.FS.SyncDir(s.cfg.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), s.cfg.FS.Remove(tmp))
	}
	g.fresh()
	for b = b[headerSize:]; len(b) > 0; {
		e, ok, err := decodeEntry(b, g.salt, g.next, true)
		if err != nil || !ok {
			return nil, errors.Join(fmt.Errorf("own entry: %w", errTorn), f.Close())
		}
		g.note(&e)
		b = b[e.size:]
	}
	return g, nil
}

// Close waits for appends under way, writes the cursor and closes the files.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	tail := s.tail
	s.mu.Unlock()
	<-tail
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.cfg.DB != nil {
		err = s.saveCursor()
	}
	return errors.Join(err, s.closeFiles())
}

func (s *Spool) closeFiles() error {
	var errs []error
	for _, g := range s.segs {
		errs = append(errs, g.file.Close())
	}
	return errors.Join(errs...)
}

// Epoch is the spool epoch that new records belong to.
func (s *Spool) Epoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active().epoch
}

// Range tells the numbers kept, first to last (last is first-1 when none is), and how
// far the core has counted them and has them in its backup.
func (s *Spool) Range() (first, last, acked, safe uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segs[0].first, s.active().last(), s.cur.Acked, s.cur.Safe
}

// Bytes is how much disk the spool takes.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes()
}

func (s *Spool) bytes() (n int64) {
	for _, g := range s.segs {
		n += g.alloc
	}
	if s.spare {
		n += s.segSize
	}
	return n
}

// Warnings are the spool's findings about itself, for the device's health.
func (s *Spool) Warnings() []api.Warning {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]api.Warning, 0, len(s.warn))
	for _, w := range s.warn {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b api.Warning) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *Spool) raise(name string, sev api.Severity, message string) {
	w, ok := s.warn[name]
	if !ok {
		w.Since = s.cfg.Now().Unix()
	}
	w.Name, w.Severity, w.Message = name, sev, message
	s.warn[name] = w
}
