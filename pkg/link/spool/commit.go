package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"syscall"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// group is the appends that share one write and one sync. Its first appender leads:
// it waits for the group before, closes this one to newcomers, and writes. The number
// of a record is known only then, so a group that fails takes no numbers with it.
type group struct {
	buf     []byte
	records int
	worth   level  // how far others may be given up for it
	base    uint64 // number of the first record, once done
	err     error
	prev    chan struct{}
	done    chan struct{}
}

// Append adds one record and returns its number once it is on the disk. It may be
// called from many goroutines; those that wait together share one sync.
// Errors: ErrFull, ErrClosed, api.TooLarge, api.Invalid, or the disk's own; then the
// record is not there and has no number.
func (s *Spool) Append(kind api.RecordKind, payload []byte) (uint64, error) {
	if len(payload) > record.MaxPayload {
		return 0, api.Errorf(api.TooLarge, "a record of %d bytes; at most %d", len(payload), record.MaxPayload)
	}
	if kind == 0 || kind >= noteMin {
		return 0, api.Errorf(api.Invalid, "%d is no kind of record", kind)
	}
	return s.append(record.Record{Kind: kind, Payload: payload})
}

func (s *Spool) appendNote(kind api.RecordKind, value uint64) error {
	_, err := s.append(record.Record{Kind: kind, Payload: binary.AppendUvarint(nil, value)})
	return err
}

func (s *Spool) append(r record.Record) (uint64, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, ErrClosed
	}
	g, leads := s.pending, false
	if g == nil || int64(len(g.buf)+len(r.Payload)) > s.segSize/2 {
		g, leads = &group{prev: s.tail, done: make(chan struct{}), buf: s.buffer}, true
		s.buffer = nil
		s.pending, s.tail = g, g.done
	}
	at := uint64(g.records)
	if r.Kind < noteMin {
		g.records++
	}
	g.worth = max(g.worth, worthOf(r.Kind))
	g.buf = appendEntry(g.buf, r)
	s.mu.Unlock()
	if leads {
		<-g.prev
		s.gather(g)
		s.commit(g)
		close(g.done)
	} else {
		<-g.done
	}
	return g.base + at, g.err
}

// gather lets appenders that the group before has just released join this one: they
// are runnable, and a sync costs more than the wait for them.
func (s *Spool) gather(g *group) {
	for n := -1; ; {
		s.mu.Lock()
		m := g.records
		s.mu.Unlock()
		if m == n {
			return
		}
		n = m
		runtime.Gosched()
	}
}

// commit writes a group. Only the leader of the oldest group runs it.
func (s *Spool) commit(g *group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == g {
		s.pending = nil
	}
	if g.err = s.makeRoom(int64(len(g.buf)), g.worth); g.err != nil {
		return
	}
	a := s.active()
	sign(g.buf, a.salt)
	off, after := a.size, a.extent
	s.mu.Unlock()
	// The chain is worked out beside the write: it takes half as long as the sync.
	chained := make(chan struct{})
	go func() {
		defer close(chained)
		for buf := g.buf; len(buf) > 0; {
			e := ownEntry(buf, after.next)
			after.note(&e)
			buf = buf[e.size:]
		}
	}()
	_, err := a.file.WriteAt(g.buf, off)
	if err == nil {
		err = a.file.Sync()
	}
	<-chained
	s.mu.Lock()
	if err != nil {
		g.err = s.abandon(a, err)
		return
	}
	g.base = a.next
	a.extent = after
	a.alloc = max(a.alloc, a.size)
	s.sent = max(s.sent, a.sent)
	if cap(g.buf) <= keepBuffer {
		s.buffer = g.buf[:0]
	}
}

// keepBuffer bounds the buffer that is used again for the next group, in bytes.
const keepBuffer = 512 << 10

// ownEntry decodes an entry that was encoded here a moment ago.
func ownEntry(buf []byte, seq uint64) entry {
	n := int(binary.BigEndian.Uint32(buf))
	body := buf[entryHead : entryHead+n]
	span, w := binary.Uvarint(body[1:])
	e := entry{size: entryHead + n}
	e.Kind, e.Seq, e.Last, e.Payload = api.RecordKind(body[0]), seq, seq+span, body[1+w:]
	return e
}

// abandon leaves a segment behind whose tail is in doubt after a failed write or sync:
// the kernel may have dropped the pages, and a second sync would not say so. What was
// committed before stays; the next records go to a new file.
func (s *Spool) abandon(a *segment, cause error) error {
	s.raise("spool-write-failed", api.Critical, "the disk refused a write of the record spool: "+cause.Error())
	s.cfg.Log.Error("spool write failed", "segment", a.name, "err", cause)
	err := a.file.Truncate(a.size)
	if err == nil {
		err = a.file.Sync()
	}
	if err == nil {
		a.alloc = a.size
		return fmt.Errorf("append: %w", cause)
	}
	// A segment that begins at the same number would replace this one; only when it
	// holds records can another one follow.
	if a.next > a.first {
		err = errors.Join(err, s.newSegment(s.following(a)))
	}
	return fmt.Errorf("append: %w", errors.Join(cause, err))
}

// following is the header of the segment after a.
func (s *Spool) following(a *segment) header {
	return header{epoch: a.epoch, first: a.next, prev: a.end, nonce: s.nonce, voidAfter: math.MaxUint64}
}

// makeRoom sees to it that the active segment takes n bytes more within the budget,
// giving up no more than worth allows.
func (s *Spool) makeRoom(n int64, worth level) error {
	if a := s.active(); a.size+n <= a.alloc {
		return nil
	}
	if over := s.excess(); over > 0 {
		s.relieve(func(freed int64) bool { return freed >= over }, worth)
	}
	if a := s.active(); a.size+n <= a.alloc {
		return nil
	}
	if s.excess() <= 0 {
		err := s.roll()
		if err == nil || !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		// The disk is full, whoever filled it. Give up what may be given up, then try once more.
		s.raise("disk-full", api.Critical, "no space for the record spool; usage is summed up, the rest goes")
		// A quarter of a segment spares the next appends the same effort.
		s.relieve(func(freed int64) bool {
			a := s.active()
			return freed >= s.segSize || a.size+n+a.alloc/4 <= a.alloc
		}, worth)
		if a := s.active(); a.size+n <= a.alloc || s.roll() == nil {
			return nil
		}
	}
	// No file more: what is there must shrink in place.
	for l := dropCounted; l <= worth; l++ {
		for s.compact(s.active(), l) > 0 {
			if a := s.active(); a.size+n <= a.alloc {
				return nil
			}
		}
	}
	s.raise("spool-full", api.Critical, "the record spool has no room; new records are refused")
	return ErrFull
}

// excess is how far the budget would be passed by one more segment.
func (s *Spool) excess() int64 {
	a := s.active()
	return s.bytes() - (a.alloc - a.size) + s.segSize - s.cfg.MaxBytes
}

// roll closes the active segment and begins another.
func (s *Spool) roll() error {
	a := s.active()
	if a.next == a.first {
		// It holds notes alone and no record, and its number is its name.
		s.compact(a, keepAll)
		return nil
	}
	if err := s.newSegment(s.following(a)); err != nil {
		return err
	}
	// The rest of what was allocated goes back. A crash before that is harmless.
	if err := a.file.Truncate(a.size); err != nil {
		s.cfg.Log.Warn("spool segment not cut to size", "name", a.name, "err", err)
	} else {
		a.alloc = a.size
	}
	s.index = append(s.index, a)
	return nil
}
