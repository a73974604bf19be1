package delta

import (
	"encoding/binary"
	"math/bits"
	"sort"
)

// The changes within a copy are coded bit by bit by an arithmetic coder whose probabilities are mixed from several
// contexts (as in the PAQ family, Mahoney 2005). All of it is in whole numbers, so that every machine computes the same.
//
// What changes in programs between two builds is mostly numbers that point somewhere: the shift of what they point to is
// known from the copies themselves. So some contexts are guesses of the next byte: as this number was translated before
// (subst), shifted as the last one was (last), shifted as numbers near it were (near, class), as a relative pointer to what
// has moved, as an absolute one.

const (
	block     = 16 // bytes that are told to be equal by one bit
	behind    = 32 // bytes of context before a stretch
	ahead     = 8  // bytes of the old content after it
	mostBits  = 19 // of a table's index; fewer for small contents
	noGuess   = -1
	guesses   = 6
	nearBits  = 6
	classBits = 13
)

// logistic is 4096/(1+e^-x) for x from -8 to 8 in halves.
var logistic = [33]int32{1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902, 3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095}

func squash(x int32) int32 {
	if x > 2047 {
		return 4095
	}
	if x < -2047 {
		return 1
	}
	w := x & 127
	i := x>>7 + 16
	return (logistic[i]*(128-w) + logistic[i+1]*w + 64) >> 7
}

var stretchTable = func() (t [4096]int16) {
	at := 0
	for x := int32(-2047); x <= 2047; x++ {
		for v := int(squash(x)); at <= v && at < 4096; at++ {
			t[at] = int16(x)
		}
	}
	for ; at < 4096; at++ {
		t[at] = 2047
	}
	return t
}()

// coder is the arithmetic coder, both ways.
type coder struct {
	low, high, code uint32
	in              []byte
	out             []byte
	decode          bool
}

func newEncoder() *coder { return &coder{high: 1<<32 - 1} }

func newDecoder(in []byte) *coder {
	c := &coder{high: 1<<32 - 1, in: in, decode: true}
	for range 4 {
		c.code = c.code<<8 | uint32(c.next())
	}
	return c
}

func (c *coder) next() byte {
	if len(c.in) == 0 {
		return 0
	}
	b := c.in[0]
	c.in = c.in[1:]
	return b
}

// bit codes one bit; p is the probability of a one in 65536ths, from 1 to 65535.
func (c *coder) bit(bit uint32, p uint32) uint32 {
	mid := c.low + uint32(uint64(c.high-c.low)*uint64(p)>>16)
	if c.decode {
		bit = 0
		if c.code <= mid {
			bit = 1
		}
	}
	if bit == 1 {
		c.high = mid
	} else {
		c.low = mid + 1
	}
	for (c.low^c.high)>>24 == 0 {
		if c.decode {
			c.code = c.code<<8 | uint32(c.next())
		} else {
			c.out = append(c.out, byte(c.high>>24))
		}
		c.low <<= 8
		c.high = c.high<<8 | 255
	}
	return bit
}

func (c *coder) finish() []byte {
	return append(c.out, byte(c.low>>24)+1, 0, 0, 0)
}

// mixer weighs the contexts' probabilities.
type mixer struct {
	n       int
	weights []int32
	in      []int32
	slots   []*uint16
	set     int
}

func newMixer(n, sets int) *mixer {
	m := &mixer{n: n, weights: make([]int32, n*sets), in: make([]int32, n), slots: make([]*uint16, n)}
	for i := range m.weights {
		m.weights[i] = 1 << 16 * 2 / 5
	}
	return m
}

func (m *mixer) code(c *coder, bit uint32) uint32 {
	w := m.weights[m.set*m.n : m.set*m.n+m.n]
	var dot int64
	for i, s := range m.slots {
		m.in[i] = int32(stretchTable[*s>>4])
		dot += int64(m.in[i]) * int64(w[i])
	}
	x := int32(max(-2047, min(2047, dot>>16)))
	p := squash(x)
	fine := max(uint32(24), min(65536-24, uint32(p)<<4+8))
	if x >= 2047 {
		fine = 65536 - 8
	} else if x <= -2047 {
		fine = 8
	}
	bit = c.bit(bit, fine)
	miss := (int32(bit)<<12 - p) * 6
	for i, s := range m.slots {
		w[i] += (m.in[i]*miss + 1<<13) >> 14
		if bit == 1 {
			*s += (65535 - *s) >> 4
		} else {
			*s -= *s >> 4
		}
	}
	return bit
}

// guess is a word that the next four bytes may be.
type guess struct {
	word  uint32
	valid bool
}

