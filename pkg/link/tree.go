package link

import (
	"cmp"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/manifest"
)

// version orders what has an epoch and a number in it: state and manifests.
type version struct{ epoch, seq uint64 }

func (v version) newer(w version) bool {
	return v.epoch > w.epoch || v.epoch == w.epoch && v.seq > w.seq
}

func maxVersion(v, w version) version {
	if w.newer(v) {
		return w
	}
	return v
}

// held is the newest manifest of a device that this party has.
type held struct {
	version
	raw []byte
	// tombs are removals by generation, as manifest.Since wants them.
	tombs map[string]uint64
	// pub is the down feed's number at which it came; past are the ones before it.
	pub  uint64
	past []published
}

type published struct {
	version
	pub uint64
}

// item is an entry with its number in the up feed.
type item struct {
	Entry
	feed uint64
}

// row is what a party knows of one device.
type row struct {
	id   api.DeviceID
	att  Attachment
	cert []byte
	pub  crypto.PublicKey
	// orphan means that the way to the device, as its attachment tells it, is no longer
	// confirmed by those below.
	orphan bool
	// absent means that the device's own parent has lost its session.
	absent bool
	online bool // what the core last told of the device

	// state is the newest that is here; entries hold it (in the core they are in the
	// store). ahead is newer state that the parent has and this party lacks.
	state   version
	census  census    // of state, in the core
	live    []LiveKey // the census as it was stored, until it is needed
	wanted  time.Time // when a child was last asked for what is missing
	entries map[string]*item
	ahead   version
	// lost and lostFeed: deletions up to these numbers are forgotten here, so who is
	// behind them needs all entries.
	lost, lostFeed uint64

	man held
	// claim is a manifest that someone below has and this party lacks; stash is a delta
	// upon it that came early.
	claim version
	stash []byte
	tries int // how often the claimed one was asked for again

	// feed is the highest number of any entry. attSent: the parent was told of the
	// attachment; known: the parent follows the state through the feed.
	feed           uint64
	attSent, known bool
}

func (r *row) stateVersion() version    { return maxVersion(r.state, r.ahead) }
func (r *row) manifestVersion() version { return maxVersion(r.man.version, r.claim) }

// digest is the row's part of the digest tree: it is equal at both ends of a link when
// attachment, state and manifest are.
func (r *row) digest() uint64 {
	var b [8 + 5*8]byte
	copy(b[:], r.id[:])
	s, m := r.stateVersion(), r.manifestVersion()
	for i, n := range []uint64{r.att.Counter, s.epoch, s.seq, m.epoch, m.seq} {
		binary.BigEndian.PutUint64(b[8+8*i:], n)
	}
	sum := sha256.Sum256(b[:])
	return binary.BigEndian.Uint64(sum[:])
}

// tree is the rows of a party's subtree, by whom each is attached to.
type tree struct {
	self api.DeviceID // zero in the core
	rows map[api.DeviceID]*row
	kids map[api.DeviceID]map[api.DeviceID]*row
}

func newTree(self api.DeviceID) tree {
	return tree{self: self, rows: map[api.DeviceID]*row{}, kids: map[api.DeviceID]map[api.DeviceID]*row{}}
}

func (t *tree) row(id api.DeviceID) *row {
	r := t.rows[id]
	if r == nil {
		r = &row{id: id}
		t.rows[id] = r
	}
	return r
}

// attach hangs a row where its attachment says.
func (t *tree) attach(r *row, a Attachment) {
	t.unhang(r)
	r.att, r.orphan = a, false
	k := t.kids[a.Parent]
	if k == nil {
		k = map[api.DeviceID]*row{}
		t.kids[a.Parent] = k
	}
	k[r.id] = r
}

func (t *tree) unhang(r *row) {
	k := t.kids[r.att.Parent]
	delete(k, r.id)
	if len(k) == 0 {
		delete(t.kids, r.att.Parent)
	}
}

func (t *tree) drop(r *row) {
	t.unhang(r)
	delete(t.rows, r.id)
}

