package link

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// uplink is the child's side of the link to the parent.
type uplink struct {
	up     bool
	parent api.DeviceID
	known  bool // parent was set once
	// welcomed: the parent answered our hello. synced: it follows our feed from sent on.
	welcomed, synced bool
	sent             uint64
	helloPos         uint64
	helloAt          time.Time
	tries            int
	upAt             time.Time
	// deaf counts sessions in a row in which the parent answered nothing.
	deaf int

	// downFeed and downPos: everything of the parent's down feed to there is here.
	downFeed, downPos uint64
	sinceAt           time.Time

	walk     uint64
	shown    [][]claimed // rows of the walk by frame, until they are answered
	shownAt  time.Time
	nextBeat time.Time
	fetched  bool // the retained manifest was asked for in this session
}

// rowsPerFrame bounds the rows in one message of a walk.
const rowsPerFrame = 4096

// ParentUp tells of a new session with a parent; zero is the core.
func (r *Relay) ParentUp(now time.Time, parent api.DeviceID) {
	if !r.u.known || r.u.parent != parent {
		// Another parent knows nothing of our feed and may be behind the old one.
		for _, row := range r.rows {
			row.ahead, row.known, row.attSent = version{}, false, false
		}
		r.u = uplink{parent: parent, known: true}
	}
	r.dev.attachTo(now, parent)
	r.u.up, r.u.upAt, r.u.tries, r.u.fetched = true, now, 0, false
	r.hello(now)
}

// ParentDown tells that the session is lost.
func (r *Relay) ParentDown(now time.Time) {
	r.u.up, r.u.welcomed, r.u.synced, r.u.shown = false, false, false, nil
	r.up = outbox{}
	r.setPath(now, false, r.coreEpoch)
}

// Connected reports whether the parent answers, and whether there is a way to the core.
func (r *Relay) Connected() (parent api.DeviceID, connected, path bool) {
	return r.u.parent, r.u.welcomed, r.path
}

func (r *Relay) hello(now time.Time) {
	r.u.welcomed, r.u.synced, r.u.shown = false, false, nil
	r.u.helloPos, r.u.helloAt = r.feedPos, now
	rows := r.below(r.self)
	b := putUint(putUint(putMessage(nil, upHello, 6), r.feed), r.feedPos)
	b = putUint(putUint(b, r.u.downFeed), r.u.downPos)
	r.toParent(steer, putUint(putUint(b, digestOf(rows)), uint64(absentHash(rows, r.self))), false)
	r.due(now.Add(r.helloAgain()))
}

// Bounds of how long a parent may hear and not answer.
const (
	firstDeaf = 30 * time.Second
	lastDeaf  = time.Hour
)

// deafLimit is when a session without an answer is ended: what the broker between lost
// of it, a new one has. Each such session may take twice as long, since a parent that
// never answers costs a handshake each time.
func (r *Relay) deafLimit() time.Time {
	return r.u.upAt.Add(min(firstDeaf<<min(r.u.deaf, 7), lastDeaf))
}

func (r *Relay) helloAgain() time.Duration {
	return min(firstRepeat<<min(r.u.tries, 6), r.cfg.Health)
}

// FromParent takes a frame of the parent.
func (r *Relay) FromParent(now time.Time, frame []byte) {
	msgs, err := splitFrame(frame)
	if err != nil {
		r.refuse(now, r.u.parent, "frame", err)
		return
	}
	count(&r.stats.UpIn, downClass, msgs, len(frame))
	for i := range msgs {
		m := &msgs[i]
		r.parentMessage(now, m)
		if m.r.err != nil {
			r.refuse(now, r.u.parent, "message", m.r.err)
		}
	}
}

