// Package lz4k answers: how does the compressed part of a kernel come to be the same bits from the same content, here and on the box?
//
// A point update changes a few per cent of a kernel, and after compression nearly all of it. So a delta is made of the
// uncompressed form, and the box compresses again what comes out. For that the encoder must never change: it is this
// one, and its output is pinned by a test. The format is LZ4's legacy frame (lz4_Frame_format.md, "Legacy frame"),
// which Linux reads as its own payload and as an initramfs.
package lz4k

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

const (
	magic     = 0x184C2102
	blockSize = 8 << 20 // of plain bytes, as the legacy frame says
	window    = 65535
	minMatch  = 4
	lastLits  = 5  // a block ends with at least so many literals
	lastMatch = 12 // and no match begins later than this before its end
	hashBits  = 18
	depth     = 288 // candidates looked at for each place
	long      = 512 // a match of this length is taken whole
	// MaxPlain bounds what is encoded and decoded, in bytes.
	MaxPlain = 64 << 20
)

// ErrFormat: not a legacy frame, or one that is damaged.
var ErrFormat = errors.New("not a whole LZ4 legacy frame")

// Encode compresses. The same bytes give the same bytes, on every machine, in every release. It needs 70 MB beside them,
// and takes one block after the other for that.
func Encode(plain []byte) []byte {
	out := binary.LittleEndian.AppendUint32(nil, magic)
	var f finder
	for block := range slices.Chunk(plain, blockSize) {
		b := f.compress(block)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	return out
}

// Decode gives the plain bytes, at most MaxPlain. Magic numbers between blocks are passed over, as the kernel does.
func Decode(frame []byte) ([]byte, error) {
	if len(frame) < 4 || binary.LittleEndian.Uint32(frame) != magic {
		return nil, ErrFormat
	}
	var out []byte
	for rest := frame[4:]; len(rest) > 0; {
		if len(rest) < 4 {
			return nil, ErrFormat
		}
		size := binary.LittleEndian.Uint32(rest)
		rest = rest[4:]
		if size == magic {
			continue
		}
		if uint64(size) > uint64(len(rest)) || len(out)+blockSize > MaxPlain {
			return nil, ErrFormat
		}
		var err error
		if out, err = expand(out, rest[:size]); err != nil {
			return nil, err
		}
		rest = rest[size:]
	}
	return out, nil
}

// expand appends the plain bytes of one block.
func expand(out, in []byte) ([]byte, error) {
	start := len(out)
	length := func(n int) (int, bool) {
		if n < 15 {
			return n, true
		}
		for {
			if len(in) == 0 || n > blockSize {
				return 0, false
			}
			b := in[0]
			in = in[1:]
			n += int(b)
			if b < 255 {
				return n, true
			}
		}
	}
	for len(in) > 0 {
		token := in[0]
		in = in[1:]
		lits, ok := length(int(token >> 4))
		if !ok || lits > len(in) || len(out)-start+lits > blockSize {
			return nil, ErrFormat
		}
		out = append(out, in[:lits]...)
		in = in[lits:]
		if len(in) == 0 {
			return out, nil
		}
		if len(in) < 2 {
			return nil, ErrFormat
		}
		offset := int(binary.LittleEndian.Uint16(in))
		in = in[2:]
		n, ok := length(int(token & 15))
		n += minMatch
		if !ok || offset == 0 || offset > len(out)-start || len(out)-start+n > blockSize {
			return nil, ErrFormat
		}
		for range n {
			out = append(out, out[len(out)-offset])
		}
	}
	return nil, ErrFormat // a block ends with literals
}

// finder has what a block takes, for one after the other: per place of the block, in 2, 2 and 4 bytes,
type finder struct {
	lens []uint16 // the longest match, then what is taken; endless for one that has more
	offs []uint16 // how far back it lies
	cost []int32  // bytes from here to the end
	head []int32
	prev []int32 // by place, of the last window
}

// endless stands for a length that its two bytes do not hold. Such a match is taken whole or not at all, and the place
// behind has the rest of it: so its length is told from there.
const endless = 1<<16 - 1

func (f *finder) clear(n int) {
	f.lens, f.offs = append(f.lens[:0], make([]uint16, n)...), append(f.offs[:0], make([]uint16, n)...)
	f.cost = append(f.cost[:0], make([]int32, n+1)...)
	f.head, f.prev = append(f.head[:0], make([]int32, 1<<hashBits)...), append(f.prev[:0], make([]int32, window+1)...)
	for i := range f.head {
		f.head[i] = -1
	}
}

// compress finds for each place the longest match, then the cheapest way through the block.
func (f *finder) compress(in []byte) []byte {
	f.clear(len(in))
	f.matches(in)
	run := int32(0)   // literals from the place behind on, until the next match
	whole := int32(0) // length of the match at the place behind
	for i := len(in) - 1; i >= 0; i-- {
		most := int32(f.lens[i])
		if most == endless && whole >= endless-1 {
			most = whole + 1
		}
		whole = most
		r := run + 1
		best := f.cost[i+1] + 1
		if r == 15 || r > 15 && (r-15)%255 == 0 {
			best++
		}
		pick := int32(0)
		if most >= minMatch {
			least := int32(minMatch)
			if most >= long {
				least = most
			}
			for l := most; l >= least; l-- {
				c := f.cost[i+int(l)] + 3
				if l >= 19 {
					c += 1 + (l-19)/255
				}
				if c < best {
					best, pick = c, l
				}
			}
		}
		f.cost[i] = best
		if run = r; pick > 0 {
			run = 0
		}
		f.lens[i] = uint16(min(pick, endless))
	}
	return emit(in, f.lens, f.offs, int(f.cost[0])+16)
}

func emit(in []byte, take, offs []uint16, room int) []byte {
	out := make([]byte, 0, room)
	tail := func(n int) {
		for ; n >= 255; n -= 255 {
			out = append(out, 255)
		}
		out = append(out, byte(n))
	}
	from := 0
	for i := 0; ; {
		if i < len(in) && take[i] == 0 {
			i++
			continue
		}
		lits, n := i-from, 0
		token := byte(min(lits, 15)) << 4
		if i < len(in) {
			if n = int(take[i]); n == endless {
				n = int(common(in, i-int(offs[i]), i, len(in)-lastLits))
			}
			token |= byte(min(n-minMatch, 15))
		}
		out = append(out, token)
		if lits >= 15 {
			tail(lits - 15)
		}
		out = append(out, in[from:i]...)
		if i >= len(in) {
			return out
		}
		out = binary.LittleEndian.AppendUint16(out, offs[i])
		if n-minMatch >= 15 {
			tail(n - minMatch - 15)
		}
		i += n
		from = i
	}
}

// matches gives the longest match of each place and how far back it lies.
func (f *finder) matches(in []byte) {
	n := len(in)
	if n < lastMatch+1 {
		return
	}
	end := n - lastLits
	before, from := int32(0), int32(0) // the match of the place before
	for i := 0; i <= n-lastMatch; i++ {
		h := binary.LittleEndian.Uint32(in[i:]) * 2654435761 >> (32 - hashBits)
		at := f.head[h]
		f.prev[i&window], f.head[h] = at, int32(i)
		best, off := int32(0), int32(0)
		if before > minMatch { // it goes on here
			best, off = before-1, from
		}
		if before < long {
			best, off = f.search(in, i, at, end, best, off)
		}
		if best < minMatch {
			best, off = 0, 0
		}
		f.lens[i], f.offs[i] = uint16(min(best, endless)), uint16(off)
		before, from = best, off
	}
}

// search looks for a longer match than best among earlier places of the same beginning.
func (f *finder) search(in []byte, i int, at int32, end int, best, off int32) (int32, int32) {
	for range depth {
		if at < 0 || i-int(at) > window {
			break
		}
		if j := int(at) + int(best); i+int(best) < end && in[j] == in[i+int(best)] {
			if l := common(in, int(at), i, end); l > best && l >= minMatch {
				best, off = l, int32(i)-at
			}
		}
		at = f.prev[int(at)&window]
	}
	return best, off
}

func common(in []byte, a, b, end int) int32 {
	n := 0
	for b+n+8 <= end && binary.LittleEndian.Uint64(in[a+n:]) == binary.LittleEndian.Uint64(in[b+n:]) {
		n += 8
	}
	for b+n < end && in[a+n] == in[b+n] {
		n++
	}
	return int32(n)
}

// Kernel is where an x86 kernel image has its LZ4 payload (Documentation/arch/x86/boot.rst): Offset and Size in bytes,
// Size without the four bytes behind it that say how long it is unpacked.
type Kernel struct{ Offset, Size int }

// Find looks for the payload; ok is false for a kernel that has none of this format.
func Find(image []byte) (k Kernel, ok bool) {
	const minHeader = 0x250
	if len(image) < minHeader || string(image[0x202:0x206]) != "HdrS" {
		return k, false
	}
	setup := int(image[0x1f1])
	if setup == 0 {
		setup = 4
	}
	offset := uint64(setup+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	size := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if size < 12 || offset+size > uint64(len(image)) || binary.LittleEndian.Uint32(image[offset:]) != magic {
		return k, false
	}
	return Kernel{int(offset), int(size) - 4}, true
}

// Repack gives the image with its payload compressed by this package, so that Open and Close can take it apart and
// put it together. A kernel with another payload, or one for which the encoder needs more room than there is, is
// returned as it is. The signature of the image, if it has one, does not hold afterwards.
func Repack(image []byte) (repacked []byte, changed bool, err error) {
	k, ok := Find(image)
	if !ok {
		return image, false, nil
	}
	plain, err := Decode(image[k.Offset : k.Offset+k.Size])
	if err != nil {
		return nil, false, fmt.Errorf("the kernel's payload: %w", err)
	}
	frame, ok := Fit(plain, k.Size)
	if !ok {
		return image, false, nil
	}
	out := append([]byte{}, image...)
	copy(out[k.Offset:], frame)
	return out, true, nil
}

// Fit encodes into exactly size bytes: the place has a fixed length. It is filled up by magic numbers before the first
// block, which the kernel passes over, and to a multiple of four by literals that could have been matches.
func Fit(plain []byte, size int) (frame []byte, ok bool) {
	frame = Encode(plain)
	room := size - len(frame)
	if room < 0 {
		return nil, false
	}
	if room%4 != 0 {
		if frame, ok = stretch(frame, room%4); !ok {
			return nil, false
		}
	}
	out := make([]byte, 0, size)
	for len(out)+len(frame) < size {
		out = binary.LittleEndian.AppendUint32(out, magic)
	}
	return append(out, frame...), true
}

// stretch makes a frame longer by a few bytes: in its last block, matches of four bytes become literals where this
// costs one byte each.
func stretch(frame []byte, by int) ([]byte, bool) {
	start, size := 4, 0
	for at := 4; at < len(frame); at += 4 + size {
		start, size = at, int(binary.LittleEndian.Uint32(frame[at:]))
	}
	if size == 0 {
		return nil, false
	}
	plain, err := expand(nil, frame[start+4:])
	if err != nil {
		return nil, false
	}
	take, offs, ok := taken(frame[start+4:], len(plain))
	if !ok {
		return nil, false
	}
	for i := 0; i < len(take) && by > 0; i++ {
		if take[i] != minMatch {
			continue
		}
		before := append([]uint16{}, take[i:i+minMatch]...)
		old := len(emit(plain, take, offs, len(frame)))
		for j := range minMatch {
			take[i+j] = 0
		}
		if grown := len(emit(plain, take, offs, len(frame))) - old; grown > 0 && grown <= by {
			by -= grown
		} else {
			copy(take[i:], before)
		}
	}
	if by > 0 {
		return nil, false
	}
	block := emit(plain, take, offs, len(frame))
	out := append([]byte{}, frame[:start]...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(block)))
	return append(out, block...), true
}

// taken reads which matches a block of this package has.
func taken(block []byte, n int) (take, offs []uint16, ok bool) {
	take, offs = make([]uint16, n), make([]uint16, n)
	at, i := 0, 0
	length := func(v int) int {
		for v >= 15 {
			b := block[i]
			i++
			v += int(b)
			if b < 255 {
				break
			}
		}
		return v
	}
	for i < len(block) {
		token := block[i]
		i++
		lits := length(int(token >> 4))
		at += lits
		i += lits
		if i >= len(block) {
			return take, offs, at == n
		}
		offs[at] = binary.LittleEndian.Uint16(block[i:])
		i += 2
		l := length(int(token&15)) + minMatch
		take[at] = uint16(min(l, endless))
		at += l
	}
	return nil, nil, false
}