// model is the state of coder and decoder: the same on both sides at every byte.
type model struct {
	c      *coder
	shift  int // that makes a hash an index
	tables [][]uint16
	flags  *mixer
	values *mixer
	blocks [1 << 12]uint16 // by the last ten, and by how many operands should change
	hist   uint32          // of blocks

	ops    []op    // in the order of the new content
	news   []int64 // where each begins in the new content
	byOld  []int   // ops in the order of the old content
	base   uint32  // what absolute pointers have more than their place in the content
	subst  []uint64
	last   uint32   // shift of the last changed word
	near   []uint32 // shifts of words, by their upper bits
	class  []uint32
	at     int64 // of the word for which rel and abs stand
	rel    guess // where the word, as a pointer, points to in the new content
	abs    guess
	hits   [guesses]uint8 // how often each guess came true lately
	recent uint32         // which of the last bytes were changed
}

const (
	flagInputs  = 8
	valueInputs = 13
)

func newModel(c *coder, ops []op, base uint32, size int64) *model {
	tableBits := min(mostBits, max(12, bits.Len64(uint64(size))-4))
	m := &model{c: c, shift: 32 - tableBits, flags: newMixer(flagInputs, 4), values: newMixer(valueInputs, 32), ops: ops, base: base, subst: make([]uint64, 1<<20), near: make([]uint32, 1<<18), class: make([]uint32, 1<<16), at: -1}
	m.tables = make([][]uint16, flagInputs+valueInputs)
	for i := range m.tables {
		m.tables[i] = make([]uint16, 1<<tableBits)
		for j := range m.tables[i] {
			m.tables[i][j] = 1 << 15
		}
	}
	for i := range m.blocks {
		m.blocks[i] = 1 << 15
	}
	at := int64(0)
	for i, o := range ops {
		m.news = append(m.news, at)
		at += o.Copy + o.Extra
		if o.Copy > 0 {
			m.byOld = append(m.byOld, i)
		}
	}
	sort.SliceStable(m.byOld, func(i, j int) bool { return ops[m.byOld[i]].Old < ops[m.byOld[j]].Old })
	return m
}

// moved tells where that place of the old content is in the new one.
func (m *model) moved(old int64) (int64, bool) {
	i := sort.Search(len(m.byOld), func(i int) bool { return m.ops[m.byOld[i]].Old > old })
	for back := 0; back < 4 && i > 0; back++ {
		i--
		k := m.byOld[i]
		if o := m.ops[k]; old < o.Old+o.Copy+64 {
			return m.news[k] + old - o.Old, true
		}
	}
	return 0, false
}

func hash(parts ...uint32) uint32 {
	h := uint32(2166136261)
	for _, p := range parts {
		h = (h ^ p) * 0x9E3779B1
		h ^= h >> 15
	}
	return h
}

// stretch codes n bytes: old has them from behind on and ahead more, new from behind on. oldAt and newAt are the places of
// the first in the contents.
func (m *model) stretch(old, new []byte, n int, oldAt, newAt int64) {
	for at := 0; at < n; at += block {
		size := min(block, n-at)
		o, w := old[behind+at:behind+at+size], new[behind+at:behind+at+size]
		differ := uint32(0)
		if !m.c.decode && string(o) != string(w) {
			differ = 1
		}
		slot := &m.blocks[m.hist&0x3ff<<2|m.changing(old, behind+at, size, oldAt+int64(at), newAt+int64(at))]
		differ = m.c.bit(differ, max(4, min(65531, uint32(*slot))))
		if differ == 1 {
			*slot += (65535 - *slot) >> 5
		} else {
			*slot -= *slot >> 5
		}
		m.hist = m.hist<<1 | differ
		if differ == 0 {
			copy(w, o)
			m.recent = 0
			continue
		}
		for i := range size {
			m.byte(old, new, behind+at+i, oldAt+int64(at+i), newAt+int64(at+i))
		}
	}
}