func (r *Relay) parentMessage(now time.Time, m *message) {
	rd := &m.r
	if !r.u.up {
		return
	}
	switch m.typ {
	case downWelcome:
		r.welcomeIn(now, m)
	case downGreet:
		if r.u.welcomed || now.Sub(r.u.helloAt) > patience {
			r.hello(now)
		}
	case downSince:
		r.sinceIn(now, rd)
	case downWalk:
		r.walkIn(rd)
	case downDiff:
		r.diffIn(now, m)
	case downWants:
		r.wantsIn(now, rd)
	case downWant:
		m.each(func() {
			rd.array()
			id, have := rd.id(), version{rd.uint(), rd.uint()}
			if row := r.rows[id]; row != nil && rd.err == nil {
				r.follow(now, row, have)
			}
		})
	case downAhead:
		m.each(func() {
			rd.array()
			r.aheadIn(now, rd.id(), version{rd.uint(), rd.uint()})
		})
	case downManifests:
		r.manifestsIn(now, m)
	case downPatch:
		m.each(func() {
			if b := rd.bytes(MaxFrame); rd.err == nil {
				r.manifestIn(now, b, true)
			}
		})
	case downGive:
		m.each(func() {
			id := rd.id()
			if row := r.rows[id]; row != nil && row.man.raw != nil && rd.err == nil {
				r.toParent(state, putBytes(putID(putMessage(nil, upManifest, 2), id), row.man.raw), true)
			}
		})
	case downMoved:
		m.each(func() { r.movedIn(now, rd.bytes(512)) })
	case downPath:
		if word := rd.uint(); rd.err == nil && r.u.welcomed {
			r.setPath(now, word&1 != 0, word>>1)
		}
	case downCerts:
		m.each(func() {
			if row := r.rows[rd.id()]; row != nil && row.cert != nil {
				r.toParent(steer, putBytes(putMessage(nil, upCert, 1), row.cert), false)
			}
		})
	case downAbsent:
		r.sendAbsent(true)
	default:
		r.addressed(now, m)
	}
}

// addressed takes what is for one device, whose id leads it: this one's is taken in, another's
// goes on towards it, of types that this release does not know too.
func (r *Relay) addressed(now time.Time, m *message) {
	rd := &m.r
	lane := state
	var own func()
	switch m.typ {
	case downAck:
		lane, own = records, func() {
			if raw := rd.bytes(1 << 10); rd.err == nil {
				r.dev.acknowledged(now, raw)
			}
		}
	case downCommand:
		lane, own = steer, func() {
			if raw := rd.bytes(MaxFrame); rd.err == nil {
				r.eff.Commands = append(r.eff.Commands, bytes.Clone(raw))
			}
		}
	case downAnew:
		own = func() {
			if epoch := rd.uint(); rd.err == nil {
				r.dev.anew(now, epoch)
			}
		}
	default:
		if m.typ < routeDown || m.typ >= routeEnd {
			return
		}
	}
	switch id := rd.id(); {
	case rd.err != nil:
	case id != r.self:
		r.passDown(id, lane, m.raw)
	case own != nil:
		own()
	}
}

func (r *Relay) sinceIn(now time.Time, rd *reader) {
	if feed, pos := rd.uint(), rd.uint(); rd.err == nil && feed == r.feed && pos <= r.feedPos {
		r.u.sent, r.u.synced = pos, true
		r.markChangedSince(pos)
		r.flushUp(now)
	}
}

func (r *Relay) walkIn(rd *reader) {
	if walk, bits := rd.uint(), rd.uint(); rd.err == nil && bits <= 12 {
		b := putUint(putUint(putMessage(nil, upBuckets, 3), walk), bits)
		r.toParent(state, putBytes(b, bucketSums(r.below(r.self), int(bits), walk)), false)
	}
}

func (r *Relay) welcomeIn(now time.Time, m *message) {
	flags, epoch := m.r.uint(), m.r.uint()
	if m.fields >= 4 {
		feed, pos := m.r.uint(), m.r.uint()
		if m.r.err == nil {
			if feed != r.u.downFeed && r.path {
				// The parent began anew under a session that its broker kept, or another core took
				// its place: what was on its way up is lost, and those below hear of that, too.
				r.setPath(now, false, r.coreEpoch)
			}
			r.u.downFeed, r.u.downPos = feed, pos
		}
	}
	if m.r.err != nil {
		return
	}
	r.u.welcomed, r.u.tries, r.u.deaf = true, 0, 0
	r.u.nextBeat = now.Add(r.jitter(r.cfg.Health))
	if flags&welcomeEqual != 0 {
		for _, row := range r.rows {
			row.known, row.attSent = true, true
		}
	}
	if flags&(welcomeEqual|welcomeCurrent) != 0 {
		r.u.sent, r.u.synced = r.u.helloPos, true
		r.markChangedSince(r.u.helloPos)
	}
	r.setPath(now, flags&welcomePath != 0, epoch)
	r.due(r.u.nextBeat)
}

func (r *Relay) jitter(d time.Duration) time.Duration {
	return d - time.Duration(r.cfg.Rand()%uint64(d/8+1))
}

