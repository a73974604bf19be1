package link

import (
	"bytes"
	"cmp"
	"crypto"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// node is what a relay and the core have in common: the parent's side of the link to
// each child. What they do differently hangs in its hooks.
type node struct {
	tree
	cfg      Config
	children map[api.DeviceID]*child
	eff      Effects
	out      map[api.DeviceID]*outbox
	up       outbox
	stats    Stats
	warnings map[string]api.Warning
	raised   map[string]time.Time // when each was last raised
	wake     time.Time

	downFeed  uint64 // names our down feed; a restart begins another
	downPos   uint64
	dirty     map[api.DeviceID]struct{} // rows with manifests not yet sent on
	revoked   map[api.DeviceID]struct{} // retired devices, on a relay
	walks     uint64
	path      bool // there is a way to the core
	coreEpoch uint64

	keyOf    func(id api.DeviceID) crypto.PublicKey
	verify   func(pub crypto.PublicKey, cose, aad []byte) ([]byte, error)
	onState  func(now time.Time, r *row, s news)
	onAttach func(now time.Time, r *row)
	onAbsent func(now time.Time, r *row)
	onGone   func(now time.Time, r *row)
	onBatch  func(now time.Time, r *row, raw, msg []byte)
	onAsk    func(now time.Time, id api.DeviceID, msg []byte)
	// The core leaves these out.
	takeManifest func(now time.Time, b []byte, fromParent bool)
	certificate  func(der []byte, expected func(api.DeviceID) bool) (api.DeviceID, bool)
	onNeed       func(now time.Time, id api.DeviceID, have version)
	onRouted     func(now time.Time, msg []byte)
}

func newNode(self api.DeviceID, cfg Config) node {
	cfg = cfg.withDefaults()
	return node{tree: newTree(self), cfg: cfg, children: map[api.DeviceID]*child{}, out: map[api.DeviceID]*outbox{},
		warnings: map[string]api.Warning{}, raised: map[string]time.Time{}, dirty: map[api.DeviceID]struct{}{}, downFeed: cfg.Rand() >> 48}
}

// due asks for a tick at t at the latest.
func (n *node) due(t time.Time) {
	if n.wake.IsZero() || t.Before(n.wake) {
		n.wake = t
	}
}

// Next is when the party wants its next Tick; zero means not at all.
func (n *node) Next() time.Time { return n.wake }

// Stats returns the counters so far.
func (n *node) Stats() Stats { return n.stats }

func (n *node) toChild(id api.DeviceID, p priority, msg []byte, reliable bool) {
	o := n.out[id]
	if o == nil {
		o = &outbox{}
		n.out[id] = o
	}
	o.add(p, msg, reliable)
	if o.size() >= chunk {
		n.closeDown(id, o)
	}
}

func (n *node) toParent(p priority, msg []byte, reliable bool) {
	n.up.add(p, msg, reliable)
	if n.up.size() >= chunk {
		n.closeUp()
	}
}

func (n *node) closeDown(id api.DeviceID, o *outbox) {
	if f, body := o.take(); body != nil {
		if msgs, err := splitBody(body); err == nil {
			count(&n.stats.DownOut, downClass, msgs, len(f.Bytes))
		}
		n.eff.Down = append(n.eff.Down, DownFrame{id, f})
	}
}

func (n *node) closeUp() {
	if f, body := n.up.take(); body != nil {
		if msgs, err := splitBody(body); err == nil {
			count(&n.stats.UpOut, upClass, msgs, len(f.Bytes))
		}
		n.eff.Up = append(n.eff.Up, f)
	}
}

// Take returns what the inputs since the last Take want done.
func (n *node) Take() Effects {
	ids := make([]api.DeviceID, 0, len(n.out))
	for id := range n.out {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b api.DeviceID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		n.closeDown(id, n.out[id])
	}
	clear(n.out)
	n.closeUp()
	eff := n.eff
	n.eff = Effects{}
	return eff
}

func (n *node) sortedChildren() []*child {
	out := make([]*child, 0, len(n.children))
	for _, c := range n.children {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *child) int { return bytes.Compare(a.id[:], b.id[:]) })
	return out
}

// warn raises or renews a named warning.
func (n *node) warn(now time.Time, name string, s api.Severity, msg string) {
	w, there := n.warnings[name]
	if !there {
		w = api.Warning{Name: name, Severity: s, Since: n.cfg.Wall(now)}
		n.cfg.Log.Warn(msg, "warning", name)
	}
	w.Message = msg
	n.warnings[name], n.raised[name] = w, now
	n.due(now.Add(quietFor(name)))
}

