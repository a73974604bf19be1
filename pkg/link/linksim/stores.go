package linksim

import (
	"maps"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/spool"
)

// Spool is a link.Spool in memory, whose every record is durable at once.
type Spool struct {
	epoch, first uint64
	records      []record.Record
	chain        []record.Hash // chain[i] is after the i-th record
	acked, safe  uint64
	coreEpoch    uint64
}

// NewSpool makes an empty spool of an epoch.
func NewSpool(epoch uint64) *Spool { return &Spool{epoch: epoch, first: 1} }

// Append implements link.Spool.
func (s *Spool) Append(kind api.RecordKind, payload []byte) (uint64, error) {
	seq := s.last() + 1
	r := record.Record{Seq: seq, Last: seq, Kind: kind, Payload: payload}
	h, _ := s.ChainAt(s.epoch, seq-1)
	s.records, s.chain = append(s.records, r), append(s.chain, h.Next(r))
	return seq, nil
}

func (s *Spool) last() uint64 { return s.first + uint64(len(s.records)) - 1 }

// Cut implements link.Spool.
func (s *Spool) Cut(after uint64, maxBytes int) (b record.Batch, err error) {
	if after >= s.last() {
		return b, spool.ErrNone
	}
	b = record.Batch{Epoch: s.epoch, First: after + 1}
	b.Prev, _ = s.ChainAt(s.epoch, after)
	size := 0
	for _, r := range s.records[after+1-s.first:] {
		if size += len(r.Payload) + 16; len(b.Records) > 0 && size > maxBytes {
			break
		}
		b.Records = append(b.Records, r)
		b.Last = r.Last
	}
	return b, nil
}

// ChainAt implements link.Spool.
func (s *Spool) ChainAt(epoch, seq uint64) (h record.Hash, ok bool) {
	if epoch != s.epoch || seq > s.last() || seq+1 < s.first {
		return h, false
	}
	if seq+1 == s.first {
		return h, true
	}
	return s.chain[seq-s.first], true
}

// Range implements link.Spool.
func (s *Spool) Range() (first, last, acked, safe uint64) {
	return s.first, s.last(), s.acked, s.safe
}

// Confirm implements link.Spool.
func (s *Spool) Confirm(a record.Ack) (spool.Outcome, error) {
	if a.CoreEpoch < s.coreEpoch || a.Acked > s.last() || a.SpoolEpoch != s.epoch && a.Acked > 0 {
		return spool.Ignored, nil
	}
	rewinds := a.CoreEpoch > s.coreEpoch && a.Acked < s.acked
	s.coreEpoch = a.CoreEpoch
	switch {
	case rewinds:
		s.acked = max(a.Acked, s.safe)
		return spool.Rewound, nil
	case a.Acked < s.acked, a.Acked == s.acked && a.Safe <= s.safe:
		return spool.Ignored, nil
	}
	s.acked, s.safe = a.Acked, max(s.safe, a.Safe)
	return spool.Advanced, nil
}

// Database is what the core has on its disk: a link.CoreStore in memory, and the
// manifests that the fleet renderer keeps.
type Database struct {
	Epoch  uint64
	States map[api.DeviceID]*DeviceState
	// Counted is how often each record was counted, and Payload what it said.
	Ledger    map[api.DeviceID]map[uint64]*Line
	Positions map[api.DeviceID]link.Position
	Fleet     map[api.DeviceID]*Desired
}

// DeviceState is what the core holds of one device.
type DeviceState struct {
	Attachment  []byte
	Epoch, Seq  uint64
	Entries     map[string]link.Entry
	Quarantined int
}

// Line is one record in the ledger.
type Line struct {
	Count   int
	Payload string
}

// NewDatabase makes an empty one of core epoch 1.
func NewDatabase() *Database {
	return &Database{Epoch: 1, States: map[api.DeviceID]*DeviceState{}, Ledger: map[api.DeviceID]map[uint64]*Line{},
		Positions: map[api.DeviceID]link.Position{}, Fleet: map[api.DeviceID]*Desired{}}
}

