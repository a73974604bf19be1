package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/pkg/manifest"
)

// Spool is what the device keeps its records in; *spool.Spool is one.
type Spool interface {
	// Append returns when the record is durable.
	Append(kind api.RecordKind, payload []byte) (uint64, error)
	// Cut returns the records after a number and remembers durably that they were sent.
	// It fails with spool.ErrNone.
	Cut(after uint64, maxBytes int) (record.Batch, error)
	ChainAt(epoch, seq uint64) (record.Hash, bool)
	Range() (first, last, acked, safe uint64)
	Confirm(a record.Ack) (spool.Outcome, error)
}

// Device is a box's own part of the link: what it reports, what it shall do, and its
// records. It lives in its Relay; all methods are called by it.
type Device struct {
	id    api.DeviceID
	keys  DeviceKeys
	spool Spool
	key   [32]byte
	r     *Relay
	row   *row // the device's own row in its relay's tree

	floor version // no older manifest is taken
	man   *manifest.Signed
	core  uint64 // the highest core epoch that a signed word has named
	bytes int    // of reported keys and values
	sum   uint64 // of the terms of all that is reported
	undo  func() // takes the last report back
	// renewed is when the core last had the state told anew.
	renewed time.Time

	// Records: sent is the last number sent, explicit says that the next batch is a
	// retry, wanted is when records that wait are due.
	sent     uint64
	inFlight int
	sentAt   time.Time
	explicit bool
	wanted   time.Time
	metered  time.Time // when the last usage record came
	rto      time.Duration
	// silent is since when something waits for the core's word though there is a way, as
	// the parent says.
	silent   time.Time
	asking   bool
	asked    time.Time
	askAgain time.Duration

	// withheld is a manifest that a signed acknowledgement named and that is not here.
	jump uint64 // added to the attachment counter once, after a rebuild

	withheld      version
	withheldSince time.Time
}

// Bounds of a device's reported state.
const (
	maxStateBytes = 512 << 10
	maxTombs      = 128
	firstRTO      = 10 * time.Second
	lastRTO       = 5 * time.Minute
	batchBytes    = 64 << 10

	recordsPerBatch = 4
	minRecordDelay  = 2 * time.Second
	maxRecordDelay  = time.Hour

	anewPause = 10 * time.Minute // between two wishes for the whole state
)

// Buckets of the store.
const (
	bucketDevice   = "device"
	bucketEntry    = "entry"
	bucketRow      = "row"
	bucketManifest = "manifest"
)