// via finds the child of this party that the way to a device goes through.
func (t *tree) via(id api.DeviceID) (child api.DeviceID, ok bool) {
	for range MaxDepth {
		r := t.rows[id]
		if r == nil || r.orphan || r.att.Counter == 0 || id == t.self {
			return child, false
		}
		if r.att.Parent == t.self {
			return id, true
		}
		id = r.att.Parent
	}
	return child, false
}

// below lists a device and everything under it, parents before children, each level in
// the order of ids.
func (t *tree) below(id api.DeviceID) []*row {
	var out []*row
	if r := t.rows[id]; r != nil && !r.orphan && (r.att.Counter > 0 || id == t.self) {
		out = append(out, r)
	}
	for at := 0; at < len(out) && len(out) <= len(t.rows); at++ {
		first := len(out)
		for _, k := range t.kids[out[at].id] {
			if !k.orphan && k.id != t.self {
				out = append(out, k)
			}
		}
		slices.SortFunc(out[first:], byID)
	}
	return out
}

func byID(a, b *row) int { return slices.Compare(a.id[:], b.id[:]) }

func digestOf(rows []*row) (sum uint64) {
	for _, r := range rows {
		sum += r.digest()
	}
	return sum
}

// absentHash sums up which devices below (top itself left out) are absent.
func absentHash(rows []*row, top api.DeviceID) (sum uint32) {
	for _, r := range rows {
		if r.absent && r.id != top {
			sum += binary.BigEndian.Uint32(r.id[:]) | 1
		}
	}
	return sum
}

// bucketBits is how many buckets (as a power of two) compare n rows well: about eight
// rows in each.
func bucketBits(n int) (bits int) {
	for bits < 12 && n>>(bits+3) > 0 {
		bits++
	}
	return bits
}

func bucketOf(id api.DeviceID, bits int) int {
	return int(binary.BigEndian.Uint16(id[:])) >> (16 - bits)
}

// bucketSums are 4-byte sums of 1<<bits buckets, salted so that two walks do not share
// a chance collision.
func bucketSums(rows []*row, bits int, salt uint64) []byte {
	sums := make([]uint64, 1<<bits)
	for _, r := range rows {
		sums[bucketOf(r.id, bits)] += r.digest()
	}
	out := make([]byte, 0, 4*len(sums))
	var b [16]byte
	for _, s := range sums {
		binary.BigEndian.PutUint64(b[:], salt)
		binary.BigEndian.PutUint64(b[8:], s)
		h := sha256.Sum256(b[:])
		out = append(out, h[:4]...)
	}
	return out
}

// claimed is a row as a child tells it in a walk.
type claimed struct {
	id         api.DeviceID
	counter    uint64
	state, man version
}

func claimOf(r *row) claimed {
	return claimed{id: r.id, counter: r.att.Counter, state: r.stateVersion(), man: r.manifestVersion()}
}

func putClaim(b []byte, c claimed) []byte {
	b = append(b, c.id[:]...)
	for _, n := range []uint64{c.counter, c.state.epoch, c.state.seq, c.man.epoch, c.man.seq} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func readClaims(b []byte) (out []claimed, err error) {
	r := reader{b: b}
	for len(r.b) > 0 && r.err == nil {
		var c claimed
		if len(r.b) < len(c.id) {
			r.fail("row cut short")
			break
		}
		copy(c.id[:], r.b)
		r.b = r.b[len(c.id):]
		for _, p := range []*uint64{&c.counter, &c.state.epoch, &c.state.seq, &c.man.epoch, &c.man.seq} {
			*p = r.uvarint()
		}
		out = append(out, c)
	}
	return out, r.err
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail("number cut short")
		return 0
	}
	r.b = r.b[size:]
	return n
}

// newerItems lists a row's entries after a number of the up feed, oldest first.
func (r *row) newerItems(feed uint64) []*item {
	var out []*item
	for _, e := range r.entries {
		if e.feed > feed {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *item) int { return cmp.Compare(a.feed, b.feed) })
	return out
}

