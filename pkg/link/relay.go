package link

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// Relay is a box's place in the tree: its own device, and everything below it. A box
// without children is a relay of one. It needs nothing on its disk to be right: what it
// keeps there only lets its subtree go on while it is cut off.
type Relay struct {
	node
	keys RelayKeys
	dev  *Device
	u    uplink

	feed     uint64 // names our up feed; a restart begins another
	feedPos  uint64
	changed  map[api.DeviceID]struct{} // rows with entries not yet sent up
	attached map[api.DeviceID]struct{} // rows whose attachment is not yet sent up
	absents  map[api.DeviceID]struct{} // rows whose absence has changed
}

// RelayConfig is what a relay is made of.
type RelayConfig struct {
	Config
	Self  api.DeviceID
	Cert  []byte // the box's own certificate, DER
	Store Store
	Spool Spool // nil: the box has no records
	Keys  interface {
		DeviceKeys
		RelayKeys
	}
}

// NewRelay makes a relay of what its store holds.
func NewRelay(now time.Time, c RelayConfig) (*Relay, error) {
	r := &Relay{node: newNode(c.Self, c.Config), keys: c.Keys,
		changed: map[api.DeviceID]struct{}{}, attached: map[api.DeviceID]struct{}{}, absents: map[api.DeviceID]struct{}{}}
	r.feed = r.cfg.Rand() >> 48
	r.keyOf = func(id api.DeviceID) crypto.PublicKey {
		if row := r.rows[id]; row != nil {
			return row.pub
		}
		return nil
	}
	r.verify, r.onState, r.onAttach, r.onAbsent, r.onGone = c.Keys.Verify, r.stateIn, r.attachIn, r.absentIn, r.goneIn
	r.onBatch = func(_ time.Time, row *row, _, msg []byte) {
		if r.introduced(row) {
			r.forward(records, msg, true)
		}
	}
	r.onAsk = func(_ time.Time, id api.DeviceID, msg []byte) {
		if r.introduced(r.rows[id]) {
			r.forward(state, msg, false) // behind the attachment
		}
	}
	r.onNeed, r.onRouted = r.needIn, func(_ time.Time, msg []byte) { r.forward(state, msg, true) }
	r.certificate, r.takeManifest = r.certIn, r.manifestIn
	key, err := c.Keys.StateKey()
	if err != nil {
		return nil, fmt.Errorf("state key: %w", err)
	}
	own := r.row(c.Self)
	own.cert, own.entries, own.known = c.Cert, map[string]*item{}, true
	r.dev = &Device{id: c.Self, keys: c.Keys, spool: c.Spool, key: key, r: r, row: own}
	if err := r.load(now, c.Store); err != nil {
		return nil, err
	}
	return r, nil
}

// storedRow is a row on the disk; entries and manifests have buckets of their own.
type storedRow struct {
	Attachment []byte `cbor:"1,keyasint,omitempty"`
	Cert       []byte `cbor:"2,keyasint,omitempty"`
	Epoch, Seq uint64 `cbor:",omitempty"`
	Lost       uint64 `cbor:",omitempty"`
}

type storedManifest struct {
	Epoch uint64            `cbor:"1,keyasint"`
	Gen   uint64            `cbor:"2,keyasint"`
	Raw   []byte            `cbor:"3,keyasint"`
	Tombs map[string]uint64 `cbor:"4,keyasint,omitempty"`
}

