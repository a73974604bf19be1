package link

import (
	"crypto"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/manifest"
)

// Core is the root of the tree. It believes nothing that a device has not signed or
// authenticated, and keeps in memory only what it compares: versions, attachments and
// manifests.
type Core struct {
	node
	keys CoreKeys
	// answer is which devices want an acknowledgement, and whether an explicit one.
	answer map[api.DeviceID]bool
	// short are devices whose state comes with keys missing.
	short map[api.DeviceID]*shortfall
}

// CoreConfig is what the core's end of the link is made of.
type CoreConfig struct {
	Config
	// Epoch orders everything that the core signs; a restored core begins a higher one.
	Epoch uint64
	Store CoreStore
	Keys  CoreKeys
}

// NewCore makes the root of what its store holds. Manifests are not in the store:
// Publish each device's newest before the children come.
func NewCore(now time.Time, c CoreConfig) (*Core, error) {
	k := &Core{node: newNode(api.DeviceID{}, c.Config), keys: c.Keys, answer: map[api.DeviceID]bool{}, short: map[api.DeviceID]*shortfall{}}
	k.coreEpoch, k.path = c.Epoch, true
	k.keyOf = func(id api.DeviceID) crypto.PublicKey {
		if pub, ok := c.Keys.Device(id); ok {
			return pub
		}
		return nil
	}
	k.verify, k.onState, k.onAttach, k.onAbsent, k.onGone = c.Keys.Verify, k.stateIn, k.attachIn, k.presence, k.presence
	k.onBatch = k.batchIn
	k.onAsk = func(_ time.Time, id api.DeviceID, _ []byte) { k.answer[id] = true }
	err := c.Store.Devices(func(d DeviceRow) error {
		r := k.row(d.Device)
		r.state, r.live = version{d.Epoch, d.Seq}, d.Live
		if d.Attachment == nil {
			return nil
		}
		a, err := peekAttachment(d.Attachment)
		if err != nil {
			return fmt.Errorf("stored attachment of %s: %w", d.Device, err)
		}
		r.absent = a.Parent == k.self
		k.attach(r, a)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load devices: %w", err)
	}
	return k, nil
}

// Publish puts a device's manifest in force. One that is not newer is ignored. tombs are
// the removals as manifest.Since wants them; they may be nil.
func (k *Core) Publish(now time.Time, s *manifest.Signed, tombs map[string]uint64) {
	r := k.row(s.Manifest.Device)
	v := version{s.Manifest.Epoch, s.Manifest.Generation}
	if !v.newer(r.man.version) {
		return
	}
	if len(tombs) == 0 {
		tombs = map[string]uint64{manifest.Floor: v.seq}
		if r.man.epoch == v.epoch {
			tombs[manifest.Floor] = r.man.seq
		}
	}
	k.publish(now, r, v, s.Raw, tombs)
	if r.claim == v {
		r.man.past = []published{{v, 0}} // the device had it before this core came up
	}
	if !r.claim.newer(v) {
		r.claim = version{}
	}
}

// Command sends a signed command towards a device. It fails with api.Unavailable when
// there is no way just now; nothing is kept for later.
func (k *Core) Command(id api.DeviceID, raw []byte) error {
	if !k.passDown(id, steer, putBytes(putID(putMessage(nil, downCommand, 2), id), raw)) {
		return &api.Error{Code: api.Unavailable, Message: "device " + id.String() + " is not reachable", Remedy: "see `edgectl get devices` for when it was last seen"}
	}
	return nil
}

// CommandFrame is a frame that takes a signed command towards a device by way of a child of the
// core that its way leads through, from a core that does not speak with that child itself.
func CommandFrame(id api.DeviceID, raw []byte) []byte {
	return packFrame(putBytes(putID(putMessage(nil, downCommand, 2), id), raw))
}

// Learn takes in where a device is attached from another core, which has checked it. What is
// not newer is ignored.
func (k *Core) Learn(now time.Time, raw []byte) {
	a, err := peekAttachment(raw)
	if err != nil {
		k.warn(now, "attachment", api.Degraded, "an attachment in the store cannot be read: "+err.Error())
		return
	}
	r := k.row(a.Device)
	if a.Counter <= r.att.Counter {
		return
	}
	old, had := k.via(a.Device)
	k.attach(r, a)
	r.absent = false
	next, ok := k.via(a.Device)
	if c := k.children[old]; had && c != nil && c.greeted && (!ok || next != old) {
		k.toChild(old, state, putBytes(putMessage(nil, downMoved, 1), a.Raw), true)
	}
}

// Via finds the child of the core that the way to a device goes through.
func (k *Core) Via(id api.DeviceID) (child api.DeviceID, ok bool) { return k.via(id) }

// Forget drops a retired device: what it sends from now on is foreign.
func (k *Core) Forget(now time.Time, id api.DeviceID) {
	r := k.rows[id]
	if r == nil {
		return
	}
	for _, b := range k.below(id) {
		b.orphan = b.id != id
		k.tell(now, b, false)
	}
	if r.att.Parent == k.self {
		k.eff.Kick = append(k.eff.Kick, id)
		k.eff.Retain = append(k.eff.Retain, Retained{id, nil})
	}
	k.complete(r)
	k.drop(r)
	delete(k.dirty, id)
	delete(k.answer, id)
}

// Reachable reports whether the way to a device is open as far as is known.
func (k *Core) Reachable(id api.DeviceID) bool {
	r := k.rows[id]
	return r != nil && r.online
}

// Heard is when the core last had a sign that a device lives: a frame of its direct
// child on the way to the device, which vouches for all below it that it does not name
// absent. Of a device that is away it is what the last such frame was. It is zero when
// there was none since the core started.
func (k *Core) Heard(id api.DeviceID) time.Time {
	for range MaxDepth {
		r := k.rows[id]
		if r == nil || r.att.Counter == 0 {
			break
		}
		if r.att.Parent != k.self {
			id = r.att.Parent
			continue
		}
		if c := k.children[id]; c != nil {
			return c.heard
		}
		break
	}
	return time.Time{}
}

func (k *Core) stateIn(now time.Time, r *row, s news) {
	keys := k.keys.StateKeys(r.id)
	if len(keys) == 0 {
		k.warn(now, "unknown-device", api.Degraded, "device "+r.id.String()+" has no state key")
		return
	}
	if len(s.entries) == 0 {
		// Nobody between has to prove a number, so what proves nothing changes nothing:
		// else all that a device reports could be taken back for it.
		k.alarm(now, r.id, "unproven-state", api.Degraded, "someone between says without proof that device "+r.id.String()+" reports nothing")
		k.askAgain(now, r, s)
		return
	}
	// A device proves all of its state by one key.
	key := keys[0]
	if i := slices.IndexFunc(keys, func(key [32]byte) bool { return StateMAC(key, r.id, s.epoch, &s.entries[0]) == s.entries[0].MAC }); i >= 0 {
		key = keys[i]
	}
	ch := StateChange{Device: r.id, Epoch: s.epoch, Seq: s.seq, Full: s.full, Entries: s.entries}
	for _, e := range s.entries {
		if StateMAC(key, r.id, s.epoch, &e) != e.MAC { // check: macs
			k.alarm(now, r.id, "bad-mac", api.Critical, fmt.Sprintf("reported key %q of device %s was altered on its way", e.Key, r.id))
			ch.Quarantined = append(ch.Quarantined, e)
		}
	}
	if ch.Quarantined != nil {
		// Nothing that came with it counts as received: the true values are still asked
		// for, and come when nobody between alters them any more.
		ch.Epoch, ch.Seq, ch.Full, ch.Entries = r.state.epoch, r.state.seq, false, nil
		k.eff.State = append(k.eff.State, ch)
		k.askAgain(now, r, s)
		return
	}
	next, whole := k.count(key, r, s)
	if !whole { // check: whole
		k.incomplete(now, r)
		k.askAgain(now, r, s)
		return
	}
	if k.short[r.id] != nil {
		k.complete(r)
	}
	r.census, r.live, r.state = next, nil, s.version
	k.eff.State = append(k.eff.State, ch)
}

// count tells which keys the core would hold with some news, and whether the device
// itself says that these are all. The proof is the newest entry's: the number that the
// news claim must be its own.
func (k *Core) count(key [32]byte, r *row, s news) (next census, ok bool) {
	w := newWhole(key, r.id, s.epoch)
	if !s.full {
		if r.live != nil {
			held := make([]Entry, len(r.live))
			for i, l := range r.live {
				held[i] = Entry{Key: l.Key, Seq: l.Seq}
			}
			r.census, r.live = census{}.with(&w, held), nil
		}
		next = r.census
	}
	next = next.with(&w, s.entries)
	newest := &s.entries[len(s.entries)-1]
	return next, newest.Seq == s.seq && w.proves(newest, next.sum)
}

// shortfall is that a device's true state does not come.
type shortfall struct {
	anew  time.Time // when the device is next asked to tell all anew
	pause time.Duration
	// missing: keys are left out; else they are altered.
	missing bool
}

const (
	// anewGrace is how long a device's state may come wrong before the device is asked to
	// tell it anew: a relay that knows no better may sit between.
	anewGrace = 30 * time.Second
	lastAnew  = 4 * time.Hour

	incompleteWarning = "state-incomplete"
)

// askAgain sees to it that refused state comes as the device told it: from all that the
// child has, or, when that is no better, from the device.
func (k *Core) askAgain(now time.Time, r *row, s news) {
	f := k.shortfall(r.id)
	if f.pause == 0 {
		f.anew, f.pause = now.Add(anewGrace), anewPause
		if v, ok := k.via(r.id); ok {
			k.toChild(v, state, putUint(putUint(putID(putArray(putMessage(nil, downWant, 1), 3), r.id), 0), 0), false)
		}
	}
	if !now.Before(f.anew) {
		f.anew, f.pause = now.Add(f.pause), min(2*f.pause, lastAnew)
		k.passDown(r.id, state, putUint(putID(putMessage(nil, downAnew, 2), r.id), s.epoch))
	}
}

func (k *Core) shortfall(id api.DeviceID) *shortfall {
	f := k.short[id]
	if f == nil {
		f = &shortfall{}
		k.short[id] = f
	}
	return f
}

// incomplete warns that the state of a device came with keys missing; it stands until
// all of it has come.
func (k *Core) incomplete(now time.Time, r *row) {
	msg := "someone between leaves out reported keys of device " + r.id.String()
	if v, ok := k.via(r.id); ok && v != r.id {
		msg += ", below " + v.String()
	}
	msg += ": the core keeps what it had"
	if f := k.shortfall(r.id); !f.missing {
		f.missing = true
		k.alarm(now, r.id, incompleteWarning, api.Critical, msg)
	}
	k.warn(now, incompleteWarning, api.Critical, msg)
}

// complete notes that a device's state has come whole.
func (k *Core) complete(r *row) {
	delete(k.short, r.id)
	if !k.missing() {
		k.clear(incompleteWarning)
	}
}

// missing reports whether state of any device comes with keys missing.
func (k *Core) missing() bool {
	for _, f := range k.short {
		if f.missing {
			return true
		}
	}
	return false
}

func (k *Core) attachIn(now time.Time, r *row) {
	k.eff.State = append(k.eff.State, StateChange{Device: r.id, Epoch: r.state.epoch, Seq: r.state.seq, Attachment: r.att.Raw, Parent: r.att.Parent})
	k.presence(now, r)
}

// presence tells who came and went with a row.
func (k *Core) presence(now time.Time, r *row) {
	if r.orphan {
		k.tell(now, r, false)
		return
	}
	for _, b := range k.below(r.id) {
		k.tell(now, b, k.reaches(b.id))
	}
}

func (k *Core) tell(now time.Time, r *row, online bool) {
	if r.online != online {
		r.online = online
		p := Presence{Device: r.id, Online: online, Heard: now}
		if !online {
			p.Heard = k.Heard(r.id)
		}
		k.eff.Online = append(k.eff.Online, p)
	}
}

func (k *Core) reaches(id api.DeviceID) bool {
	for range MaxDepth {
		r := k.rows[id]
		if r == nil || r.absent || r.orphan || r.att.Counter == 0 {
			return false
		}
		if r.att.Parent == k.self {
			return true
		}
		id = r.att.Parent
	}
	return false
}

func (k *Core) batchIn(now time.Time, r *row, raw, _ []byte) {
	pub, ok := k.keys.Device(r.id)
	if !ok {
		return
	}
	k.eff.Batches = append(k.eff.Batches, BatchIn{r.id, pub, slices.Clone(raw)})
}

// Counted takes what the store made of batches, and answers their devices.
func (k *Core) Counted(now time.Time, in []BatchIn, results []BatchResult) {
	last := map[api.DeviceID]Position{}
	var order []api.DeviceID
	for i, res := range results {
		id := in[i].Device
		if res.Verdict == Refused {
			k.alarm(now, id, "bad-batch", api.Degraded, fmt.Sprintf("records of device %s were refused: %s", id, res.Detail))
			continue
		}
		if res.Verdict == Fork {
			k.alarm(now, id, "record-fork", api.Critical, fmt.Sprintf("device %s has two histories of records: %s", id, res.Detail))
		}
		if _, seen := last[id]; !seen {
			order = append(order, id)
		}
		last[id] = res.Position
		k.answer[id] = k.answer[id] || res.Verdict != Accepted
	}
	for _, id := range order {
		k.acknowledge(now, id, last[id], k.answer[id])
		delete(k.answer, id)
	}
}

// Asked lists devices that want an acknowledgement though they sent no records. The
// caller looks their positions up and calls Answer.
func (k *Core) Asked() []api.DeviceID {
	var out []api.DeviceID
	for id := range k.answer {
		out = append(out, id)
	}
	clear(k.answer)
	slices.SortFunc(out, func(a, b api.DeviceID) int { return slices.Compare(a[:], b[:]) })
	return out
}

// Answer sends a device an acknowledgement that stands by itself.
func (k *Core) Answer(now time.Time, id api.DeviceID, p Position) { k.acknowledge(now, id, p, true) }

func (k *Core) acknowledge(now time.Time, id api.DeviceID, p Position, explicit bool) {
	r := k.rows[id]
	if r == nil {
		return
	}
	a := record.Ack{CoreEpoch: k.coreEpoch, SpoolEpoch: p.SpoolEpoch, Acked: p.Acked, Hash: p.Hash, Safe: p.Safe, Time: k.cfg.Wall(now),
		StateEpoch: r.state.epoch, StateSeq: r.state.seq, Explicit: explicit}
	if r.man.epoch == k.coreEpoch {
		a.Generation = r.man.seq
	}
	raw, err := record.SealAck(k.keys.Sign, id, a)
	if err != nil {
		k.warn(now, "signing", api.Critical, err.Error())
		return
	}
	k.passDown(id, records, putBytes(putID(putMessage(nil, downAck, 2), id), raw))
}

// Warnings lists what is wrong, by name.
func (k *Core) Warnings() []api.Warning { return sortedWarnings(k.warnings) }

// Tick does what is due.
func (k *Core) Tick(now time.Time) {
	k.wake = time.Time{}
	k.tickChildren(now)
	k.flushManifests(now)
	if k.missing() {
		k.raised[incompleteWarning] = now // it stands until all has come
	}
	k.tickWarnings(now)
}

// AckFrame wraps a signed acknowledgement into a frame of its own. It is for tests that
// play a hostile parent.
func AckFrame(id api.DeviceID, raw []byte) []byte {
	return packFrame(putBytes(putID(putMessage(nil, downAck, 2), id), raw))
}