// setPath notes whether there is a way to the core, and tells those below.
func (r *Relay) setPath(now time.Time, open bool, coreEpoch uint64) {
	if r.path == open && r.coreEpoch == coreEpoch {
		return
	}
	r.path, r.coreEpoch = open, coreEpoch
	for _, c := range r.sortedChildren() {
		if c.greeted {
			c.records = nil
			r.tellPath(c)
		}
	}
	if !open {
		r.dev.heard()
	} else {
		r.dev.pathUp(now, coreEpoch)
		r.due(now)
	}
}

func (r *Relay) markChangedSince(pos uint64) {
	for _, row := range r.rows {
		if row.feed > pos || row.lostFeed > pos {
			r.changed[row.id] = struct{}{}
		}
		if !row.attSent {
			r.attached[row.id] = struct{}{}
		}
	}
}

// diffIn shows the rows of the buckets that differ; no map means all rows.
func (r *Relay) diffIn(now time.Time, m *message) {
	walk, diff := m.r.uint(), m.r.bytes(1<<12)
	bits := 0
	if m.fields >= 3 {
		bits = int(min(m.r.uint(), 13))
	}
	if m.r.err != nil || bits > 12 || bits > 0 && len(diff) != (1<<bits+7)/8 {
		return
	}
	r.flushUp(now)
	r.u.walk, r.u.shown, r.u.shownAt = walk, nil, now
	var rows []*row
	for _, row := range r.below(r.self) {
		if b := bucketOf(row.id, bits); bits == 0 || diff[b/8]&(1<<(b%8)) != 0 {
			rows = append(rows, row)
			row.known = false
		} else {
			row.known = true
		}
		row.attSent = true
	}
	clear(r.attached)
	for frame := 0; frame == 0 || len(rows) > 0; frame++ {
		part := rows[:min(len(rows), rowsPerFrame)]
		rows = rows[len(part):]
		var packed []byte
		claims := make([]claimed, len(part))
		for i, row := range part {
			claims[i] = claimOf(row)
			packed = putClaim(packed, claims[i])
		}
		r.u.shown = append(r.u.shown, claims)
		last := uint64(0)
		if len(rows) == 0 {
			last = 1
		}
		b := putUint(putUint(putMessage(nil, upRows, 5), walk), r.feedPos)
		r.toParent(state, putBytes(putUint(putUint(b, uint64(frame)), last), packed), false)
	}
	r.u.sent, r.u.synced = r.feedPos, true
	r.due(now.Add(walkLimit))
}

// wantsIn answers what the parent wants of the rows that it was shown.
func (r *Relay) wantsIn(now time.Time, rd *reader) {
	walk, frame := rd.uint(), rd.uint()
	wants := reader{b: rd.bytes(MaxBody)}
	if rd.err != nil || walk != r.u.walk || frame >= uint64(len(r.u.shown)) || r.u.shown[frame] == nil {
		return
	}
	claims := r.u.shown[frame]
	r.u.shown[frame] = nil
	next := len(claims)
	var flags byte
	advance := func(from int) {
		next = len(claims)
		if len(wants.b) > 0 {
			next = from + int(min(wants.uvarint(), uint64(len(claims))))
			if len(wants.b) > 0 {
				flags, wants.b = wants.b[0], wants.b[1:]
			}
		}
	}
	advance(0)
	for i, cl := range claims {
		row := r.rows[cl.id]
		if i != next {
			if row != nil {
				r.follow(now, row, cl.state)
			}
			continue
		}
		have := cl.state
		if flags&wantSince != 0 {
			have.seq -= min(wants.uvarint(), have.seq)
		} else if flags&wantAll != 0 {
			have = version{}
		}
		if wants.err != nil {
			return
		}
		if row != nil {
			if flags&wantAttachment != 0 {
				r.toParent(state, putBytes(putArray(putMessage(nil, upAttach, 1), 1), row.att.Raw), false)
			}
			r.follow(now, row, have)
		}
		advance(i + 1)
	}
	if !r.walking() {
		r.due(now) // attachments that waited for the answers
	}
}

// walking reports whether the parent has yet to answer rows that it was shown.
func (r *Relay) walking() bool {
	return slices.ContainsFunc(r.u.shown, func(c []claimed) bool { return c != nil })
}

