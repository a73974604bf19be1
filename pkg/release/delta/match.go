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
func plan(old, new []byte) (ops []op) {
	index := newIndex(old)
	var cur op
	at := 0 // in new
	flush := func(next op) {
		if cur.Copy > 0 || cur.Extra > 0 {
			ops = append(ops, cur)
		}
		cur = next
	}
	extend := func() {
		for {
			o := cur.Old + cur.Copy
			n := min(step, len(new)-at, len(old)-int(o))
			if n <= 0 || cur.Extra > 0 {
				return
			}
			if 2*equal(old[o:int(o)+n], new[at:at+n]) < n {
				// what lies behind may fit again: a signature, a build id
				far := o + 640
				if int(far)+step > len(old) || at+640+step > len(new) || 4*equal(old[far:far+step], new[at+640:at+640+step]) < 3*step {
					return
				}
			}
			cur.Copy += int64(n)
			at += n
		}
	}
	for at < len(new) {
		extend()
		if at >= len(new) {
			break
		}
		expected := cur.Old + cur.Copy + cur.Extra
		where, length := index.find(new, at, expected)
		if length < minCopy {
			cur.Extra++
			at++
			continue
		}
		if where == expected && cur.Extra > 0 && cur.Copy > 0 { // the same alignment goes on: what lay between is a change
			cur.Copy += cur.Extra + int64(length)
			cur.Extra = 0
			at += length
			continue
		}
		back := backward(old, new, where, at, cur.Extra)
		cur.Extra -= back
		cur.fill(old, new[int64(at)-back-cur.Extra:int64(at)-back])
		flush(op{Old: where - back, Copy: back + int64(length)})
		at += length
	}
	flush(op{})
	return ops
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