// quietFor is how long nothing more must be found for a warning to end: who copies keys
// is looked for by people.
func quietFor(name string) time.Duration {
	switch name {
	case "cloned-device", "record-fork":
		return 24 * time.Hour
	}
	return 15 * time.Minute
}

// tickWarnings ends warnings that were quiet for long enough.
func (n *node) tickWarnings(now time.Time) {
	for name := range n.warnings {
		if end := n.raised[name].Add(quietFor(name)); now.Before(end) {
			n.due(end)
		} else {
			n.clear(name)
		}
	}
}

// clear ends a warning whose cause is gone.
func (n *node) clear(name string) {
	delete(n.warnings, name)
	delete(n.raised, name)
}

// alarm is warn about one device.
func (n *node) alarm(now time.Time, id api.DeviceID, name string, s api.Severity, msg string) {
	n.warn(now, name, s, msg)
	if !slices.ContainsFunc(n.eff.Alarms, func(a Alarm) bool { return a.Device == id && a.Name == name }) {
		n.eff.Alarms = append(n.eff.Alarms, Alarm{id, name, s, msg})
	}
}

func sortedWarnings(ws map[string]api.Warning) []api.Warning {
	out := make([]api.Warning, 0, len(ws))
	for _, w := range ws {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b api.Warning) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (n *node) refuse(now time.Time, from api.DeviceID, what string, err error) {
	n.stats.Refused++
	n.alarm(now, from, "bad-frame", api.Degraded, fmt.Sprintf("%s from %s refused: %v", what, from, err))
}

// maxEpochAhead is how far a state epoch, which begins as a device's Unix seconds, may
// be ahead of the clock here: more than any clock is wrong, and far from where adding
// one starts again at zero. A lie below it is outdone by the device's next epoch.
const maxEpochAhead = 1 << 32

// plausible tells whether a device may have come to a state epoch: nobody between has to
// prove the number, and one that cannot be outdone would shut the device up for good.
func (n *node) plausible(now time.Time, v version) bool {
	return v.epoch <= uint64(max(n.cfg.Wall(now), 0))+maxEpochAhead
}

// news is what a group tells of a device.
type news struct {
	version
	full    bool   // entries are all there is
	lost    uint64 // deletions up to there are forgotten; told when full
	entries []Entry
}

// group takes one device's news: all entries that are newer than a number which the
// sender names. When that number is not here yet, the sender is asked for the rest.
func (n *node) group(now time.Time, c *child, r *reader) {
	k := r.array()
	id, v := r.id(), version{r.uint(), r.uint()}
	back := r.uint()
	from, fixed, lost := v.seq-back, 4, uint64(0)
	if back == v.seq {
		fixed, lost = 5, r.uint()
	}
	if k < fixed || k-fixed > MaxEntries || back > v.seq || lost > v.seq {
		r.fail("bad group")
	}
	var entries []Entry
	for range k - fixed {
		if r.err != nil {
			return
		}
		entries = append(entries, r.entry(v.seq))
	}
	if r.err != nil || !n.mine(now, c, id, "state") {
		return
	}
	row := n.rows[id]
	if !v.newer(row.state) {
		return
	}
	if !n.plausible(now, v) {
		n.refuse(now, c.id, "state of "+id.String(), fmt.Errorf("epoch %d is far ahead of the clock", v.epoch))
		return
	}
	full := from == 0
	if !full {
		if v.epoch != row.state.epoch || from > row.state.seq {
			if now.Sub(row.wanted) >= patience {
				row.wanted = now
				n.want(c, row)
			}
			return
		}
		entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.Seq <= row.state.seq })
	}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	n.onState(now, row, news{v, full, lost, entries})
}

// want asks a child for what is newer of a device than what is here.
func (n *node) want(c *child, r *row) {
	b := putArray(putMessage(nil, downWant, 1), 3)
	n.toChild(c.id, state, putUint(putUint(putID(b, r.id), r.state.epoch), r.state.seq), false)
}

// stateFrame takes live news when they follow on what is here, and asks for what is
// missing when not.
func (n *node) stateFrame(now time.Time, c *child, m *message) {
	from, count := m.r.uint(), m.r.uint()
	if m.r.err != nil {
		return
	}
	if !c.followed {
		return // a walk is on its way, or the next beat starts one
	}
	if from > c.cursor {
		n.askSince(now, c)
		return
	}
	for i := 2; i < m.fields && m.r.err == nil; i++ {
		n.group(now, c, &m.r)
	}
	if m.r.err == nil {
		c.cursor = max(c.cursor, from+count)
	}
}