// follow sends the parent what it lacks of a device's state; from then on it follows
// through the feed.
func (r *Relay) follow(_ time.Time, row *row, have version) {
	row.known = true
	if row.ahead.newer(have) {
		row.ahead = version{} // the parent no longer has it: it came back from a backup
	}
	if !row.state.newer(have) {
		return
	}
	from := have.seq
	if have.epoch != row.state.epoch || from < row.lost {
		from = 0
	}
	r.toParent(state, putPatch(row, from), false)
}

func putPatch(row *row, from uint64) []byte {
	return putGroup(putMessage(nil, upPatch, 1), row, row.state.seq, from, row.since(from))
}

// putGroup tells that items are all that is newer than from. When from is 0 they are all
// there is, and it also tells up to where deletions are forgotten.
func putGroup(b []byte, row *row, top, from uint64, items []*item) []byte {
	fixed := 4
	if from == 0 {
		fixed = 5
	}
	b = putUint(putUint(putID(putArray(b, fixed+len(items)), row.id), row.state.epoch), top)
	b = putUint(b, top-from)
	if from == 0 {
		b = putUint(b, row.lost)
	}
	for _, e := range items {
		b = putEntry(b, &e.Entry, top)
	}
	return b
}

// aheadIn notes that the parent has newer state of a device than is here. When it is our
// own, we came back from a copy: a new state epoch makes the newest ours again.
func (r *Relay) aheadIn(now time.Time, id api.DeviceID, v version) {
	row := r.rows[id]
	if row == nil || r.u.parent == r.self || !v.newer(row.state) {
		return
	}
	if !r.plausible(now, v) {
		r.refuse(now, r.u.parent, "state of "+id.String(), fmt.Errorf("epoch %d is far ahead of the clock", v.epoch))
		return
	}
	if id == r.self {
		r.warn(now, "state-behind", api.Degraded, "the parent has newer state of this device than the device: a new state epoch is begun")
		r.dev.renew(now, v.epoch)
		r.due(now.Add(r.cfg.Fold))
		return
	}
	row.ahead = maxVersion(row.ahead, v)
}

// manifestsIn takes a run of the down feed.
func (r *Relay) manifestsIn(now time.Time, m *message) {
	from, count := m.r.uint(), m.r.uint()
	if m.r.err != nil {
		return
	}
	if from > r.u.downPos {
		if now.Sub(r.u.sinceAt) >= patience {
			r.u.sinceAt = now
			r.toParent(steer, putUint(putMessage(nil, upSince, 1), r.u.downPos), false)
		}
		return
	}
	for i := 2; i < m.fields && m.r.err == nil; i++ {
		if b := m.r.bytes(MaxFrame); m.r.err == nil {
			r.manifestIn(now, b, true)
		}
	}
	if m.r.err == nil {
		r.u.downPos = max(r.u.downPos, from+count)
	}
}

// movedIn takes the newer attachment of a device that went elsewhere.
func (r *Relay) movedIn(now time.Time, raw []byte) {
	a, err := peekAttachment(bytes.Clone(raw))
	row := r.rows[a.Device]
	if err != nil || row == nil || row.pub == nil || a.Device == r.self || a.Counter <= row.att.Counter {
		return
	}
	if _, err := openAttachment(r.verify, row.pub, a.Raw); err != nil {
		r.refuse(now, r.u.parent, "attachment", err)
		return
	}
	if v, ok := r.via(a.Device); ok && v != a.Device {
		r.passDown(a.Device, state, putBytes(putMessage(nil, downMoved, 1), a.Raw))
	}
	for _, below := range r.below(a.Device) {
		if below.id != a.Device {
			r.goneIn(now, below)
		}
	}
	r.goneIn(now, row)
}