func (r *Relay) load(now time.Time, s Store) error {
	if err := r.dev.load(s); err != nil {
		return fmt.Errorf("load device: %w", err)
	}
	err := s.Load(bucketRow, func(k, v []byte) error {
		var st storedRow
		if len(k) != 8 || cbor.Unmarshal(v, &st) != nil {
			return nil // a relay learns again what it cannot read
		}
		row := r.row(api.DeviceID(k))
		row.entries, row.state, row.lost = map[string]*item{}, version{st.Epoch, st.Seq}, st.Lost
		if id, pub, err := r.keys.Certificate(bytes.Clone(st.Cert)); err == nil && id == row.id {
			row.cert, row.pub = bytes.Clone(st.Cert), pub
		}
		if a, err := peekAttachment(bytes.Clone(st.Attachment)); err == nil && a.Device == row.id {
			r.attach(row, a)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load rows: %w", err)
	}
	err = s.Load(bucketEntry, func(k, v []byte) error {
		if len(k) < 9 || len(v) < 9 {
			return nil
		}
		row := r.rows[api.DeviceID(k[:8])]
		var seq uint64
		if row == nil || readU64s(v, &seq) != nil {
			return nil
		}
		rd := reader{b: bytes.Clone(v[8:])}
		if e := rd.entry(seq); rd.err == nil {
			it := &item{Entry: e}
			row.entries[e.Key] = it
			r.feedPos++
			it.feed, row.feed = r.feedPos, r.feedPos
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load entries: %w", err)
	}
	err = s.Load(bucketManifest, func(k, v []byte) error {
		var st storedManifest
		if row := r.rows[api.DeviceID(k)]; row != nil && cbor.Unmarshal(v, &st) == nil {
			row.man = held{version: version{st.Epoch, st.Gen}, raw: st.Raw, tombs: st.Tombs}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load manifests: %w", err)
	}
	r.dev.loaded(now)
	for id, row := range r.rows {
		if row.att.Counter > 0 && row.att.Parent == r.self {
			c := r.child(id)
			c.downSince = now
			if row.man.raw != nil {
				r.eff.Retain = append(r.eff.Retain, Retained{id, row.man.raw})
			}
		}
	}
	slices.SortFunc(r.eff.Retain, func(a, b Retained) int { return bytes.Compare(a.Child[:], b.Child[:]) })
	r.due(now.Add(r.cfg.Grace))
	return nil
}

// put stores something that may be lost: the relay would learn it again.
func (r *Relay) put(bucket string, key, value []byte) {
	r.eff.Ops = append(r.eff.Ops, Op{bucket, key, value})
}

func (r *Relay) putRow(row *row) {
	if row.id == r.self {
		return
	}
	b, err := cbor.Marshal(storedRow{row.att.Raw, row.cert, row.state.epoch, row.state.seq, row.lost})
	if err == nil {
		r.put(bucketRow, bytes.Clone(row.id[:]), b)
	}
}

// touch numbers an entry in the up feed.
func (r *Relay) touch(row *row, e *item) {
	r.feedPos++
	e.feed, row.feed = r.feedPos, r.feedPos
	r.changed[row.id] = struct{}{}
}

func (r *Relay) stateIn(now time.Time, row *row, s news) {
	key := func(k string) []byte { return append(row.id[:len(row.id):len(row.id)], k...) }
	if s.full {
		keep := map[string]bool{}
		for _, e := range s.entries {
			keep[e.Key] = true
		}
		row.lost = s.lost
		if s.epoch > row.state.epoch {
			row.lostFeed = 0
		}
		for k := range row.entries {
			if keep[k] {
				continue
			}
			delete(row.entries, k)
			r.put(bucketEntry, key(k), nil)
			if s.epoch == row.state.epoch {
				row.lostFeed = r.feedPos + 1
			}
		}
		if row.lostFeed > r.feedPos {
			r.feedPos++
			r.changed[row.id] = struct{}{}
		}
	}
	for _, e := range s.entries {
		it := &item{Entry: e}
		row.entries[e.Key] = it
		r.touch(row, it)
		r.put(bucketEntry, key(e.Key), putEntry(u64s(e.Seq), &e, e.Seq))
	}
	row.state = s.version
	for _, k := range row.forgetTombs(maxTombs, 0) {
		r.put(bucketEntry, key(k), nil)
	}
	r.putRow(row)
	r.due(now.Add(r.cfg.Fold))
}

func (r *Relay) attachIn(now time.Time, row *row) {
	if row.entries == nil {
		row.entries = map[string]*item{}
	}
	row.attSent = false
	r.attached[row.id] = struct{}{}
	r.putRow(row)
	r.due(now.Add(r.cfg.Fold))
}

func (r *Relay) absentIn(now time.Time, row *row) {
	r.absents[row.id] = struct{}{}
	r.due(now.Add(r.cfg.Fold))
}

// goneIn forgets a device that is no longer below.
func (r *Relay) goneIn(_ time.Time, row *row) {
	if row.id == r.self {
		return
	}
	for k := range row.entries {
		r.put(bucketEntry, append(row.id[:len(row.id):len(row.id)], k...), nil)
	}
	r.put(bucketRow, bytes.Clone(row.id[:]), nil)
	r.put(bucketManifest, bytes.Clone(row.id[:]), nil)
	if row.att.Parent == r.self {
		r.eff.Retain = append(r.eff.Retain, Retained{row.id, nil})
	}
	delete(r.changed, row.id)
	delete(r.attached, row.id)
	r.drop(row)
}

func (r *Relay) certIn(der []byte, expected func(api.DeviceID) bool) (id api.DeviceID, ok bool) {
	id, pub, err := r.keys.Certificate(der)
	if err != nil || !expected(id) {
		return id, false
	}
	row := r.row(id)
	if row.entries == nil {
		row.entries = map[string]*item{}
	}
	row.pub = pub
	if !bytes.Equal(row.cert, der) {
		row.cert = der
		if row.att.Counter > 0 {
			r.putRow(row)
		}
	}
	return id, true
}

// needIn passes a question for a newer manifest on.
func (r *Relay) needIn(_ time.Time, id api.DeviceID, have version) {
	b := putArray(putMessage(nil, upNeed, 1), 3)
	r.forward(steer, putUint(putUint(putID(b, id), have.epoch), have.seq), false)
}

// introduced tells the parent of a device that has just come, before the parent hears from
// it; until then what the device sends is dropped, and sent again by the device.
func (r *Relay) introduced(row *row) bool {
	if !row.attSent && r.u.synced {
		r.sendAttached()
	}
	return row.attSent
}

// forward sends a message on towards the core, or drops it while there is no way.
func (r *Relay) forward(p priority, msg []byte, reliable bool) {
	if r.u.synced {
		r.toParent(p, msg, reliable)
	}
}

// manifestIn takes a manifest or a delta, of this device or of one below.
func (r *Relay) manifestIn(now time.Time, b []byte, fromParent bool) {
	id, v, err := header(b)
	if err != nil {
		r.refuse(now, r.u.parent, "manifest", err)
		return
	}
	row := r.rows[id]
	if _, below := r.via(id); row == nil || id != r.self && !below {
		if len(r.rows) == 1 { // nothing was ever below, so it is not that of a child that has moved on
			r.warn(now, "foreign-manifest", api.Critical, "the parent passed a manifest of "+id.String())
		}
		return
	}
	if !v.newer(row.man.version) {
		if id == r.self && row.man.newer(v) {
			r.warn(now, "manifest-old", api.Degraded, fmt.Sprintf("the parent passed manifest %d of epoch %d, %d of epoch %d is in force", v.seq, v.epoch, row.man.seq, row.man.epoch))
		}
		return
	}
	s, tombs, err := row.man.graft(b)
	if err == nil {
		s, err = r.keys.OpenManifest(s.Raw)
	} else if errors.Is(err, manifest.ErrBase) {
		if row.claim.newer(row.man.version) && !isWhole(b) {
			row.stash = bytes.Clone(b)
		} else if fromParent {
			r.forward(steer, putUint(putUint(putID(putArray(putMessage(nil, upNeed, 1), 3), id), 0), 0), false)
		}
		return
	}
	if err != nil {
		r.warn(now, "manifest-forged", api.Critical, fmt.Sprintf("a manifest of %s was refused: %v", id, err))
		return
	}
	if id == r.self {
		if !r.dev.take(now, s) {
			return
		}
	} else {
		r.eff.Below = append(r.eff.Below, s)
	}
	r.publish(now, row, v, bytes.Clone(s.Raw), tombs)
	if !fromParent {
		row.man.past = []published{{v, 0}} // the child has it
	}
	if !row.claim.newer(v) {
		row.claim, row.tries = version{}, 0
	}
	if b, err := cbor.Marshal(storedManifest{v.epoch, v.seq, s.Raw, tombs}); err == nil {
		r.put(bucketManifest, bytes.Clone(id[:]), b)
	}
	if stash := row.stash; stash != nil && !fromParent {
		row.stash = nil
		r.manifestIn(now, stash, true)
	}
}

// chaseClaims asks again for manifests that someone below has and this relay lacks: the
// child at first, then the parent for all of what it has.
func (r *Relay) chaseClaims() {
	for _, row := range r.below(r.self) {
		if !row.claim.newer(row.man.version) || row.id == r.self {
			continue
		}
		row.tries++
		if row.tries > 2 && row.stash != nil {
			row.stash = nil
			r.forward(steer, putUint(putUint(putID(putArray(putMessage(nil, upNeed, 1), 3), row.id), 0), 0), false)
		} else if row.tries < 16 || row.tries%16 == 0 {
			r.passDown(row.id, state, putID(putMessage(nil, downGive, 1), row.id))
		}
	}
}

// Retained takes what the parent keeps on m/<own id>.
func (r *Relay) Retained(now time.Time, raw []byte) {
	if len(raw) > 0 && isWhole(raw) {
		r.manifestIn(now, bytes.Clone(raw), true)
	}
}

// Report changes a key of the box's own reported state; nil deletes it. It is in force
// once the effects are committed.
func (r *Relay) Report(now time.Time, key string, value []byte) error {
	return r.dev.report(now, key, value)
}

// undoReport takes the last report back, which could not be stored.
func (r *Relay) undoReport() {
	if r.dev.undo != nil {
		r.dev.undo()
		r.dev.undo = nil
	}
}

// Appended tells that a record went into the spool.
func (r *Relay) Appended(now time.Time, kind api.RecordKind) { r.dev.appended(now, kind) }

// Manifest is the newest one for this box; nil when there is none.
func (r *Relay) Manifest() *manifest.Signed { return r.dev.man }

// Warnings lists what is wrong, by name.
func (r *Relay) Warnings() []api.Warning { return sortedWarnings(r.warnings) }

// Tick does what is due.
func (r *Relay) Tick(now time.Time) {
	r.wake = time.Time{}
	r.dev.rekey(now)
	r.tickChildren(now)
	r.tickUplink(now)
	r.flushManifests(now)
	r.dev.tick(now)
	r.tickWarnings(now)
}