// waiting is an attachment that cannot be checked yet.
type waiting struct {
	raw   []byte
	claim *claimed
	late  bool // it did wait, so the state that came behind it was refused
}

// attachItem takes one attachment, with what the child has of the device when it is new
// to it.
func (n *node) attachItem(now time.Time, c *child, r *reader) {
	k := r.array()
	w := waiting{raw: bytes.Clone(r.bytes(512))}
	if k >= 5 {
		w.claim = &claimed{state: version{r.uint(), r.uint()}, man: version{r.uint(), r.uint()}}
		k -= 4
	}
	r.rest(max(k-1, 0))
	if r.err == nil {
		n.attachRaw(now, c, w)
	}
}

func (n *node) attachRaw(now time.Time, c *child, w waiting) {
	a, err := peekAttachment(w.raw)
	if err != nil {
		n.refuse(now, c.id, "attachment", err)
		return
	}
	if n.turnedAway(a.Device) {
		n.stats.Refused++
		return
	}
	pub := n.keyOf(a.Device)
	if pub == nil {
		if n.certificate == nil {
			n.warn(now, "unknown-device", api.Degraded, "device "+a.Device.String()+" is not known or not approved")
		} else if len(c.waiting) < maxWaiting {
			if c.waiting == nil {
				c.waiting = map[api.DeviceID]waiting{}
			}
			w.late = true
			c.waiting[a.Device] = w
			n.toChild(c.id, steer, putID(putMessage(nil, downCerts, 1), a.Device), false)
		}
		return
	}
	if a, err = openAttachment(n.verify, pub, w.raw); err != nil {
		n.refuse(now, c.id, "attachment", err)
		return
	}
	n.accept(now, c, a, w)
}

func (n *node) certFrame(now time.Time, c *child, der []byte) {
	if n.certificate == nil {
		return
	}
	id, ok := n.certificate(bytes.Clone(der), func(id api.DeviceID) bool {
		_, waits := c.waiting[id]
		_, claimed := c.claims[id]
		return waits || claimed
	})
	if w, waits := c.waiting[id]; ok && waits {
		delete(c.waiting, id)
		n.attachRaw(now, c, w)
	}
}

// accept hangs a device where it says it is attached. The highest counter wins, and the
// way to its parent must be through the child that says so.
func (n *node) accept(now time.Time, c *child, a Attachment, w waiting) {
	r := n.row(a.Device)
	switch {
	case a.Counter < r.att.Counter:
		n.toChild(c.id, state, putBytes(putMessage(nil, downMoved, 1), r.att.Raw), true)
		return
	case a.Counter == r.att.Counter && a.Parent != r.att.Parent:
		n.alarm(now, a.Device, "cloned-device", api.Critical, "device "+a.Device.String()+" is attached twice under one number: its key was copied")
		return
	}
	through, ok := a.Device, a.Parent == n.self
	if !ok {
		through, ok = n.via(a.Parent)
	}
	if !ok || through != c.id {
		n.foreign(now, c, a.Device, "the attachment to another parent")
		return
	}
	old, had := n.via(a.Device)
	if a.Counter > r.att.Counter || r.orphan {
		n.attach(r, a)
		r.absent = false
		if o := n.children[old]; had && old != c.id && o != nil && o.greeted {
			n.toChild(old, state, putBytes(putMessage(nil, downMoved, 1), a.Raw), true)
		}
		if a.Parent == n.self && r.man.raw != nil {
			n.eff.Retain = append(n.eff.Retain, Retained{r.id, r.man.raw})
		}
		n.onAttach(now, r)
	}
	if w.claim != nil {
		n.want(c, r)
		n.reconcile(now, c, r, *w.claim)
	} else if cl, ok := c.claims[r.id]; ok {
		delete(c.claims, r.id)
		if w.late && cl.state.newer(r.state) {
			n.want(c, r)
		}
		n.reconcile(now, c, r, cl)
	}
}

