package spool

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// level is how far the spool goes to make room; each includes those before it.
type level int

const (
	keepAll        level = iota
	dropCounted          // telemetry and events that the core has counted
	dropTelemetry        // telemetry never sent
	dropEvents           // events never sent
	sumUsage             // usage never sent: eight intervals between two cut points become one
	sumAudit             // audit never sent: eight become one that counts them
	dropUnbackedUp       // everything that the core has counted, though no backup holds it
)

// worthOf says how far others may be given up for a record of a kind.
func worthOf(kind api.RecordKind) level {
	switch kind {
	case api.RecordTelemetry:
		return dropTelemetry
	case api.RecordEvent:
		return dropEvents
	}
	return dropUnbackedUp
}

var levelNames = map[level]string{
	dropCounted:    "spool-dropping-counted",
	dropTelemetry:  "spool-dropping-telemetry",
	dropEvents:     "spool-dropping-events",
	sumUsage:       "spool-summing-usage",
	sumAudit:       "spool-summing-audit",
	dropUnbackedUp: "spool-dropping-unbacked",
}

var levelTexts = map[level]string{
	dropCounted:    "old telemetry and events that the core has were removed for room",
	dropTelemetry:  "the oldest telemetry was dropped for room",
	dropEvents:     "the oldest events were dropped for room",
	sumUsage:       "usage intervals never sent were summed into coarser ones for room; nothing is lost but their borders",
	sumAudit:       "audit records never sent were summed up for room",
	dropUnbackedUp: "records that the core counted but has no backup of were removed for room",
}

// sumOf is how many records of usage or audit become one at a time.
const sumOf = 8

// relieve frees room, oldest and least important first, up to the level most, until
// enough says so of the bytes freed. Callers hold mu and are the leader of a group, so
// nobody writes to the active segment.
func (s *Spool) relieve(enough func(freed int64) bool, most level) {
	freed := int64(0)
	for l := dropCounted; l <= most && !enough(freed); l++ {
		for again := true; again && !enough(freed); {
			again = false
			for i := 0; i < len(s.segs) && !enough(freed); i++ {
				n := s.relieveSegment(&i, l)
				freed += n
				again = again || (n > 0 && (l == sumUsage || l == sumAudit))
			}
		}
	}
}

// relieveSegment frees what it can of segment i; i goes back by one when the segment
// is gone.
func (s *Spool) relieveSegment(i *int, l level) int64 {
	g := s.segs[*i]
	last := *i == len(s.segs)-1
	if l == dropUnbackedUp && !last && g.last() <= s.cur.Acked {
		n := g.alloc
		if err := s.removeFirst(*i); err != nil {
			s.cfg.Log.Error("spool segment not removed", "name", g.name, "err", err)
			return 0
		}
		s.raise(levelNames[l], api.Critical, levelTexts[l])
		*i--
		return n
	}
	return s.compact(g, l)
}

// gains says whether compacting at the level could free anything.
func (s *Spool) gains(g *segment, l level) bool {
	unsent := g.last() > s.sent && g.next > g.first
	switch l {
	case keepAll:
		return true
	case dropCounted:
		return g.first <= s.cur.Safe || (g.first <= s.cur.Acked && g.kinds[api.RecordTelemetry]+g.kinds[api.RecordEvent] > 0)
	case dropUnbackedUp:
		return g.first <= s.cur.Acked
	case dropTelemetry:
		return unsent && g.kinds[api.RecordTelemetry] > 0
	case dropEvents:
		return unsent && g.kinds[api.RecordEvent] > 0
	case sumUsage:
		return unsent && g.kinds[api.RecordUsage] > 0
	case sumAudit:
		return unsent && g.kinds[api.RecordAudit] > 0
	}
	return false
}

// compact rewrites a segment at a level and returns the bytes of entries that went.
func (s *Spool) compact(g *segment, l level) (freed int64) {
	if !s.gains(g, l) {
		return 0
	}
	before := g.size
	var items []linked
	err := g.walk(g.first, func(r record.Record, end record.Hash) bool {
		r.Payload = append([]byte(nil), r.Payload...)
		items = append(items, linked{r, end})
		return true
	})
	if err != nil {
		s.cfg.Log.Error("spool segment not compacted", "name", g.name, "err", err)
		return 0
	}
	items = rewrite(items, rules{level: l, acked: s.cur.Acked, safe: s.cur.Safe, sent: s.sent})
	body := encodeSegment(g, items)
	if l != keepAll && int64(headerSize+len(body)) >= before {
		return 0
	}
	if err := s.replace(g, body); err != nil {
		s.cfg.Log.Error("spool segment not replaced", "name", g.name, "err", err)
		return 0
	}
	if l != keepAll {
		sev := api.Degraded
		if l == dropCounted {
			sev = api.Info
		}
		s.raise(levelNames[l], sev, levelTexts[l])
	}
	return before - g.size
}

