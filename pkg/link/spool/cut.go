package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"tributary.dev/tributary/pkg/link/record"
)

func uvarint(v uint64) []byte { return binary.AppendUvarint(nil, v) }

// each calls fn for the records from number from on, in order, with their epoch and
// the chain value before. Numbers that are not readable come as one lost record.
// Callers hold mu.
func (s *Spool) each(from uint64, fn func(epoch uint64, prev record.Hash, r record.Record) bool) error {
	next, prev := from, record.Hash{}
	if from > 0 {
		prev, _ = s.chainAt(from - 1)
	}
	for i, g := range s.segs {
		following := uint64(math.MaxUint64)
		if i+1 < len(s.segs) {
			following = s.segs[i+1].first
		}
		if following <= next {
			continue
		}
		if g.first > next {
			// An epoch begins with any number; within one, a hole is told.
			if !g.prev.IsZero() && next > 0 && !fn(g.epoch, prev, record.LostRange(next, g.first-1, g.prev)) {
				return nil
			}
			next = g.first
		}
		if next == g.first {
			prev = g.prev
		}
		more := true
		err := g.walk(next, func(r record.Record, end record.Hash) bool {
			more = fn(g.epoch, prev, r)
			next, prev = r.Last+1, end
			return more
		})
		if !more {
			return nil
		}
		if errors.Is(err, errTorn) {
			s.raise("spool-damaged", "critical", fmt.Sprintf("records after %d are unreadable", next-1))
			s.cfg.Log.Error("spool damaged", "after", next-1, "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Read returns records from number from on, whatever their epoch, up to maxBytes of
// payload but at least one if there is one.
func (s *Spool) Read(from uint64, maxBytes int) ([]record.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rs []record.Record
	size := 0
	err := s.each(max(from, s.segs[0].first), func(_ uint64, _ record.Hash, r record.Record) bool {
		if size += len(r.Payload); len(rs) > 0 && size > maxBytes {
			return false
		}
		r.Payload = append([]byte(nil), r.Payload...)
		rs = append(rs, r)
		return true
	})
	return rs, err
}

// Cut makes the next batch of records after number after: of one epoch, and at most
// maxBytes (with 16 for each record; 0 means 64 KiB), but at least one record. Before
// it returns it notes on the disk that they may have been sent, so that they are never
// altered. It may be called again for the same records. ErrNone: there are none.
func (s *Spool) Cut(after uint64, maxBytes int) (record.Batch, error) {
	if maxBytes <= 0 {
		maxBytes = 64 << 10
	}
	maxBytes = min(maxBytes, record.MaxBatch-4<<10)
	b, reserve, err := s.cut(after, maxBytes)
	if err != nil || reserve == 0 {
		return b, err
	}
	if err := s.appendNote(noteSent, reserve); err != nil {
		return record.Batch{}, fmt.Errorf("note records as sent: %w", err)
	}
	return b, nil
}

func (s *Spool) cut(after uint64, maxBytes int) (b record.Batch, reserve uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return b, 0, ErrClosed
	}
	size := 0
	err = s.each(after+1, func(epoch uint64, prev record.Hash, r record.Record) bool {
		if len(b.Records) == 0 {
			b.Epoch, b.First, b.Prev = epoch, r.Seq, prev
		}
		size += len(r.Payload) + 16
		if epoch != b.Epoch || len(b.Records) == record.MaxRecords || (len(b.Records) > 0 && size > maxBytes) {
			return false
		}
		r.Payload = append([]byte(nil), r.Payload...)
		b.Records = append(b.Records, r)
		b.Last = r.Last
		return true
	})
	if err != nil {
		return record.Batch{}, 0, err
	}
	if len(b.Records) == 0 {
		return b, 0, ErrNone
	}
	if b.Last <= s.sent {
		return b, 0, nil
	}
	// One note serves the rest of the segment: what is there now will be cut soon.
	for _, g := range s.segs {
		if g.last() >= b.Last {
			reserve = g.last()
			break
		}
	}
	reserve = max(reserve, b.Last)
	s.sent = reserve
	return b, reserve, nil
}

// ChainAt returns the chain value after a record of an epoch, if it is known here.
// record.OpenAck takes it as it is.
func (s *Spool) ChainAt(epoch, seq uint64) (record.Hash, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segs {
		if g.epoch == epoch && seq+1 >= g.first && seq < g.next {
			return s.chainAt(seq)
		}
	}
	return s.cur.Hash, seq == s.cur.Acked
}

func (s *Spool) chainAt(seq uint64) (h record.Hash, ok bool) {
	for i := len(s.segs) - 1; i >= 0; i-- {
		g := s.segs[i]
		switch {
		case seq < g.first || seq >= g.next:
			continue
		case seq == g.last():
			return g.end, true
		}
		err := g.walk(seq, func(r record.Record, end record.Hash) bool {
			h, ok = end, r.Last == seq
			return false
		})
		return h, ok && err == nil
	}
	if seq == s.cur.Acked {
		return s.cur.Hash, true
	}
	for _, g := range s.segs {
		if seq+1 == g.first {
			return g.prev, true
		}
	}
	return h, false
}

// Outcome is what an acknowledgement led to.
type Outcome int

// The outcomes.
const (
	Ignored   Outcome = iota // stale, or of a lower core epoch
	Advanced                 // more is counted, or safe
	Rewound                  // the core lost something: cut again from Range's acked
	Restarted                // the core knows other records under our numbers: a new spool epoch began
)

func (o Outcome) String() string {
	return [...]string{"ignored", "advanced", "rewound", "restarted"}[o]
}

// Confirm takes a verified acknowledgement (record.OpenAck) and does what it calls for.
func (s *Spool) Confirm(a record.Ack) (Outcome, error) {
	s.mu.Lock()
	tail := s.tail
	s.mu.Unlock()
	<-tail // a new epoch must not cut in between a group's write and its numbers
	s.mu.Lock()
	defer s.mu.Unlock()
	v := view{acked: s.cur.Acked, safe: s.cur.Safe, coreEpoch: s.cur.CoreEpoch, newest: s.active().epoch, last: s.active().last()}
	v.own, v.known = s.ownChain(a)
	d := decide(v, a)
	s.cur.CoreEpoch = max(s.cur.CoreEpoch, a.CoreEpoch)
	switch d {
	case Advanced:
		return d, s.advance(a.Acked, a.Safe, a.Hash)
	case Rewound:
		return d, s.rewind(a.Acked, a.Hash)
	case Restarted:
		after := s.cur.Acked
		if a.SpoolEpoch == v.newest {
			// A copy of this spool sent the same records up to where it was copied. Those
			// that this process appended are surely not among them.
			after = max(after, min(s.opened, s.active().last()))
		}
		return d, s.restart(after, a.SpoolEpoch)
	}
	return d, nil
}

// view is what decide knows of the spool.
type view struct {
	acked, safe, last, coreEpoch uint64
	newest                       uint64      // spool epoch of new records
	own                          record.Hash // chain value at the acknowledged number
	known                        bool
}

// ownChain is this spool's chain value where a says.
func (s *Spool) ownChain(a record.Ack) (record.Hash, bool) {
	for _, g := range s.segs {
		if g.epoch == a.SpoolEpoch && a.Acked >= g.first && a.Acked < g.next {
			return s.chainAt(a.Acked)
		}
	}
	return record.Hash{}, false
}

// decide is the rule for acknowledgements, apart from the disk.
func decide(v view, a record.Ack) Outcome {
	switch {
	case a.CoreEpoch < v.coreEpoch:
		return Ignored
	case a.SpoolEpoch > v.newest:
		return Restarted // this spool is older than one that the core has seen
	case a.SpoolEpoch == v.newest && a.Acked > v.last:
		return Restarted // the core counted what was never written here
	case v.known && !a.Hash.IsZero() && a.Hash != v.own:
		return Restarted // the same number, other content
	case a.Acked < v.acked && a.CoreEpoch > v.coreEpoch:
		return Rewound // a restored core
	case a.Acked < v.acked:
		return Ignored // overtaken
	case a.Acked == v.acked && a.Safe <= v.safe:
		return Ignored
	case a.Acked > v.last:
		return Ignored // of an older epoch, and past its end
	}
	return Advanced
}

// Ack marks records as counted by the core up to acked, and as held by its backup up
// to safe; the latter may be deleted. Prefer Confirm, which checks the chain as well.
func (s *Spool) Ack(acked, safe uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if acked > s.active().last() || safe > acked {
		return fmt.Errorf("acknowledged %d, safe %d, of %d", acked, safe, s.active().last())
	}
	h, _ := s.chainAt(acked)
	return s.advance(acked, safe, h)
}

func (s *Spool) advance(acked, safe uint64, h record.Hash) error {
	if acked >= s.cur.Acked {
		if h.IsZero() {
			h, _ = s.chainAt(acked)
		}
		s.cur.Acked, s.cur.Hash = acked, h
	}
	s.cur.Safe = max(s.cur.Safe, min(safe, s.cur.Acked))
	freed := 0
	for freed < len(s.segs)-1 && s.segs[freed].last() <= s.cur.Safe {
		freed++
	}
	if freed > 0 {
		if err := s.removeFirst(freed - 1); err != nil {
			return err
		}
	}
	if s.cur.Acked == s.active().last() {
		s.calm()
	}
	if freed > 0 || s.cfg.Now().Sub(s.saved) >= time.Second {
		return s.saveCursor()
	}
	return nil
}

// calm ends the warnings of shortage, once everything is counted.
func (s *Spool) calm() {
	for _, name := range levelNames {
		delete(s.warn, name)
	}
	delete(s.warn, "spool-full")
	delete(s.warn, "disk-full")
	s.ensureSpare()
}

// Rewind goes back to number to, because the core lost what it had counted after it.
// What is no longer kept will be reported as lost.
func (s *Spool) Rewind(to uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, _ := s.chainAt(to)
	return s.rewind(to, h)
}

func (s *Spool) rewind(to uint64, h record.Hash) error {
	if to > s.cur.Acked {
		return fmt.Errorf("rewind to %d, past %d", to, s.cur.Acked)
	}
	s.cur.Acked, s.cur.Hash, s.cur.Safe = to, h, min(s.cur.Safe, to)
	return s.saveCursor()
}

// restart begins a new spool epoch and carries the records after number after into it,
// under new numbers. One rename makes both true at once: the new segment declares the
// old records void.
func (s *Spool) restart(after, above uint64) error {
	last := s.active().last()
	entries := notes(s.cur.Opens, last)
	err := s.each(after+1, func(_ uint64, _ record.Hash, r record.Record) bool {
		entries = appendEntry(entries, r)
		return true
	})
	if err != nil {
		return err
	}
	var nonce [8]byte
	if _, err := io.ReadFull(s.cfg.Rand, nonce[:]); err != nil {
		return err
	}
	epoch := max(uint64(max(s.cfg.Now().Unix(), 1)), s.active().epoch+1, above+1)
	h := header{epoch: epoch, first: last + 1, nonce: binary.BigEndian.Uint64(nonce[:]) | 1, voidAfter: after}
	old := s.active()
	g, err := s.createSegment(h, entries)
	if err != nil {
		return fmt.Errorf("begin a new spool epoch: %w", err)
	}
	s.nonce, s.segs, s.index = h.nonce, append(s.segs, g), nil
	// Everything of the old epochs is counted or void.
	s.cur.Nonce, s.cur.Acked, s.cur.Hash = s.nonce, last, record.Hash{}
	s.cur.Safe = min(s.cur.Safe, last)
	s.sent, s.opened = last, last
	s.raise("spool-forked", "critical", fmt.Sprintf("the core holds other records under this device's numbers: is another device using its key? Numbers go on from %d in epoch %d", last+1, epoch))
	s.cfg.Log.Error("spool forked; new epoch", "epoch", epoch, "after", after, "old", old.epoch)
	if err := s.removeFirst(len(s.segs) - 2); err != nil {
		return err
	}
	return s.saveCursor()
}