// flushUp sends what has changed since the parent last heard of it.
func (r *Relay) flushUp(now time.Time) {
	if !r.u.synced {
		return
	}
	r.sendAttached()
	r.sendAbsent(false)
	// A row's news stay together, since a part of them proves nothing.
	type news struct {
		row   *row
		items []*item // by their place in the feed
	}
	var changes []news
	for id := range r.changed {
		row := r.rows[id]
		if row == nil || !row.known {
			continue
		}
		if row.lostFeed > r.u.sent {
			r.toParent(state, putPatch(row, 0), false)
			continue
		}
		if items := row.newerItems(r.u.sent); len(items) > 0 {
			changes = append(changes, news{row, items})
		}
	}
	clear(r.changed)
	slices.SortFunc(changes, func(a, b news) int { return cmp.Compare(a.items[0].feed, b.items[0].feed) })
	began := r.u.sent
	for len(changes) > 0 {
		n, size := 0, 0
		for ; n < len(changes) && size < chunk; n++ {
			for _, e := range changes[n].items {
				size += len(e.Key) + len(e.Value) + 32
			}
		}
		to := r.feedPos
		if n < len(changes) {
			to = changes[n].items[0].feed - 1
		}
		b := putUint(putUint(putMessage(nil, upState, 2+n), r.u.sent), to-r.u.sent)
		for _, c := range changes[:n] {
			b = putGroup(b, c.row, c.row.state.seq, c.row.before(began), c.items)
		}
		r.toParent(state, b, false)
		r.u.sent, changes = to, changes[n:]
	}
}

// sendAttached tells the parent of devices that are newly attached below, those nearer
// to us first.
//
// While a walk is on its way they wait: the parent may not have the attachments yet that
// they hang on, not even our own, and would refuse them.
func (r *Relay) sendAttached() {
	if len(r.attached) == 0 || r.walking() {
		return
	}
	for _, row := range r.below(r.self) {
		if _, ok := r.attached[row.id]; !ok || row.attSent {
			continue
		}
		row.attSent = true
		if row.known {
			r.toParent(state, putBytes(putArray(putMessage(nil, upAttach, 1), 1), row.att.Raw), true)
			continue
		}
		b := putBytes(putArray(putMessage(nil, upAttach, 1), 5), row.att.Raw)
		s, m := row.stateVersion(), row.manifestVersion()
		r.toParent(state, putUint(putUint(putUint(putUint(b, s.epoch), s.seq), m.epoch), m.seq), true)
	}
	clear(r.attached)
}

func (r *Relay) sendAbsent(whole bool) {
	if !whole && len(r.absents) == 0 {
		return
	}
	var gone, back []byte
	for _, row := range r.below(r.self) {
		if row.id == r.self {
			continue
		}
		_, changed := r.absents[row.id]
		switch {
		case row.absent && (whole || changed):
			gone = append(gone, row.id[:]...)
		case changed && !whole:
			back = append(back, row.id[:]...)
		}
	}
	clear(r.absents)
	flag := uint64(0)
	if whole {
		flag = 1
	} else if len(gone)+len(back) == 0 {
		return
	}
	b := putUint(putMessage(nil, upAbsent, 3), flag)
	r.toParent(steer, putBytes(putBytes(b, gone), back), false)
}

// tickUplink says hello again while nobody answers, sends what has changed, and beats.
func (r *Relay) tickUplink(now time.Time) {
	if !r.u.up {
		return
	}
	if !r.u.welcomed {
		limit := r.deafLimit()
		if !now.Before(limit) {
			r.u.deaf, r.u.upAt, r.eff.ResetUp = r.u.deaf+1, now, true
			limit = r.deafLimit()
		}
		r.due(limit)
		if left := r.u.helloAt.Add(r.helloAgain()); now.Before(left) {
			r.due(left)
			return
		}
		r.u.tries++
		r.hello(now)
		return
	}
	if left := r.u.helloAt.Add(walkLimit); !r.u.synced {
		if now.Before(left) {
			r.due(left)
		} else {
			r.hello(now) // an answer is lost; begin again
			return
		}
	}
	r.flushUp(now)
	if r.u.shown != nil {
		if left := r.u.shownAt.Add(walkLimit); now.Before(left) {
			r.due(left)
		} else if r.walking() {
			r.hello(now) // the answer is lost; begin again
			return
		} else {
			r.u.shown = nil
		}
	}
	if now.Before(r.u.nextBeat) {
		r.due(r.u.nextBeat)
		return
	}
	r.u.nextBeat = now.Add(r.jitter(r.cfg.Health))
	r.due(r.u.nextBeat)
	if r.dev.man == nil && !r.u.fetched {
		r.u.fetched, r.eff.FetchRetained = true, true
	}
	r.chaseClaims()
	rows := r.below(r.self)
	b := putUint(putUint(putMessage(nil, upBeat, 5), r.u.sent), r.u.downPos)
	b = putUint(putUint(b, digestOf(rows)), uint64(absentHash(rows, r.self)))
	r.toParent(steer, putUint(b, pathWord(r.path, r.coreEpoch)), false)
}