// reconcile compares what a child has of a device with what is here.
func (n *node) reconcile(_ time.Time, c *child, r *row, cl claimed) {
	if have := r.stateVersion(); have.newer(cl.state) {
		b := putArray(putMessage(nil, downAhead, 1), 3)
		n.toChild(c.id, state, putUint(putUint(putID(b, r.id), have.epoch), have.seq), false)
	}
	r.claim = version{}
	switch {
	case r.man.newer(cl.man):
		n.give(c, r, cl.man)
	case cl.man.newer(r.man.version):
		r.claim = cl.man
		if n.takeManifest != nil {
			n.toChild(c.id, state, putID(putMessage(nil, downGive, 1), r.id), false)
		}
	}
}

// Flags of one want in an answer to rows.
const (
	wantAttachment = 1 << 0
	wantSince      = 1 << 1 // followed by how many numbers back
	wantAll        = 1 << 2
)

// rowsFrame takes rows of a walk and answers with what is wanted of them.
func (n *node) rowsFrame(now time.Time, c *child, r *reader) {
	walk, pos, frame, last := r.uint(), r.uint(), r.uint(), r.uint()
	claims, err := readClaims(r.bytes(MaxBody))
	if r.err != nil || err != nil || walk != c.walk {
		return
	}
	if c.seen == nil {
		c.seen, c.claims = map[api.DeviceID]bool{}, map[api.DeviceID]claimed{}
	}
	c.frames++
	c.walkAt = now
	var wants, certs []byte
	nextIndex, unknown := 0, 0
	for i, cl := range claims {
		c.seen[cl.id] = true
		flags, back := n.compare(now, c, cl)
		if flags == 0 {
			continue
		}
		wants = append(putUvarint(wants, uint64(i-nextIndex)), flags)
		nextIndex = i + 1
		if flags&wantSince != 0 {
			wants = putUvarint(wants, back)
		}
		if flags&wantAttachment != 0 && n.certificate != nil && n.keyOf(cl.id) == nil {
			certs = putID(certs, cl.id)
			unknown++
		}
	}
	if unknown > 0 {
		n.toChild(c.id, steer, append(putMessage(nil, downCerts, unknown), certs...), false)
	}
	b := putUint(putUint(putMessage(nil, downWants, 3), walk), frame)
	n.toChild(c.id, state, putBytes(b, wants), false)
	c.owed = c.owed || len(wants) > 0
	if last == 0 {
		return
	}
	if c.frames == frame+1 {
		n.orphanUnseen(now, c)
	}
	c.cursor, c.followed, c.walk = pos, true, 0
}

// compare decides what is wanted of one row.
func (n *node) compare(now time.Time, c *child, cl claimed) (flags byte, back uint64) {
	r := n.rows[cl.id]
	if r == nil {
		r = &row{id: cl.id}
	}
	via, ok := n.via(cl.id)
	switch {
	case r.att.Counter > cl.counter:
		n.toChild(c.id, state, putBytes(putMessage(nil, downMoved, 1), r.att.Raw), true)
		return 0, 0
	case r.att.Counter < cl.counter || !ok || via != c.id:
		flags = wantAttachment
		c.claims[cl.id] = cl
	default:
		n.reconcile(now, c, r, cl)
	}
	switch {
	case !cl.state.newer(r.state):
	case cl.state.epoch == r.state.epoch:
		return flags | wantSince, cl.state.seq - r.state.seq
	default:
		return flags | wantAll, 0
	}
	return flags, 0
}

// orphanUnseen sets rows aside that the child no longer has: the devices show up again
// by themselves when they live.
func (n *node) orphanUnseen(now time.Time, c *child) {
	for _, r := range n.below(c.id) {
		if c.seen[r.id] || r.id == c.id {
			continue
		}
		if b := bucketOf(r.id, c.bits); c.diff != nil && c.diff[b/8]&(1<<(b%8)) == 0 {
			continue
		}
		r.orphan = true
		n.onGone(now, r)
	}
}

// Held is how much a party has in memory, for those who watch that it stays bounded.
type Held struct {
	Rows, Entries, Tombs int
	// Waiting are attachments without a certificate, and rows of unfinished walks.
	Waiting int
	// Queued are bytes of messages that no Take has fetched.
	Queued int
}

// Held counts what the party has in memory.
func (n *node) Held() (h Held) {
	h.Rows = len(n.rows)
	for _, r := range n.rows {
		h.Entries += len(r.entries)
		for _, e := range r.entries {
			if e.Deleted {
				h.Tombs++
			}
		}
	}
	for _, c := range n.children {
		h.Waiting += len(c.waiting)
	}
	h.Queued = n.up.size()
	for _, o := range n.out {
		h.Queued += o.size()
	}
	return h
}