func word(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// place is where a byte is coded. old and new are a stretch's, in which the byte has the same index.
type place struct {
	old, new     []byte
	i            int
	oldAt, newAt int64  // in the contents
	word         uint32 // the old word that it belongs to; words are aligned in the new content
	begun               // the new word
}

// begun is a word of the new content of which the first k bytes are known.
type begun struct {
	k          int
	part, mask uint32
}

func begin(new []byte, start, k int) begun {
	b := begun{k: k, mask: uint32(1)<<(8*k) - 1}
	for j := range k {
		b.part |= uint32(new[start+j]) << (8 * j)
	}
	return b
}

// next gives the next byte, if the word is that one.
func (b begun) next(word uint32) int32 {
	if word&b.mask != b.part {
		return noGuess
	}
	return int32(word >> (8 * b.k) & 255)
}

// shift is what the byte n before this one was changed by.
func (p *place) shift(n int) uint32 { return uint32(p.new[p.i-n] - p.old[p.i-n]) }

// byte codes new[i].
func (m *model) byte(old, new []byte, i int, oldAt, newAt int64) {
	k := int(newAt & 3)
	p := place{old, new, i, oldAt, newAt, word(old[i-k:]), begin(new, i-k, k)}
	known := m.known(p.word)
	g := m.guess(&p, known)
	is := old[i]
	says := uint32(0) // of each guess: none, the same, a change
	for _, b := range g {
		says *= 3
		if b == int32(is) {
			says++
		} else if b >= 0 {
			says += 2
		}
	}
	changed := uint32(0)
	if !m.c.decode && new[i] != is {
		changed = 1
	}
	if changed = m.flag(&p, says, changed); changed == 0 {
		new[i] = is
	} else {
		new[i] = m.value(&p, &g, new[i])
	}
	m.recent = m.recent<<1 | changed
	m.score(&g, new[i])
	if k == 3 {
		m.learn(known, p.word, word(new[i-3:]))
	}
}

// known is what was learnt of an old word and its like.
type known struct {
	subst       *uint64 // the word and what became of it last
	near, class *uint32 // by what words like it were shifted
}

func (m *model) known(word uint32) known {
	return known{&m.subst[hash(word)>>12], &m.near[hash(31, word>>nearBits)>>14], &m.class[hash(32, word>>classBits)>>16]}
}

// learn notes what became of a word.
func (m *model) learn(k known, was, is uint32) {
	shift := is - was
	*k.subst = uint64(was)<<32 | uint64(is)
	*k.near, *k.class = shift, shift
	if shift != 0 {
		m.last = shift
	}
}

// guess gives what the byte may be, by each way of guessing.
func (m *model) guess(p *place, k known) (g [guesses]int32) {
	g = [guesses]int32{noGuess, p.next(p.word + m.last), p.next(p.word + *k.near), noGuess, noGuess, p.next(p.word + *k.class)}
	if uint32(*k.subst>>32) == p.word {
		g[0] = p.next(uint32(*k.subst))
	}
	if at := p.newAt - int64(p.k); m.at != at {
		m.at, m.rel, m.abs = at, guess{}, guess{}
		if to, ok := m.moved(p.oldAt - int64(p.k) + int64(int32(p.word))); ok {
			m.rel = guess{uint32(to - at), true}
		}
		if to, ok := m.moved(int64(p.word - m.base)); ok {
			m.abs = guess{uint32(to) + m.base, true}
		}
	}
	// Pointers: in data they are aligned; in x86 code they stand where the bytes before say so.
	if start, o := operandOf(p.new, p.i); o.kind != noOperand {
		d := p.i - start
		if w, ok := m.points(o, word(p.old[start:]), p.oldAt-int64(d), p.newAt-int64(d)); ok {
			g[3] = begin(p.new, start, d).next(w)
		}
	} else if m.rel.valid {
		g[3] = p.next(m.rel.word)
	}
	if m.abs.valid {
		g[4] = p.next(m.abs.word)
	}
	return g
}

// score notes which guesses came true.
func (m *model) score(g *[guesses]int32, is byte) {
	for j, b := range g {
		switch hits := &m.hits[j]; b {
		case noGuess:
		case int32(is):
			*hits += (255 - *hits) >> 4
		default:
			*hits -= *hits>>4 + min(1, *hits)
		}
	}
}

// flag codes whether the byte is changed.
func (m *model) flag(p *place, says, changed uint32) uint32 {
	old, i, k, f := p.old, p.i, uint32(p.k), m.flags
	ctx := [flagInputs]uint32{
		hash(1, m.recent&0xff),
		hash(2, says, k),
		hash(3, says, uint32(m.hits[0])/64, uint32(m.hits[1])/64, uint32(m.hits[2])/64, uint32(m.hits[3])/64, uint32(m.hits[5])/64, m.recent&3),
		hash(4, uint32(old[i-1]), uint32(old[i]), uint32(old[i+1]), k),
		hash(5, k, m.recent>>3&1, m.recent>>7&1, m.recent>>11&1, m.recent>>15&1, m.recent&7),
		hash(6, p.word, k, m.recent&(1<<k-1)),
		hash(7, p.shift(4), p.shift(12), k),
		hash(8, word(old[i-2:]), word(old[i+2:])),
	}
	for j := range ctx {
		f.slots[j] = &m.tables[j][ctx[j]>>m.shift]
	}
	f.set = p.k
	return f.code(m.c, changed)
}

// operand is what four bytes in x86 code are: nothing, a distance from the end of the instruction, tail bytes behind
// them, or an address.
type operand struct {
	kind int
	tail int64
}

const (
	noOperand = iota
	distance
	address
)

// operandAt tells it by the bytes before. It need not be right.
func operandAt(code []byte, start int) operand {
	p, q := code[start-1], code[start-2]
	switch {
	case p == 0xe8 || p == 0xe9, p&0xf0 == 0x80 && q == 0x0f: // call, jump, conditional jump
		return operand{distance, 0}
	case p&0xf8 == 0xc0 && q == 0xc7: // mov of a number
		return operand{address, 0}
	case p&0xc7 != 0x05: // not relative to the instruction pointer
	case q == 0x80 || q == 0x83 || q == 0xc6 || q == 0xc0 || q == 0xc1 || q == 0x6b || q == 0xf6 && p&0x38 == 0:
		return operand{distance, 1}
	case q == 0xc7 || q == 0x81 || q == 0x69 || q == 0xf7 && p&0x38 == 0:
		return operand{distance, 4}
	case q >= 0x80 || q == 0x63 || q < 0x40 && q&7 < 4:
		return operand{distance, 0}
	}
	return operand{}
}

// operandOf gives the operand that this byte is part of, and where it begins.
func operandOf(code []byte, i int) (start int, o operand) {
	for start = i; start > i-4; start-- {
		if o = operandAt(code, start); o.kind != noOperand {
			return start, o
		}
	}
	return i, operand{}
}

// points gives what an operand should become. oldAt and newAt are its places.
func (m *model) points(o operand, was uint32, oldAt, newAt int64) (uint32, bool) {
	if o.kind == address {
		to, ok := m.moved(int64(was - m.base))
		return uint32(to) + m.base, ok
	}
	to, ok := m.moved(oldAt + 4 + o.tail + int64(int32(was)))
	return uint32(to - newAt - 4 - o.tail), ok
}

// changing counts the operands in a block that should change, up to 3. It looks for them in the old bytes.
func (m *model) changing(old []byte, i, size int, oldAt, newAt int64) (n uint32) {
	for start := i - 3; start < i+size && n < 3; start++ {
		o := operandAt(old, start)
		if o.kind == noOperand {
			continue
		}
		was, d := word(old[start:]), int64(start-i)
		if w, ok := m.points(o, was, oldAt+d, newAt+d); ok && w != was {
			n++
		}
	}
	return n
}

// value codes what the byte is, bit by bit from the highest.
func (m *model) value(p *place, g *[guesses]int32, is byte) byte {
	was, k, v := p.old[p.i], uint32(p.k), m.values
	ctx := [valueInputs]uint32{
		hash(11, uint32(g[0]), uint32(m.hits[0])/32),
		hash(12, uint32(g[1]), uint32(m.hits[1])/32, k),
		hash(13, uint32(g[2]), uint32(m.hits[2])/32, k),
		hash(14, uint32(g[3]), uint32(m.hits[3])/32),
		hash(15, uint32(g[4]), uint32(m.hits[4])/32, k),
		hash(16, uint32(was), k),
		hash(17, uint32(was), p.shift(1), p.shift(2)),
		hash(18, uint32(p.new[p.i-1]), uint32(p.new[p.i-2])),
		hash(19, uint32(was+byte(p.shift(4))), uint32(was+byte(p.shift(8)))),
		hash(20, uint32(was+byte(p.shift(12))), k),
		hash(21, p.word, k),
		hash(22, uint32(g[0]), uint32(g[2]), uint32(g[5])),
		hash(23, uint32(g[5]), uint32(m.hits[5])/32, k),
	}
	bits := uint32(1) // a one, and those that are known
	for b := 7; b >= 0; b-- {
		for j := range ctx {
			v.slots[j] = &m.tables[flagInputs+j][(ctx[j]+bits*0x9E3779B1)*0x85EBCA6B>>m.shift]
		}
		v.set = 0 // which of the better guesses agree so far, and which half of the byte it is
		for _, j := range [4]int{0, 2, 3, 5} {
			v.set <<= 1
			if g[j] >= 0 && uint32(g[j]|256)>>(b+1) == bits {
				v.set |= 1
			}
		}
		if b < 4 {
			v.set += 16
		}
		bits = bits<<1 | v.code(m.c, uint32(is)>>b&1)
	}
	return byte(bits)
}
