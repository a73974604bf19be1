package delta

import "encoding/binary"

// op says: the next Copy bytes are like those of the old content at Old, with changes; then come Extra bytes of their own.
type op struct {
	Old         int64
	Copy, Extra int64
}

const (
	seed     = 24 // bytes that must be equal for a place to be found
	stride   = 4  // of the places of the old content that are looked up
	step     = 32 // the copy goes on by steps, each of which must be half equal
	maxChain = 12
	minCopy  = 32
)

// plan finds what of the old content each part of the new one resembles. It needs 5/4 bytes of memory for each old one.
func plan(old, new []byte) []op {
	p := &planner{old: old, new: new, index: newIndex(old)}
	for p.at < len(new) {
		p.extend()
		if p.at < len(new) {
			p.next()
		}
	}
	p.flush(op{})
	return p.ops
}

type planner struct {
	old, new []byte
	index    *index
	ops      []op
	cur      op
	at       int // in new
}

func (p *planner) flush(next op) {
	if p.cur.Copy > 0 || p.cur.Extra > 0 {
		p.ops = append(p.ops, p.cur)
	}
	p.cur = next
}

// extend goes on with the copy as long as half of the bytes are equal.
func (p *planner) extend() {
	for {
		o := p.cur.Old + p.cur.Copy
		n := min(step, len(p.new)-p.at, len(p.old)-int(o))
		if n <= 0 || p.cur.Extra > 0 {
			return
		}
		if 2*equal(p.old[o:int(o)+n], p.new[p.at:p.at+n]) < n {
			// what lies behind may fit again: a signature, a build id
			far := o + 640
			if int(far)+step > len(p.old) || p.at+640+step > len(p.new) || 4*equal(p.old[far:far+step], p.new[p.at+640:p.at+640+step]) < 3*step {
				return
			}
		}
		p.cur.Copy += int64(n)
		p.at += n
	}
}

// next begins another copy here, or goes on with the last one, or says that this byte has no counterpart.
func (p *planner) next() {
	expected := p.cur.Old + p.cur.Copy + p.cur.Extra
	where, length := p.index.find(p.new, p.at, expected)
	if length < minCopy {
		p.cur.Extra++
		p.at++
		return
	}
	// A table whose numbers all moved by the same has hardly an equal stretch where it belongs, and many where it does not.
	if p.cur.Copy > 0 && where != expected && length < 8*likely {
		if n := p.alike(expected); 2*n >= likely && n >= p.alike(where) {
			where, length = expected, minCopy
		}
	}
	if p.cur.Copy > 0 && where == expected { // the same alignment goes on: what lay between is a change
		p.cur.Copy += p.cur.Extra + int64(length)
		p.cur.Extra = 0
		p.at += length
		return
	}
	back := backward(p.old, p.new, where, p.at, p.cur.Extra)
	p.cur.Extra -= back
	p.cur.fill(p.old, p.new[int64(p.at)-back-p.cur.Extra:int64(p.at)-back])
	p.flush(op{Old: where - back, Copy: back + int64(length)})
	p.at += length
}

const likely = 512 // bytes that are looked at to choose between two places

// alike counts the bytes from here on whose words differ by nothing, or by what the word before differed by.
func (p *planner) alike(old int64) (n int) {
	last := uint32(0)
	for i := 0; i < likely && int(old)+i+4 <= len(p.old) && p.at+i+4 <= len(p.new); i += 4 {
		switch d := word(p.new[p.at+i:]) - word(p.old[int(old)+i:]); d {
		case 0, last:
			n += 4
		default:
			last = d
		}
	}
	return n
}

// fill goes on with a copy over extra bytes that are its like, if only here and there.
func (o *op) fill(old, extra []byte) {
	from := o.Old + o.Copy
	n := min(len(extra), len(old)-int(from))
	if o.Copy == 0 || n <= 0 || len(extra) > maxFill || n < len(extra) {
		return
	}
	if 6*equal(old[from:int(from)+n], extra[:n]) >= n {
		o.Copy += int64(n)
		o.Extra -= int64(n)
	}
}

const maxFill = 256 << 10

// backward takes from the extra bytes before a match those that resemble what lies before it in the old content.
func backward(old, new []byte, where int64, at int, extra int64) (back int64) {
	score, best := 0, 0
	for i := int64(1); i <= min(extra, where, 1<<16); i++ {
		if old[where-i] == new[int64(at)-i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, back = score, i
		}
		if score < best-64 {
			break
		}
	}
	return back
}

func equal(a, b []byte) (n int) {
	for i := range a {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}

type index struct {
	old  []byte
	head []int32
	prev []int32 // by place/stride
	bits uint
}

func newIndex(old []byte) *index {
	x := &index{old: old, bits: 10}
	for 1<<x.bits < len(old)/stride && x.bits < 24 {
		x.bits++
	}
	x.head, x.prev = make([]int32, 1<<x.bits), make([]int32, len(old)/stride+1)
	for i := range x.head {
		x.head[i] = -1
	}
	for at := 0; at+seed <= len(old); at += stride {
		if flat(old[at:]) {
			continue
		}
		h := x.hash(old[at:])
		x.prev[at/stride], x.head[h] = x.head[h], int32(at/stride)
	}
	return x
}

func (x *index) hash(b []byte) uint64 {
	v := binary.LittleEndian.Uint64(b)*0x9E3779B97F4A7C15 ^ binary.LittleEndian.Uint64(b[8:])*0xC2B2AE3D27D4EB4F ^ binary.LittleEndian.Uint64(b[16:])*0x165667B19E3779F9
	v ^= v >> 29
	return v * 0x9E3779B97F4A7C15 >> (64 - x.bits)
}

// flat is what all files have: one byte over and over.
func flat(b []byte) bool {
	v := binary.LittleEndian.Uint64(b)
	return v == binary.LittleEndian.Uint64(b[8:]) && v == binary.LittleEndian.Uint64(b[16:]) && byte(v) == byte(v>>8)
}

// find gives the place in the old content that is equal for longest; the expected place wins unless another is better by
// a good deal.
func (x *index) find(new []byte, at int, expected int64) (where int64, length int) {
	if at+seed > len(new) {
		return 0, 0
	}
	if expected >= 0 && int(expected) < len(x.old) {
		where, length = expected, x.common(new, at, int(expected))
	}
	if length >= 4096 || flat(new[at:]) {
		return where, length
	}
	c := x.head[x.hash(new[at:])]
	for range maxChain {
		if c < 0 {
			break
		}
		o := int(c) * stride
		if l := x.common(new, at, o); l > length+16 {
			where, length = int64(o), l
		}
		c = x.prev[c]
	}
	return where, length
}

func (x *index) common(new []byte, at, o int) int {
	n, most := 0, min(1<<16, len(new)-at, len(x.old)-o)
	for n+8 <= most && binary.LittleEndian.Uint64(new[at+n:]) == binary.LittleEndian.Uint64(x.old[o+n:]) {
		n += 8
	}
	for n < most && new[at+n] == x.old[o+n] {
		n++
	}
	return n
}
