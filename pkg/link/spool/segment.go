package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// A segment is a file of consecutive records of one spool epoch:
//
//	header: "TRSP", version, epoch, first number, chain value before it, spool's nonce,
//	        number after which records of earlier segments are void, CRC-32C
//	entry:  length of body, CRC-32C of length and body (begun with the header's CRC),
//	        body: kind, Last-Seq (uvarint), chain value when it stands for others, payload
//
// Numbers are big-endian. An entry of zeros ends the segment: the file is allocated
// ahead. Kinds from 0xf0 to 0xf3 are notes of the spool to itself and take no number.
const (
	headerSize  = 4 + 1 + 8 + 8 + 16 + 8 + 8 + 4
	entryHead   = 8
	maxBody     = record.MaxPayload + 64
	segmentVer  = 1
	suffix      = ".seg"
	spareName   = "spare"
	retiredName = "retired"

	noteOpened api.RecordKind = 0xf0 // payload: how often the spool was opened, uvarint
	noteSent   api.RecordKind = 0xf1 // payload: last number that may have been sent, uvarint
	noteMin                   = noteOpened
	noteMax    api.RecordKind = 0xf3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTorn ends a scan where bytes are no entry: a torn tail, or damage.
var errTorn = errors.New("torn or damaged")

type header struct {
	epoch, first uint64
	prev         record.Hash
	nonce        uint64
	voidAfter    uint64 // ^0: nothing is void
	salt         uint32 // the header's CRC
}

func (h *header) encode() []byte {
	b := append(make([]byte, 0, headerSize), "TRSP"...)
	b = append(b, segmentVer)
	b = binary.BigEndian.AppendUint64(b, h.epoch)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = append(b, h.prev[:]...)
	b = binary.BigEndian.AppendUint64(b, h.nonce)
	b = binary.BigEndian.AppendUint64(b, h.voidAfter)
	h.salt = crc32.Checksum(b, castagnoli)
	return binary.BigEndian.AppendUint32(b, h.salt)
}

func decodeHeader(b []byte) (h header, err error) {
	if len(b) < headerSize || string(b[:4]) != "TRSP" {
		return h, fmt.Errorf("no spool segment: %w", errTorn)
	}
	if b[4] != segmentVer {
		return h, fmt.Errorf("segment version %d, this build reads %d", b[4], segmentVer)
	}
	h.salt = binary.BigEndian.Uint32(b[headerSize-4:])
	if h.salt != crc32.Checksum(b[:headerSize-4], castagnoli) {
		return h, fmt.Errorf("segment header: %w", errTorn)
	}
	h.epoch = binary.BigEndian.Uint64(b[5:])
	h.first = binary.BigEndian.Uint64(b[13:])
	copy(h.prev[:], b[21:])
	h.nonce = binary.BigEndian.Uint64(b[37:])
	h.voidAfter = binary.BigEndian.Uint64(b[45:])
	if h.first == 0 {
		return h, fmt.Errorf("segment header: %w", errTorn)
	}
	return h, nil
}

// appendEntry encodes one entry. The CRC is left out; sign fills it in, because the
// segment that an entry goes to is known only when its group is written.
func appendEntry(buf []byte, r record.Record) []byte {
	at := len(buf)
	buf = append(buf, 0, 0, 0, 0, 0, 0, 0, 0, byte(r.Kind))
	buf = binary.AppendUvarint(buf, r.Last-r.Seq)
	if r.Stands() {
		buf = append(buf, r.End[:]...)
	}
	buf = append(buf, r.Payload...)
	binary.BigEndian.PutUint32(buf[at:], uint32(len(buf)-at-entryHead))
	return buf
}

// sign fills in the CRC of every entry of buf.
func sign(buf []byte, salt uint32) {
	for len(buf) > 0 {
		end := entryHead + int(binary.BigEndian.Uint32(buf))
		binary.BigEndian.PutUint32(buf[4:], entryCRC(buf[:end], salt))
		buf = buf[end:]
	}
}

func entryCRC(entry []byte, salt uint32) uint32 {
	return crc32.Update(crc32.Update(salt, castagnoli, entry[:4]), castagnoli, entry[entryHead:])
}

// entry is one decoded entry; the payload aliases the input.
type entry struct {
	record.Record
	size int
}

// isNote reports whether the entry takes no number.
func (e *entry) isNote() bool { return e.Kind >= noteMin && e.Kind <= noteMax }

// decodeEntry reads the entry at the start of b, which has number seq if it has one.
// ok is false at the end of b or of the segment; err is errTorn for anything else
// that is no entry. With whole unset, an entry that b cuts off is ok=false too.
func decodeEntry(b []byte, salt uint32, seq uint64, whole bool) (e entry, ok bool, err error) {
	torn := func() (entry, bool, error) {
		if whole {
			return entry{}, false, errTorn
		}
		return entry{}, false, nil
	}
	if len(b) == 0 {
		return e, false, nil
	}
	if len(b) < entryHead {
		if allZero(b) {
			return e, false, nil
		}
		return torn()
	}
	n := int(binary.BigEndian.Uint32(b))
	if n == 0 {
		if binary.BigEndian.Uint32(b[4:]) != 0 {
			return e, false, errTorn
		}
		return e, false, nil
	}
	if n < 2 || n > maxBody {
		return e, false, errTorn
	}
	if len(b) < entryHead+n {
		return torn()
	}
	e.size = entryHead + n
	if binary.BigEndian.Uint32(b[4:]) != entryCRC(b[:e.size], salt) {
		return e, false, errTorn
	}
	body := b[entryHead:e.size]
	span, w := binary.Uvarint(body[1:])
	if w <= 0 || seq+span < seq {
		return e, false, errTorn
	}
	e.Kind, e.Seq, e.Last = api.RecordKind(body[0]), seq, seq+span
	e.Payload = body[1+w:]
	if e.Stands() && !e.isNote() {
		if len(e.Payload) < len(e.End) {
			return e, false, errTorn
		}
		e.Payload = e.Payload[copy(e.End[:], e.Payload):]
	}
	return e, true, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// segment is what is known of one file.
type segment struct {
	header
	extent
	name    string
	file    File
	alloc   int64 // how much of the disk the file takes
	damaged bool
}

// extent is what a segment holds. It is a value, so that the effect of a group can be
// worked out while the disk is still busy with it.
type extent struct {
	// next is the number after the last record; end the chain value there.
	next uint64
	end  record.Hash
	// size is how much of the file is header and entries.
	size int64
	// kinds counts bytes per kind of record; all above telemetry count as 0.
	kinds [api.RecordTelemetry + 1]int64
	// steps are places to start reading from, in order.
	steps       []step
	opens, sent uint64 // the newest of its notes
}

// step is a place in a segment: the entry at off has number seq and follows chain.
type step struct {
	seq   uint64
	off   int64
	chain record.Hash
}

const stepBytes = 128 << 10

func segmentName(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016x%s", first, suffix))
}

// note takes an entry at the segment's end into account. It is the one place where a
// segment grows, at recovery and when a group was written.
func (g *extent) note(e *entry) {
	if e.isNote() {
		v, _ := binary.Uvarint(e.Payload)
		switch e.Kind {
		case noteOpened:
			g.opens = max(g.opens, v)
		case noteSent:
			g.sent = max(g.sent, v)
		}
		g.size += int64(e.size)
		return
	}
	if n := len(g.steps); n == 0 || g.size-g.steps[n-1].off >= stepBytes {
		g.steps = append(g.steps, step{g.next, g.size, g.end})
	}
	g.end = g.end.Next(e.Record)
	g.next = e.Last + 1
	if int(e.Kind) < len(g.kinds) {
		g.kinds[e.Kind] += int64(e.size)
	} else {
		g.kinds[0] += int64(e.size)
	}
	g.size += int64(e.size)
}

// fresh resets what note counts.
func (g *segment) fresh() {
	g.extent = extent{next: g.first, end: g.prev, size: headerSize}
	g.damaged = false
}

// last is the number of the last record, first-1 when there is none.
func (g *segment) last() uint64 { return g.next - 1 }

// scan reads the whole file and notes every entry with a number below limit. It stops
// at damage, which it remembers, and returns only errors of the disk.
func (g *segment) scan(limit uint64) error {
	size, err := g.file.Size()
	if err != nil {
		return err
	}
	g.alloc = size
	buf := make([]byte, size)
	if n, err := g.file.ReadAt(buf, 0); int64(n) < size {
		return fmt.Errorf("read %s: %w", g.name, err)
	}
	g.fresh()
	for {
		e, ok, err := decodeEntry(buf[g.size:], g.salt, g.next, true)
		if err != nil {
			g.damaged = true
			return nil
		}
		if !ok || (!e.isNote() && e.Last >= limit) {
			return nil
		}
		g.note(&e)
	}
}

// at finds where to start reading to reach seq.
func (g *segment) at(seq uint64) step {
	lo := step{g.first, headerSize, g.prev}
	for _, s := range g.steps {
		if s.seq > seq {
			break
		}
		lo = s
	}
	return lo
}

// walk calls fn for the records from number from on, with the chain value after each,
// until fn returns false. The payload is valid during the call.
func (g *segment) walk(from uint64, fn func(r record.Record, end record.Hash) bool) error {
	s := g.at(from)
	buf := make([]byte, 0, stepBytes+maxBody+entryHead)
	seq, off, chain := s.seq, s.off, s.chain
	for off < g.size {
		n := int(min(int64(cap(buf)), g.size-off))
		buf = buf[:n]
		if m, err := g.file.ReadAt(buf, off); m < n {
			return fmt.Errorf("read %s: %w", g.name, err)
		}
		used := 0
		for {
			e, ok, err := decodeEntry(buf[used:], g.salt, seq, off+int64(n) == g.size)
			if err != nil {
				return fmt.Errorf("%s at %d: %w", g.name, off+int64(used), err)
			}
			if !ok {
				break
			}
			used += e.size
			if e.isNote() {
				continue
			}
			chain = chain.Next(e.Record)
			seq = e.Last + 1
			if e.Last >= from && !fn(e.Record, chain) {
				return nil
			}
		}
		if used == 0 {
			return fmt.Errorf("%s at %d: %w", g.name, off, errTorn)
		}
		off += int64(used)
	}
	return nil
}