// Backup copies the database; what is counted is then safe.
func (d *Database) Backup() *Database {
	for id, p := range d.Positions {
		p.Safe = p.Acked
		d.Positions[id] = p
	}
	c := NewDatabase()
	c.Epoch = d.Epoch
	for id, s := range d.States {
		cs := *s
		cs.Entries = maps.Clone(s.Entries)
		c.States[id] = &cs
	}
	for id, ls := range d.Ledger {
		c.Ledger[id] = map[uint64]*Line{}
		for seq, l := range ls {
			cl := *l
			c.Ledger[id][seq] = &cl
		}
	}
	c.Positions = maps.Clone(d.Positions)
	for id, f := range d.Fleet {
		c.Fleet[id] = f.clone()
	}
	return c
}

func (d *Database) state(id api.DeviceID) *DeviceState {
	s := d.States[id]
	if s == nil {
		s = &DeviceState{Entries: map[string]link.Entry{}}
		d.States[id] = s
	}
	return s
}

// Devices implements link.CoreStore.
func (d *Database) Devices(fn func(link.DeviceRow) error) error {
	for _, id := range sortedIDs(d.States) {
		s := d.States[id]
		row := link.DeviceRow{Device: id, Attachment: s.Attachment, Epoch: s.Epoch, Seq: s.Seq}
		for k, e := range s.Entries {
			if !e.Deleted {
				row.Live = append(row.Live, link.LiveKey{Key: k, Seq: e.Seq})
			}
		}
		if err := fn(row); err != nil {
			return err
		}
	}
	return nil
}

// ApplyState implements link.CoreStore.
func (d *Database) ApplyState(changes []link.StateChange) error {
	for _, c := range changes {
		s := d.state(c.Device)
		if c.Attachment != nil {
			s.Attachment = c.Attachment
		}
		if c.Full {
			clear(s.Entries)
		}
		for _, e := range c.Entries {
			s.Entries[e.Key] = e
		}
		s.Quarantined += len(c.Quarantined)
		s.Epoch, s.Seq = c.Epoch, c.Seq
	}
	return nil
}

// AcceptBatches implements link.CoreStore.
func (d *Database) AcceptBatches(in []link.BatchIn) ([]link.BatchResult, error) {
	out := make([]link.BatchResult, len(in))
	for i, b := range in {
		v, detail := d.accept(b)
		out[i] = link.BatchResult{Verdict: v, Detail: detail}
	}
	for i, b := range in {
		out[i].Position = d.Positions[b.Device]
	}
	return out, nil
}

func (d *Database) accept(in link.BatchIn) (link.Verdict, string) {
	h, err := record.Peek(in.Raw)
	if err != nil {
		return link.Refused, err.Error()
	}
	p := d.Positions[in.Device]
	verify := func(cose, aad []byte) ([]byte, error) { return open(in.Device, cose, aad) }
	b, end, err := record.Open(verify, in.Raw, in.Device, p.Hash)
	switch {
	case h.Last <= p.Acked: // check: duplicate
		return link.Duplicate, ""
	case h.First != p.Acked+1: // check: duplicate
		return link.Gap, ""
	case err != nil && !h.Explicit:
		return link.Gap, err.Error()
	case err != nil:
		return link.Refused, err.Error()
	case b.Prev != p.Hash && h.First == p.Acked+1:
		return link.Fork, ""
	}
	ledger := d.Ledger[in.Device]
	if ledger == nil {
		ledger = map[uint64]*Line{}
		d.Ledger[in.Device] = ledger
	}
	for _, r := range b.Records {
		l := ledger[r.Seq]
		if l == nil {
			l = &Line{Payload: string(r.Payload)}
			ledger[r.Seq] = l
		}
		l.Count++
	}
	if h.Last > p.Acked {
		p.SpoolEpoch, p.Acked, p.Hash = b.Epoch, b.Last, end
		d.Positions[in.Device] = p
	}
	return link.Accepted, ""
}

// Position implements link.CoreStore.
func (d *Database) Position(id api.DeviceID) (link.Position, error) { return d.Positions[id], nil }