// linked is a record and the chain value after it.
type linked struct {
	record.Record
	end record.Hash
}

// rules of one rewrite.
type rules struct {
	level             level
	acked, safe, sent uint64
}

// drops says whether a record is given up.
func (r rules) drops(rec *record.Record) bool {
	least := rec.Kind == api.RecordTelemetry || rec.Kind == api.RecordEvent
	switch {
	case r.level == keepAll:
		return false
	case rec.Last <= r.safe || (rec.Last <= r.acked && r.level >= dropUnbackedUp):
		return true
	case !least:
		return false
	case rec.Last <= r.acked:
		return true
	case rec.Seq <= r.sent:
		return false
	case rec.Kind == api.RecordTelemetry:
		return r.level >= dropTelemetry
	}
	return r.level >= dropEvents
}

// rewrite decides what a segment holds afterwards: what is dropped becomes a range
// that says so, and neighbours are summed. Numbers and the chain at the segment's ends
// stay; records that may have been sent stay as they are, unless the core counted them.
func rewrite(in []linked, r rules) []linked {
	out := make([]linked, 0, len(in))
	for _, it := range in {
		if r.drops(&it.Record) {
			it.Record = record.LostRange(it.Seq, it.Last, it.end)
		}
		if n := len(out); n > 0 && it.Kind == record.Lost && out[n-1].Kind == record.Lost && (it.Last <= r.acked || out[n-1].Seq > r.sent) {
			out[n-1] = linked{record.LostRange(out[n-1].Seq, it.Last, it.end), it.end}
			continue
		}
		out = append(out, it)
	}
	if r.level >= sumUsage {
		out = sumRuns(out, r.sent, api.RecordUsage, sumUsageOf)
	}
	if r.level >= sumAudit {
		out = sumRuns(out, r.sent, api.RecordAudit, sumAuditOf)
	}
	return out
}

// sumRuns replaces runs of records of one kind, with what was lost between them, by
// their sum.
func sumRuns(in []linked, sent uint64, kind api.RecordKind, sum func([][]byte) ([]byte, error)) []linked {
	out := make([]linked, 0, len(in))
	for i := 0; i < len(in); {
		j, payloads := i, [][]byte(nil)
		for end := i; end < len(in) && len(payloads) < sumOf && in[end].Seq > sent && (in[end].Kind == kind || in[end].Kind == record.Lost); end++ {
			if in[end].Kind == kind {
				payloads = append(payloads, in[end].Payload)
				j = end + 1
				if kind == api.RecordUsage && endsAtCut(in[end].Payload) {
					break
				}
			}
		}
		if len(payloads) > 1 {
			if p, err := sum(payloads); err == nil && len(p) <= record.MaxPayload {
				last := in[j-1]
				out = append(out, linked{record.Record{Seq: in[i].Seq, Last: last.Last, Kind: kind, Payload: p, End: last.end}, last.end})
				i = j
				continue
			}
		}
		out = append(out, in[i])
		i++
	}
	return out
}

// endsAtCut tells that an interval of usage ends at a cut point, which sums do not cross.
// One that cannot be read is not summed with what follows either.
func endsAtCut(payload []byte) bool {
	u, err := record.DecodeUsage(payload)
	return err != nil || u.Cut
}

func sumUsageOf(payloads [][]byte) ([]byte, error) {
	us := make([]api.Usage, len(payloads))
	for i, p := range payloads {
		u, err := record.DecodeUsage(p)
		if err != nil {
			return nil, err
		}
		us[i] = u
	}
	u, err := record.SumUsage(us...)
	if err != nil {
		return nil, err
	}
	return record.EncodeUsage(u)
}

// auditSummed is the name of an event that stands for others.
const auditSummed = "audit.summed"

func sumAuditOf(payloads [][]byte) ([]byte, error) {
	var sum api.Event
	n := 0
	for i, p := range payloads {
		e, err := record.DecodeEvent(p)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			sum.Time = e.Time
		}
		var m int
		if e.Name != auditSummed {
			m = 1
		} else if _, err := fmt.Sscanf(e.Message, "%d", &m); err != nil {
			m = 1
		}
		n += m
	}
	sum.Name, sum.Message = auditSummed, fmt.Sprintf("%d audit records were summed up for want of room", n)
	return record.EncodeEvent(sum)
}