func u64s(ns ...uint64) (b []byte) {
	for _, n := range ns {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func readU64s(b []byte, to ...*uint64) error {
	if len(b) < 8*len(to) {
		return fmt.Errorf("%w: stored numbers cut short", errWire)
	}
	for i, p := range to {
		*p = binary.BigEndian.Uint64(b[8*i:])
	}
	return nil
}

func (d *Device) op(name string, value []byte) {
	d.r.eff.Ops = append(d.r.eff.Ops, Op{bucketDevice, []byte(name), value})
	d.r.eff.Sync = true
}

func (d *Device) load(s Store) error {
	return s.Load(bucketDevice, func(k, v []byte) error {
		switch string(k) {
		case "state":
			return readU64s(v, &d.row.state.epoch, &d.row.state.seq, &d.row.lost)
		case "attachment":
			a, err := peekAttachment(bytes.Clone(v))
			if err == nil {
				d.r.attach(d.row, a)
			}
			return err
		case "floor":
			return readU64s(v, &d.floor.epoch, &d.floor.seq)
		case "jump":
			return readU64s(v, &d.jump)
		case "core":
			return readU64s(v, &d.core)
		}
		return nil
	})
}

// loaded runs when entries and manifests are in memory.
func (d *Device) loaded(now time.Time) {
	for _, e := range d.row.entries {
		d.bytes += len(e.Key) + len(e.Value)
	}
	if !d.proven() {
		d.renew(now, 0)
	}
	if d.row.man.raw != nil {
		if s, err := d.keys.OpenManifest(d.row.man.raw); err == nil {
			d.man = s
			d.r.obey(now, s)
		}
	}
	if d.spool != nil {
		d.sent, d.explicit = d.acked(), true
		if d.last() > d.sent {
			d.wanted = now
		}
	}
}

// proven counts what is reported, and tells whether the newest entry proves it. It does
// not when the state is lost or an older version's, or was proved to another core.
func (d *Device) proven() (ok bool) {
	w := newWhole(d.key, d.id, d.row.state.epoch)
	var newest *item
	d.sum = 0
	for _, e := range d.row.entries {
		if !e.Deleted {
			d.sum += w.term(&e.Entry)
		}
		if e.Seq == d.row.state.seq {
			newest = e
		}
	}
	return newest != nil && w.proves(&newest.Entry, d.sum)
}

// anew is the core's wish to have everything told again: what came was not all.
func (d *Device) anew(now time.Time, epoch uint64) {
	if epoch != d.row.state.epoch || !d.renewed.IsZero() && now.Sub(d.renewed) < anewPause {
		return
	}
	d.renewed = now
	d.r.cfg.Log.Info("the core lacks some of what is reported: it is told anew")
	d.renew(now, epoch)
	d.r.due(now.Add(d.r.cfg.Fold))
}

// rekey has everything authenticated anew when the key that is shared with the core is another: the core has one of two
// keys, until the device uses the newer.
func (d *Device) rekey(now time.Time) {
	key, err := d.keys.StateKey()
	if err != nil || key == d.key {
		return
	}
	d.r.cfg.Log.Info("the core has another sealing key: what is reported is told anew")
	d.key = key
	d.renew(now, 0)
	d.r.due(now.Add(d.r.cfg.Fold))
}

// renew begins a new state epoch, higher than any before: everything is numbered and
// authenticated anew. It is due when the state was created, or when someone above has
// newer state of this device than the device itself, which then came back from a copy.
func (d *Device) renew(now time.Time, atLeast uint64) {
	d.row.state = version{epoch: max(uint64(max(d.r.cfg.Wall(now), 1)), atLeast+1, d.row.state.epoch+1)}
	d.row.ahead = version{}
	var live []*item
	for k, e := range d.row.entries {
		if e.Deleted {
			delete(d.row.entries, k)
			d.storeEntry(k, nil)
			continue
		}
		live = append(live, e)
	}
	slices.SortFunc(live, func(a, b *item) int { return bytes.Compare([]byte(a.Key), []byte(b.Key)) })
	d.row.lost, d.sum = 0, 0
	if len(live) == 0 {
		// That nothing is reported must be proven too.
		live = []*item{{Entry: Entry{Key: nothing, Deleted: true}}}
		d.row.entries[nothing] = live[0]
	}
	w := newWhole(d.key, d.id, d.row.state.epoch)
	for _, e := range live {
		d.write(&w, e)
	}
	d.storeState()
}

// nothing is a key that is only ever deleted.
const nothing = "-"

func (d *Device) storeState() {
	d.op("state", u64s(d.row.state.epoch, d.row.state.seq, d.row.lost))
}

func (d *Device) storeEntry(key string, e *item) {
	op := Op{Bucket: bucketEntry, Key: append(d.id[:len(d.id):len(d.id)], key...)}
	if e != nil {
		op.Value = putEntry(u64s(e.Seq), &e.Entry, e.Seq)
	}
	d.r.eff.Ops = append(d.r.eff.Ops, op)
}

// write gives an entry the next number, and has it prove the whole.
func (d *Device) write(w *whole, e *item) {
	d.row.state.seq++
	e.Seq = d.row.state.seq
	if !e.Deleted {
		d.sum += w.term(&e.Entry)
	}
	e.Extra = w.proof(e.Seq, d.sum)
	e.MAC = StateMAC(d.key, d.id, d.row.state.epoch, &e.Entry)
	d.r.touch(d.row, e)
	d.storeEntry(e.Key, e)
}

// report changes a key; nil deletes it.
func (d *Device) report(now time.Time, key string, value []byte) error {
	if key == "" || len(key) > MaxKey || len(value) > MaxValue {
		return &api.Error{Code: api.TooLarge, Message: fmt.Sprintf("reported key of %d bytes with a value of %d", len(key), len(value)), Remedy: "a key has at most 255 bytes, a value 64 KiB"}
	}
	old := d.row.entries[key]
	if old != nil && old.Deleted == (value == nil) && bytes.Equal(old.Value, value) || old == nil && value == nil {
		return nil
	}
	grown := d.bytes + len(value)
	if old != nil {
		grown -= len(old.Value)
	} else {
		grown += len(key)
	}
	if value != nil && (grown > maxStateBytes || old == nil && len(d.row.entries) >= MaxEntries-maxTombs) {
		return &api.Error{Code: api.TooLarge, Message: "the reported state is full", Remedy: "report fewer or smaller keys"}
	}
	bytesBefore, stateBefore, lostBefore, sumBefore := d.bytes, d.row.state, d.row.lost, d.sum
	d.undo = func() {
		d.bytes, d.row.state, d.row.lost, d.sum = bytesBefore, stateBefore, lostBefore, sumBefore
		if delete(d.row.entries, key); old != nil {
			d.row.entries[key] = old
		}
	}
	e := &item{Entry: Entry{Key: key, Value: bytes.Clone(value), Deleted: value == nil}}
	if value != nil && e.Value == nil {
		e.Value = []byte{}
	}
	d.bytes = grown
	w := newWhole(d.key, d.id, d.row.state.epoch)
	if old != nil && !old.Deleted {
		d.sum -= w.term(&old.Entry)
	}
	d.row.entries[key] = e
	d.write(&w, e)
	d.boundTombs()
	d.storeState()
	d.r.due(now.Add(d.r.cfg.Fold))
	return nil
}

// boundTombs forgets the oldest deletions past the bound.
func (d *Device) boundTombs() {
	for _, k := range d.row.forgetTombs(maxTombs, 0) {
		d.storeEntry(k, nil)
	}
}

// forgetTombs drops tombstones up to seq, and the oldest ones past keep; never the
// newest change, which proves the whole.
func (r *row) forgetTombs(keep int, seq uint64) (gone []string) {
	var tombs []*item
	for _, e := range r.entries {
		if e.Deleted && e.Seq != r.state.seq {
			tombs = append(tombs, e)
		}
	}
	slices.SortFunc(tombs, func(a, b *item) int { return int(a.Seq) - int(b.Seq) })
	for i, e := range tombs {
		if e.Seq > seq && len(tombs)-i <= keep {
			break
		}
		r.lost, r.lostFeed = max(r.lost, e.Seq), max(r.lostFeed, e.feed)
		delete(r.entries, e.Key)
		gone = append(gone, e.Key)
	}
	return gone
}

// attachTo signs an attachment when the parent is another than before.
func (d *Device) attachTo(now time.Time, parent api.DeviceID) {
	if d.row.att.Counter > 0 && d.row.att.Parent == parent && d.jump == 0 {
		return
	}
	a, err := signAttachment(d.keys.Sign, d.id, parent, d.row.att.Counter+1+d.jump)
	if err != nil {
		d.r.warn(now, "signing", api.Critical, err.Error())
		return
	}
	d.r.attach(d.row, a)
	d.op("attachment", a.Raw)
	if d.jump > 0 {
		d.jump = 0
		d.op("jump", nil)
	}
}

// Restored tells a store that it was rebuilt from an older copy: the box begins a new
// state epoch, and its next attachment is newer than any that it may have signed since.
func Restored(s Store) error {
	return s.Commit([]Op{{Bucket: bucketDevice, Key: []byte("state")}, {Bucket: bucketDevice, Key: []byte("jump"), Value: u64s(1 << 20)}}, true)
}

// take decides on a manifest whose signature was checked.
func (d *Device) take(now time.Time, s *manifest.Signed) bool {
	v := version{s.Manifest.Epoch, s.Manifest.Generation}
	if s.Manifest.Device != d.id {
		d.r.warn(now, "foreign-manifest", api.Degraded, "the parent passed a manifest of "+s.Manifest.Device.String())
		return false
	}
	if !v.newer(d.floor) {
		return false
	}
	d.floor, d.man = v, s
	d.op("floor", u64s(v.epoch, v.seq))
	d.r.eff.Manifest = s
	d.r.obey(now, s)
	if !d.withheld.newer(v) {
		d.withheldSince = time.Time{}
		d.r.clear("manifest-withheld")
	}
	return true
}

// recordDelay is how long a record may wait for others, when the one before came at last.
func recordDelay(now, last time.Time) time.Duration {
	if last.IsZero() {
		return minRecordDelay
	}
	return min(max(recordsPerBatch*now.Sub(last), minRecordDelay), maxRecordDelay)
}

func (d *Device) acked() uint64 {
	_, _, acked, _ := d.spool.Range()
	return acked
}

func (d *Device) last() uint64 {
	_, last, _, _ := d.spool.Range()
	return last
}

// appended notes that a record of a kind waits.
func (d *Device) appended(now time.Time, kind api.RecordKind) {
	wait := d.r.cfg.Fold
	if kind == api.RecordUsage || kind == api.RecordTelemetry {
		if wait = d.r.cfg.RecordDelay; wait <= 0 {
			wait = recordDelay(now, d.metered)
		}
		d.metered = now
	}
	if t := now.Add(wait); d.wanted.IsZero() || t.Before(d.wanted) {
		d.wanted = t
	}
	d.r.due(d.wanted)
}

// pump sends records while the window allows, and again those that nobody acknowledged.
func (d *Device) pump(now time.Time) {
	if d.spool == nil || !d.r.path || !d.r.u.synced {
		return
	}
	d.ask(now)
	if d.inFlight > 0 {
		if left := d.sentAt.Add(d.patience()); !now.Before(left) {
			d.rto = min(2*max(d.patience(), firstRTO/2), lastRTO)
			d.goBack(now)
		} else {
			d.r.due(left)
		}
	}
	if d.wanted.IsZero() {
		return
	}
	if now.Before(d.wanted) {
		d.r.due(d.wanted)
		return
	}
	for d.inFlight < d.r.cfg.DeviceWindow {
		b, err := d.spool.Cut(d.sent, batchBytes)
		if errors.Is(err, spool.ErrNone) {
			d.wanted = time.Time{}
			return
		}
		if err != nil {
			d.r.warn(now, "spool", api.Critical, fmt.Sprintf("records cannot be read: %v", err))
			return
		}
		b.Explicit = d.explicit
		raw, _, err := record.Seal(d.keys.Sign, d.id, b)
		if err != nil {
			d.r.warn(now, "spool", api.Critical, fmt.Sprintf("records %d to %d cannot be sealed: %v", b.First, b.Last, err))
			return
		}
		d.sent, d.sentAt = b.Last, now
		d.listen(now)
		d.inFlight += len(raw)
		d.r.toParent(records, putBytes(putID(putMessage(nil, upBatch, 2), d.id), raw), true)
	}
	d.r.due(d.sentAt.Add(d.patience()))
}

// patience is how long sent records wait for their acknowledgement.
func (d *Device) patience() time.Duration {
	if d.rto == 0 {
		return firstRTO
	}
	return d.rto
}

// listen notes that the core has to say something now.
func (d *Device) listen(now time.Time) {
	if d.silent.IsZero() {
		d.silent = now
	}
	d.r.due(d.silent.Add(d.withheldAfter()))
}

// heard notes that the core did, or that it has no way to.
func (d *Device) heard() {
	d.silent = time.Time{}
	d.r.clear("core-silent")
}

// goBack sends again from what is counted, each batch with its chain value.
func (d *Device) goBack(now time.Time) {
	d.sent, d.inFlight, d.explicit = d.acked(), 0, true
	if d.last() > d.sent {
		d.wanted = now
	}
}

// pathUp: the way to the core is open again; what is on its way may be lost.
func (d *Device) pathUp(now time.Time, coreEpoch uint64) {
	if d.spool == nil {
		return
	}
	d.rto = 0
	d.goBack(now)
	if coreEpoch > d.core && (d.core > 0 || d.acked() > 0) || d.tombs() > maxTombs/2 {
		d.asking, d.asked, d.askAgain = true, now.Add(patience-firstRTO), 0
	}
}

func (d *Device) tombs() (n int) {
	for _, e := range d.row.entries {
		if e.Deleted {
			n++
		}
	}
	return n
}

// ask wants an acknowledgement from the core, again and again until one comes.
func (d *Device) ask(now time.Time) {
	left := d.asked.Add(max(d.askAgain, firstRTO))
	if !d.asking || !d.asked.IsZero() && now.Before(left) {
		if d.asking {
			d.r.due(left)
		}
		return
	}
	d.asked, d.askAgain = now, min(2*max(d.askAgain, firstRTO), lastRTO)
	d.r.toParent(steer, putID(putMessage(nil, upAsk, 1), d.id), false)
	d.r.due(now.Add(d.askAgain))
	d.listen(now)
}

// acknowledged takes the core's signed word.
func (d *Device) acknowledged(now time.Time, raw []byte) {
	chainAt := func(uint64, uint64) (record.Hash, bool) { return record.Hash{}, false }
	if d.spool != nil {
		chainAt = d.spool.ChainAt
	}
	a, err := record.OpenAck(d.keys.VerifyCore, raw, d.id, chainAt)
	if err != nil {
		// A short one under another chain looks the same as a forged one: the explicit
		// answer to an explicit batch tells.
		if d.explicit {
			d.r.warn(now, "bad-ack", api.Degraded, fmt.Sprintf("an acknowledgement was refused: %v", err))
		}
		d.explicit = true
		return
	}
	if a.CoreEpoch < d.core { // check: epoch
		return
	}
	if d.spool == nil || a.Acked >= d.sent || a.Acked > d.acked() {
		d.heard() // an old one, played again, says nothing
	}
	if a.CoreEpoch >= d.r.coreEpoch {
		d.asking = false
	}
	if a.CoreEpoch > d.core {
		d.core = a.CoreEpoch
		d.op("core", u64s(d.core))
	}
	d.r.eff.CoreTime = max(d.r.eff.CoreTime, a.Time)
	d.named(now, version{a.CoreEpoch, a.Generation})
	if gone := d.row.forgetTombs(maxTombs, d.confirmedState(a)); len(gone) > 0 {
		for _, k := range gone {
			d.storeEntry(k, nil)
		}
		d.storeState()
	}
	if d.spool == nil {
		return
	}
	before := d.acked()
	out, err := d.spool.Confirm(*a)
	if err != nil {
		d.r.warn(now, "spool", api.Critical, fmt.Sprintf("an acknowledgement cannot be kept: %v", err))
		return
	}
	switch {
	case out == spool.Rewound || out == spool.Restarted:
		d.goBack(now)
	case out == spool.Advanced && d.acked() > before:
		d.rto = 0
		d.explicit = false
		if d.acked() >= d.sent {
			d.sent, d.inFlight = max(d.sent, d.acked()), 0
		} else {
			// Part of the window came through; what is behind is still on its way.
			d.inFlight = d.inFlight * int(d.sent-d.acked()) / int(max(d.sent-before, 1))
		}
		if d.last() > d.sent && d.wanted.IsZero() {
			d.wanted = now
		}
	case a.Explicit && a.Acked < d.sent:
		// A gap or a repeat: what is on its way may still fit, so give it a moment.
		d.rto = min(d.patience(), patience)
		d.r.due(d.sentAt.Add(d.rto))
	}
	d.pump(now)
}

// confirmedState is how far the core has this device's state of the present epoch.
func (d *Device) confirmedState(a *record.Ack) uint64 {
	if a.StateEpoch != d.row.state.epoch {
		return 0
	}
	return min(a.StateSeq, d.row.state.seq)
}

// named notes the newest manifest that the core has signed for. When it does not come,
// someone between keeps it back.
func (d *Device) named(now time.Time, v version) {
	if !v.newer(d.floor) || v.seq == 0 {
		return
	}
	if v.newer(d.withheld) || d.withheldSince.IsZero() {
		d.withheld, d.withheldSince = v, now
	}
	b := putArray(putMessage(nil, upNeed, 1), 3)
	d.r.toParent(steer, putUint(putUint(putID(b, d.id), d.floor.epoch), d.floor.seq), false)
	d.r.due(now.Add(d.withheldAfter()))
}

// withheldAfter is how long a newer manifest may be on its way.
func (d *Device) withheldAfter() time.Duration {
	if d.r.cfg.Withheld > 0 {
		return d.r.cfg.Withheld
	}
	return 5 * d.r.cfg.Health
}

func (d *Device) tick(now time.Time) {
	if !d.withheldSince.IsZero() {
		if left := d.withheldSince.Add(d.withheldAfter()); now.Before(left) {
			d.r.due(left)
		} else {
			d.r.warn(now, "manifest-withheld", api.Critical, fmt.Sprintf("the core has signed for manifest %d of epoch %d, but the parent does not pass it", d.withheld.seq, d.withheld.epoch))
		}
	}
	if !d.silent.IsZero() {
		if left := d.silent.Add(d.withheldAfter()); now.Before(left) {
			d.r.due(left)
		} else {
			d.r.warn(now, "core-silent", api.Degraded, "the parent says that there is a way to the core, but records stay without the core's signed word")
		}
	}
	d.pump(now)
}