// before is the highest number of what a follower of the up feed already had at a place
// of it: whoever has the row up to there lacks only what newerItems lists.
func (r *row) before(feed uint64) (seq uint64) {
	all := true
	for _, e := range r.entries {
		if e.feed <= feed {
			seq, all = max(seq, e.Seq), false
		}
	}
	if all {
		return 0
	}
	return max(seq, r.lost)
}

// since lists a row's entries after a state number, oldest first.
func (r *row) since(seq uint64) []*item {
	var out []*item
	for _, e := range r.entries {
		if e.Seq > seq {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *item) int { return cmp.Compare(a.Seq, b.Seq) })
	return out
}

// cut makes the shortest bytes that bring a holder of base to the held manifest: a
// delta, or all of it. It is nil when there is nothing newer to give.
func (h *held) cut(base version) []byte {
	if h.raw == nil || !h.version.newer(base) {
		return nil
	}
	if base.epoch != h.epoch || base.seq == 0 || base.seq < h.tombs[manifest.Floor] {
		return h.raw
	}
	s, err := manifest.Parse(h.raw)
	if err != nil {
		return h.raw
	}
	if d, ok := s.Since(base.seq, h.tombs); ok && len(d) < len(h.raw) {
		return d
	}
	return h.raw
}

// at is the manifest that a follower of the down feed had at a number of it; ok is false
// when that is forgotten.
func (h *held) at(pub uint64) (v version, ok bool) {
	if h.pub <= pub {
		return h.version, true
	}
	for i := len(h.past) - 1; i >= 0; i-- {
		if h.past[i].pub <= pub {
			return h.past[i].version, true
		}
	}
	return version{}, false
}

// maxPast bounds how many earlier numbers a manifest remembers.
const maxPast = 8

// replace puts a newer manifest in force under a number of the down feed.
func (h *held) replace(v version, raw []byte, tombs map[string]uint64, pub uint64) {
	past := append(h.past, published{h.version, h.pub})
	if n := len(past) - maxPast; n > 0 {
		past = slices.Clone(past[n:])
	}
	*h = held{version: v, raw: raw, tombs: tombs, pub: pub, past: past}
}

// isWhole tells a whole manifest (a tagged COSE_Sign1) from a delta.
func isWhole(b []byte) bool { return len(b) > 0 && b[0] == majTag|18 }

// graft makes the manifest and its tombstones from what is held and what came.
func (h *held) graft(b []byte) (*manifest.Signed, map[string]uint64, error) {
	if isWhole(b) {
		s, err := manifest.Parse(b)
		if err != nil {
			return nil, nil, err
		}
		return s, map[string]uint64{manifest.Floor: s.Manifest.Generation}, nil
	}
	var base *manifest.Signed
	if h.raw != nil {
		var err error
		if base, err = manifest.Parse(h.raw); err != nil {
			return nil, nil, err
		}
	}
	s, err := manifest.Apply(base, b)
	if err != nil {
		return nil, nil, err
	}
	if base == nil || base.Manifest.Epoch != s.Manifest.Epoch {
		return s, map[string]uint64{manifest.Floor: s.Manifest.Generation}, nil
	}
	tombs := make(map[string]uint64, len(h.tombs))
	for k, g := range h.tombs {
		if _, back := s.Manifest.Items[k]; !back || k == manifest.Floor {
			tombs[k] = g
		}
	}
	for k := range base.Manifest.Items {
		if _, there := s.Manifest.Items[k]; !there {
			tombs[k] = s.Manifest.Generation
		}
	}
	if len(tombs) > manifest.MaxItems {
		tombs = map[string]uint64{manifest.Floor: s.Manifest.Generation}
	}
	return s, tombs, nil
}

// header tells whose a manifest or delta is and which.
func header(b []byte) (id api.DeviceID, v version, err error) {
	if !isWhole(b) {
		id, epoch, _, gen, err := manifest.DeltaHeader(b)
		return id, version{epoch, gen}, err
	}
	s, err := manifest.Parse(b)
	if err != nil {
		return id, v, err
	}
	return s.Manifest.Device, version{s.Manifest.Epoch, s.Manifest.Generation}, nil
}