// encodeSegment makes the entries of items, with the segment's notes.
func encodeSegment(g *segment, items []linked) []byte {
	buf := notes(g.opens, g.sent)
	for _, it := range items {
		buf = appendEntry(buf, it.Record)
	}
	return buf
}

// notes makes the entries that every new segment begins with, so that they outlive the
// segments they were first written to.
func notes(opens, sent uint64) (buf []byte) {
	if opens != 0 {
		buf = appendEntry(buf, record.Record{Kind: noteOpened, Payload: uvarint(opens)})
	}
	if sent != 0 {
		buf = appendEntry(buf, record.Record{Kind: noteSent, Payload: uvarint(sent)})
	}
	return buf
}

// replace puts new entries in a segment's place. It writes to the spare file, whose
// blocks are there already: that is how a full disk is relieved.
func (s *Spool) replace(g *segment, entries []byte) error {
	h := g.header
	b := append(h.encode(), entries...)
	sign(b[headerSize:], h.salt)
	isActive := g == s.active()
	if !s.spare {
		s.ensureSpare()
	}
	if !s.spare {
		return syscall.ENOSPC
	}
	spare := filepath.Join(s.cfg.Dir, spareName)
	f, err := s.cfg.FS.Open(spare)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err == nil {
		// Zeros behind, so that nothing of the file's former life is read as an entry.
		_, err = f.WriteAt(append(b, make([]byte, max(0, size-int64(len(b))))...), 0)
	}
	if err == nil && !isActive {
		err = f.Truncate(int64(len(b)))
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.swap(g.name)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	old := g.file
	g.file = f
	if err := g.scan(g.next); err != nil {
		return err
	}
	if !isActive {
		s.index = append(s.index, g)
	}
	// The old file is the spare now; give it its full size again if there is room.
	if err := errors.Join(s.fitSpare(old), old.Close()); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return nil
}

// fitSpare gives the spare file the size of a segment; it differs after a new budget.
func (s *Spool) fitSpare(f File) error {
	size, err := f.Size()
	if err == nil && size > s.segSize {
		return f.Truncate(s.segSize)
	}
	return errors.Join(err, f.Allocate(s.segSize))
}

// swap exchanges a segment with the spare file. settleSwap ends one that was cut off.
func (s *Spool) swap(name string) error {
	spare, retired := filepath.Join(s.cfg.Dir, spareName), filepath.Join(s.cfg.Dir, retiredName)
	if err := s.cfg.FS.Rename(name, retired); err != nil {
		return err
	}
	if err := s.cfg.FS.Rename(spare, name); err != nil {
		return errors.Join(err, s.cfg.FS.Rename(retired, name))
	}
	if err := s.cfg.FS.SyncDir(s.cfg.Dir); err != nil {
		return err
	}
	return errors.Join(s.cfg.FS.Rename(retired, spare), s.cfg.FS.SyncDir(s.cfg.Dir))
}

// settleSwap finishes or undoes a swap that a crash cut off.
func (s *Spool) settleSwap() error {
	retired := filepath.Join(s.cfg.Dir, retiredName)
	g, err := s.openSegment(retired)
	if err != nil {
		if errors.Is(err, errTorn) {
			return s.cfg.FS.Remove(retired)
		}
		return nil // not there: no swap was under way
	}
	if err := g.file.Close(); err != nil {
		return err
	}
	name := segmentName(s.cfg.Dir, g.first)
	target := filepath.Join(s.cfg.Dir, spareName)
	if cur, err := s.openSegment(name); err != nil {
		target = name
	} else if err := cur.file.Close(); err != nil {
		return err
	}
	return errors.Join(s.cfg.FS.Rename(retired, target), s.cfg.FS.SyncDir(s.cfg.Dir))
}

// ensureSpare allocates the spare file if it is not there.
func (s *Spool) ensureSpare() {
	if s.spare {
		return
	}
	path := filepath.Join(s.cfg.Dir, spareName)
	f, err := s.cfg.FS.Create(path)
	if err != nil {
		return
	}
	err = f.Allocate(s.segSize)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.cfg.Log.Warn("no room for the spool's spare file", "err", err)
		if err := s.cfg.FS.Remove(path); err != nil {
			s.cfg.Log.Warn("spare file not removed", "err", err)
		}
		return
	}
	s.spare = true
}

// removeFirst deletes segment i and whatever is before it. Callers hold mu.
func (s *Spool) removeFirst(i int) error {
	for range i + 1 {
		g := s.segs[0]
		if err := errors.Join(g.file.Close(), s.cfg.FS.Remove(g.name)); err != nil {
			return err
		}
		s.segs = s.segs[1:]
	}
	return nil
}
