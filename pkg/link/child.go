package link

import (
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// child is what a parent remembers of a direct child between sessions.
type child struct {
	id api.DeviceID
	// up: there is a session; greeted: its hello came.
	up, greeted bool
	downSince   time.Time
	heard       time.Time // its last frame that was taken in whole

	// feed and cursor: everything of that up feed to that number is here.
	feed     uint64
	cursor   uint64
	followed bool
	// owed: a walk has wanted something that may have been lost since; an equal digest
	// settles it.
	owed bool
	// sent is the number of our down feed to which the child was sent everything.
	sent   uint64
	sentAt time.Time

	walk      uint64 // the walk in progress, 0 none
	diff      []byte // its differing buckets; nil is all
	bits      int
	seen      map[api.DeviceID]bool // rows that the walk showed
	frames    uint64
	walkAt    time.Time
	nextWalk  time.Time
	backoff   time.Duration
	asked     time.Time                // since or manifests were repeated
	absentAt  time.Time                // the list of absent ones was asked for
	waiting   map[api.DeviceID]waiting // attachments that wait for a certificate
	claims    map[api.DeviceID]claimed
	records   map[api.DeviceID]int // unacknowledged bytes by device
	recordsAt time.Time
	fullSince time.Time // its window is full and nothing was acknowledged since
	foreign   foreign
}

const (
	patience    = 2 * time.Second  // before an unanswered question is put again
	walkLimit   = 10 * time.Second // before an unfinished walk is given up
	firstRepeat = 5 * time.Second
	lastRepeat  = 10 * time.Minute
	// recordsForgotten is when bytes that nobody acknowledged stop counting.
	recordsForgotten = time.Minute
	maxWaiting       = 4096
	// fullGrace is how long a full window is ordinary: it drains as fast as the core counts.
	fullGrace   = 30 * time.Second
	fullWarning = "window-full"
)

// ChildUp tells of a child's new session.
func (n *node) ChildUp(now time.Time, id api.DeviceID, cert []byte) {
	if n.turnedAway(id) {
		n.eff.Kick = append(n.eff.Kick, id)
		return
	}
	c := n.child(id)
	c.up, c.greeted = true, false
	c.walk, c.claims, c.waiting = 0, nil, nil
	if cert != nil && n.certificate != nil {
		n.certificate(cert, func(got api.DeviceID) bool { return got == id })
	}
}

// ChildDown tells that a child's session is lost.
func (n *node) ChildDown(now time.Time, id api.DeviceID) {
	c := n.children[id]
	if c == nil {
		return
	}
	c.up, c.greeted, c.downSince = false, false, now
	c.walk, c.claims, c.waiting, c.records = 0, nil, nil, nil
}

func (n *node) child(id api.DeviceID) *child {
	c := n.children[id]
	if c == nil {
		c = &child{id: id}
		n.children[id] = c
	}
	return c
}

// FromChild takes a frame of a child. A frame that cannot be read is dropped whole: the
// next beat finds what is missing.
func (n *node) FromChild(now time.Time, id api.DeviceID, frame []byte) {
	if n.turnedAway(id) {
		n.stats.Refused++
		return
	}
	c := n.child(id)
	c.up = true
	msgs, err := splitFrame(frame)
	if err != nil {
		n.refuse(now, id, "frame", err)
		return
	}
	count(&n.stats.DownIn, upClass, msgs, len(frame))
	for i := range msgs {
		m := &msgs[i]
		if !c.greeted && m.typ != upHello {
			if m.typ == upBeat || m.typ == upState {
				n.toChild(id, steer, putMessage(nil, downGreet, 0), false)
				return
			}
			continue
		}
		n.childMessage(now, c, m)
		if m.r.err != nil {
			n.refuse(now, id, "message", m.r.err)
		}
	}
	// Only now: a frame that tells who is gone is no sign that they were there.
	c.heard = now
}

func (n *node) childMessage(now time.Time, c *child, m *message) {
	r := &m.r
	switch m.typ {
	case upHello:
		n.hello(now, c, r)
	case upBeat:
		n.beat(now, c, m)
	case upState:
		n.stateFrame(now, c, m)
	case upPatch:
		m.each(func() { n.group(now, c, r) })
	case upAttach:
		m.each(func() { n.attachItem(now, c, r) })
	case upBuckets:
		n.buckets(now, c, r)
	case upRows:
		n.rowsFrame(now, c, r)
	case upBatch:
		n.batch(now, c, m)
	case upNeed:
		m.each(func() {
			r.array()
			n.need(now, c, r.id(), version{r.uint(), r.uint()})
		})
	case upManifest:
		id, raw := r.id(), r.bytes(MaxFrame)
		if v, ok := n.via(id); ok && v == c.id && r.err == nil && n.takeManifest != nil {
			n.takeManifest(now, raw, false)
		}
	case upAbsent:
		n.absentFrame(now, c, r)
	case upCert:
		m.each(func() { n.certFrame(now, c, r.bytes(8<<10)) })
	case upAsk:
		if id := r.id(); r.err == nil && n.mine(now, c, id, "ask") {
			n.onAsk(now, id, m.raw)
		}
	case upSince:
		if pos := r.uint(); r.err == nil && pos <= n.downPos {
			c.sent = min(c.sent, pos)
			n.pushSince(now, c)
		}
	default:
		if m.typ >= routeUp && m.typ < routeDown && n.onRouted != nil {
			n.onRouted(now, m.raw)
		}
	}
}

// A device that moves may be heard through its new parent before its attachment has
// been passed on, which is no lie: it is told only when it goes on for foreignGrace.
// After foreignPause without any it counts as another time.
const (
	foreignGrace = 30 * time.Second
	foreignPause = 10 * time.Minute
)

// foreign is the last that a child said of a device which is not below it.
type foreign struct {
	id          api.DeviceID
	since, last time.Time
}

// mine reports whether a child may speak for a device.
func (n *node) mine(now time.Time, c *child, id api.DeviceID, what string) bool {
	if v, ok := n.via(id); ok && v == c.id {
		if c.foreign.id == id {
			c.foreign.since = time.Time{}
		}
		return true
	}
	n.foreign(now, c, id, what)
	return false
}

// foreign notes that a child spoke of a device that is not below it.
func (n *node) foreign(now time.Time, c *child, id api.DeviceID, what string) {
	n.stats.Refused++
	f := &c.foreign
	if f.since.IsZero() || now.Sub(f.last) > foreignPause {
		f.since = now
	}
	if f.id, f.last = id, now; now.Sub(f.since) >= foreignGrace {
		n.alarm(now, c.id, "foreign-frame", api.Degraded, "child "+c.id.String()+" sent "+what+" of "+id.String()+", which is not attached to it")
	}
}

func (n *node) hello(now time.Time, c *child, r *reader) {
	feed, pos, downFeed, downPos, digest, absent := r.uint(), r.uint(), r.uint(), r.uint(), r.uint(), r.uint()
	if r.err != nil {
		return
	}
	c.greeted, c.walk = true, 0
	if row := n.rows[c.id]; row != nil && row.absent {
		n.setAbsent(now, row, false)
	}
	rows := n.below(c.id)
	n.checkAbsent(now, c, rows, uint32(absent))
	equal := len(rows) > 0 && digestOf(rows) == digest
	sameDown := downFeed == n.downFeed && downPos <= n.downPos
	if !sameDown {
		downPos = n.downPos
	}
	c.sent = downPos
	follows := c.followed && !c.owed && c.feed == feed && c.cursor <= pos
	n.welcome(c, equal, follows && c.cursor == pos, sameDown)
	c.feed = feed
	if equal {
		c.cursor, c.followed, c.owed, c.backoff = pos, true, false, 0
		return
	}
	c.followed = follows
	news := false
	if follows && c.cursor < pos {
		c.asked = now
		n.toChild(c.id, state, putUint(putUint(putMessage(nil, downSince, 2), c.feed), c.cursor), false)
		news = true
	}
	if sameDown && len(rows) > 0 {
		news = n.pushSince(now, c) || news
	}
	if !follows || !news {
		n.startWalk(now, c, rows, true)
	}
}

func (n *node) welcome(c *child, equal, current, sameDown bool) {
	flags := uint64(0)
	if n.path {
		flags |= welcomePath
	}
	if equal {
		flags |= welcomeEqual
	}
	if current {
		flags |= welcomeCurrent
	}
	if sameDown {
		n.toChild(c.id, steer, putUint(putUint(putMessage(nil, downWelcome, 2), flags), n.coreEpoch), false)
		return
	}
	b := putUint(putUint(putMessage(nil, downWelcome, 4), flags), n.coreEpoch)
	n.toChild(c.id, steer, putUint(putUint(b, n.downFeed), n.downPos), false)
}

// pathWord tells in one number whether there is a way to the core, and its epoch: a hint
// that only a signed acknowledgement confirms.
func pathWord(open bool, coreEpoch uint64) uint64 {
	w := coreEpoch << 1
	if open {
		w |= 1
	}
	return w
}

func (n *node) tellPath(c *child) {
	n.toChild(c.id, steer, putUint(putMessage(nil, downPath, 1), pathWord(n.path, n.coreEpoch)), false)
}

// The flags of a welcome.
const (
	welcomePath    = 1 << 0 // there is a way to the core
	welcomeEqual   = 1 << 1 // both have the same
	welcomeCurrent = 1 << 2 // the parent has the child's feed up to where it stands
)

// beat compares, once both feeds have run dry.
func (n *node) beat(now time.Time, c *child, m *message) {
	r := &m.r
	pos, downPos, digest, absent := r.uint(), r.uint(), r.uint(), r.uint()
	if r.err != nil {
		return
	}
	if m.fields >= 5 && r.uint() != pathWord(n.path, n.coreEpoch) {
		n.tellPath(c)
	}
	rows := n.below(c.id)
	n.checkAbsent(now, c, rows, uint32(absent))
	if downPos <= n.downPos {
		c.sent = max(c.sent, downPos)
	}
	switch {
	case c.followed && pos > c.cursor:
		n.askSince(now, c)
	case downPos < c.sent && now.Sub(c.sentAt) > patience:
		c.sent = downPos
		n.pushSince(now, c)
	case digestOf(rows) != digest || len(rows) == 0:
		if !c.followed || pos <= c.cursor && downPos >= c.sent && !n.dirtyFor(c) {
			n.startWalk(now, c, rows, false)
		}
	default:
		c.followed, c.cursor, c.owed, c.backoff = true, pos, false, 0
	}
}

func (n *node) dirtyFor(c *child) bool {
	for id := range n.dirty {
		if v, ok := n.via(id); ok && v == c.id {
			return true
		}
	}
	return false
}

func (n *node) askSince(now time.Time, c *child) {
	if now.Sub(c.asked) < patience {
		return
	}
	c.asked = now
	n.toChild(c.id, state, putUint(putUint(putMessage(nil, downSince, 2), c.feed), c.cursor), false)
}

// startWalk compares bucket by bucket; at most one walk at a time, and more and more
// rarely while walks do not help.
func (n *node) startWalk(now time.Time, c *child, rows []*row, urgent bool) {
	if c.walk != 0 && now.Sub(c.walkAt) < walkLimit || !urgent && now.Before(c.nextWalk) {
		return
	}
	n.walks++
	c.walk, c.walkAt, c.claims = n.walks, now, nil
	c.diff, c.bits, c.seen, c.frames = nil, 0, nil, 0
	c.backoff = min(max(2*c.backoff, firstRepeat), lastRepeat)
	c.nextWalk = now.Add(c.backoff)
	bits := bucketBits(len(rows))
	if bits == 0 {
		n.toChild(c.id, state, putBytes(putUint(putMessage(nil, downDiff, 2), c.walk), nil), false)
		return
	}
	n.toChild(c.id, state, putUint(putUint(putMessage(nil, downWalk, 2), c.walk), uint64(bits)), false)
}

func (n *node) buckets(now time.Time, c *child, r *reader) {
	walk, bits, sums := r.uint(), r.uint(), r.bytes(4<<12)
	if r.err != nil || walk != c.walk || bits > 12 || len(sums) != 4<<bits {
		return
	}
	mine := bucketSums(n.below(c.id), int(bits), walk)
	diff := make([]byte, (1<<bits+7)/8)
	for i := range 1 << bits {
		if !slices.Equal(mine[4*i:4*i+4], sums[4*i:4*i+4]) {
			diff[i/8] |= 1 << (i % 8)
		}
	}
	c.walkAt, c.diff, c.bits = now, diff, int(bits)
	b := putUint(putMessage(nil, downDiff, 3), walk)
	n.toChild(c.id, state, putUint(putBytes(b, diff), bits), false)
}

// pushSince sends the manifests that came after the child's place in the down feed, and
// reports whether there were any.
func (n *node) pushSince(now time.Time, c *child) bool {
	var rows []*row
	for _, r := range n.below(c.id) {
		if r.man.pub > c.sent {
			rows = append(rows, r)
		}
	}
	return n.push(now, c, rows)
}

// push sends the manifests of rows, whose numbers are all after c.sent, in their order.
func (n *node) push(now time.Time, c *child, rows []*row) bool {
	if !c.greeted || len(rows) == 0 {
		return false
	}
	slices.SortFunc(rows, func(a, b *row) int { return int(a.man.pub) - int(b.man.pub) })
	from := c.sent
	var body []byte
	count := 0
	for i, r := range rows {
		base, _ := r.man.at(from)
		if b := r.man.cut(base); b != nil {
			body = putBytes(body, b)
			count++
		}
		if last := i == len(rows)-1; count > 0 && (len(body) > chunk || last) {
			b := putUint(putUint(putMessage(nil, downManifests, 2+count), c.sent), r.man.pub-c.sent)
			n.toChild(c.id, state, append(b, body...), true)
			c.sent, c.sentAt = r.man.pub, now
			body, count = nil, 0
		}
	}
	return c.sent > from
}

// give sends one device's manifest outside the feed.
func (n *node) give(c *child, r *row, base version) {
	if b := r.man.cut(base); b != nil {
		n.toChild(c.id, state, putBytes(putMessage(nil, downPatch, 1), b), true)
	}
}

func (n *node) need(now time.Time, c *child, id api.DeviceID, have version) {
	if !n.mine(now, c, id, "need") {
		return
	}
	r := n.rows[id]
	if r.man.newer(have) {
		n.give(c, r, have)
	} else if n.onNeed != nil {
		n.onNeed(now, id, have)
	}
}

// flushManifests sends what is newly published to the children that it is for.
func (n *node) flushManifests(now time.Time) {
	byChild := map[*child][]*row{}
	for id := range n.dirty {
		if v, ok := n.via(id); ok {
			if c := n.children[v]; c != nil && c.greeted && n.rows[id].man.pub > c.sent {
				byChild[c] = append(byChild[c], n.rows[id])
			}
		}
	}
	clear(n.dirty)
	var cs []*child
	for c := range byChild {
		cs = append(cs, c)
	}
	slices.SortFunc(cs, func(a, b *child) int { return slices.Compare(a.id[:], b.id[:]) })
	for _, c := range cs {
		n.push(now, c, byChild[c])
	}
}

// publish puts a newer manifest in force and schedules it for those below.
func (n *node) publish(now time.Time, r *row, v version, raw []byte, tombs map[string]uint64) {
	n.downPos++
	r.man.replace(v, raw, tombs, n.downPos)
	if r.id == n.self {
		return
	}
	n.dirty[r.id] = struct{}{}
	n.due(now.Add(n.cfg.Fold))
	if r.att.Counter > 0 && r.att.Parent == n.self && !r.orphan {
		n.eff.Retain = append(n.eff.Retain, Retained{r.id, raw})
	}
}

// batch counts a batch against its child's window and hands it on.
func (n *node) batch(now time.Time, c *child, m *message) {
	id, raw := m.r.id(), m.r.bytes(MaxFrame)
	if m.r.err != nil || !n.mine(now, c, id, "records") {
		return
	}
	if now.Sub(c.recordsAt) > recordsForgotten {
		c.records = nil
	}
	total := len(raw)
	for _, b := range c.records {
		total += b
	}
	if total > n.cfg.ChildWindow { // the device comes again
		n.stats.Dropped++
		if c.fullSince.IsZero() {
			c.fullSince = now
		}
		if now.Sub(c.fullSince) >= fullGrace {
			n.alarm(now, c.id, fullWarning, api.Degraded, fmt.Sprintf("%d bytes of records from below %s wait for the core, which acknowledges none: what is more is dropped, and sent again by its device", total-len(raw), c.id))
		}
		return
	}
	if c.records == nil {
		c.records = map[api.DeviceID]int{}
	}
	c.records[id] += len(raw)
	c.recordsAt = now
	n.onBatch(now, n.rows[id], raw, m.raw)
}

// passDown sends a message to the child on the way to a device.
func (n *node) passDown(id api.DeviceID, p priority, raw []byte) bool {
	v, ok := n.via(id)
	if !ok {
		return false
	}
	c := n.children[v]
	if c == nil || !c.greeted {
		return false
	}
	if p == records {
		delete(c.records, id)
		c.fullSince = time.Time{}
		p = steer
	}
	n.toChild(v, p, raw, true)
	return true
}

func (n *node) checkAbsent(now time.Time, c *child, rows []*row, hash uint32) {
	if absentHash(rows, c.id) != hash && now.Sub(c.absentAt) > patience {
		c.absentAt = now
		n.toChild(c.id, steer, putMessage(nil, downAbsent, 0), false)
	}
}

func (n *node) absentFrame(now time.Time, c *child, r *reader) {
	whole, gone, back := r.uint(), r.bytes(MaxFrame), r.bytes(MaxFrame)
	if r.err != nil || len(gone)%8 != 0 || len(back)%8 != 0 {
		return
	}
	set := func(ids []byte, absent bool) {
		for len(ids) > 0 {
			id := api.DeviceID(ids[:8])
			ids = ids[8:]
			if v, ok := n.via(id); ok && v == c.id && id != c.id {
				n.setAbsent(now, n.rows[id], absent)
			}
		}
	}
	if whole != 0 {
		listed := map[api.DeviceID]bool{}
		for b := gone; len(b) > 0; b = b[8:] {
			listed[api.DeviceID(b[:8])] = true
		}
		for _, row := range n.below(c.id) {
			if row.absent && row.id != c.id && !listed[row.id] {
				n.setAbsent(now, row, false)
			}
		}
	}
	set(gone, true)
	set(back, false)
}

func (n *node) setAbsent(now time.Time, r *row, absent bool) {
	if r.absent == absent {
		return
	}
	r.absent = absent
	n.onAbsent(now, r)
}

// tickChildren notices sessions that stay lost.
func (n *node) tickChildren(now time.Time) {
	for _, c := range n.sortedChildren() {
		id := c.id
		if c.up || c.downSince.IsZero() {
			continue
		}
		if left := c.downSince.Add(n.cfg.Grace); now.Before(left) {
			n.due(left)
			continue
		}
		if r := n.rows[id]; r != nil {
			n.setAbsent(now, r, true)
		}
		c.downSince = time.Time{}
	}
}
