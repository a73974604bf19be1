// Package kernel answers: how is an x86 kernel packed so that a box can make the same packed bits from the plain ones?
//
// Debian packs its 6.12 kernel by zstd's highest level. No box can repeat that, so an update would carry the packed
// kernel whole. The builder packs it again by the encoder that boxes have (pkg/release/frame). What comes out is larger
// than the place in the image that the old payload had, and what lies behind that place cannot move: the program that
// unpacks the kernel refers across it. So the new payload goes into a section of its own at the end, and the
// instructions that load the old one's address load the new one's. The old place is left out of the file. In memory it
// stays, as zeros, until the firmware's memory is the kernel's.
//
// The result starts as an EFI program only, as a UKI starts it. A BIOS would copy the part that unpacks without the
// payload behind it.
package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/release/frame"
)

// Fields of the setup header, from the file's beginning (Documentation/arch/x86/boot.rst).
const (
	setupSectors  = 0x1f1
	systemSize    = 0x1f4 // in 16 bytes, without the setup
	headerMagic   = 0x202
	payloadOffset = 0x248 // from the end of the setup
	payloadLength = 0x24c
	headerEnd     = 0x268
)

// Fields of the PE headers, from the PE signature (Microsoft's PE Format).
const (
	peSections  = 6
	peOptional  = 24
	peDataSize  = peOptional + 8
	peAlignment = peOptional + 32 // of memory, then of the file
	peImageSize = peOptional + 56
	peHeaders   = peOptional + 60
	peChecksum  = peOptional + 64
	peSecurity  = peOptional + 112 + 4*8
	peTable     = peOptional + 112 + 6*8 // as Linux has it: six directories
	entrySize   = 40

	page       = 4096
	fileBlock  = 512
	maxWindow  = 256 << 20
	lengthSize = 4 // behind the payload: how long it is unpacked
)

const (
	readable    = 0x40000040 // initialized data that can be read
	executable  = 0x20000000
	maxSections = 16
)

// ErrUnlike: the kernel is not laid out as this package knows. The builder then takes it as it is.
var ErrUnlike = errors.New("the kernel is laid out in another way")

type section struct {
	name        [8]byte
	size, at    uint32 // in memory
	raw, offset uint32 // in the file
	flags       uint32
}

// Repack gives the kernel with its payload packed by pkg/release/frame, and whether it is another. A kernel without a zstd
// payload (arm64's is plain) is returned as it is. The signature of its builder goes: that of the UKI counts.
func Repack(image []byte) (repacked []byte, changed bool, err error) {
	p, ok := find(image)
	if !ok {
		return image, false, nil
	}
	plain, err := p.unpack(image)
	if err != nil {
		return nil, false, err
	}
	packed, err := frame.Encode(plain)
	if err != nil {
		return nil, false, err
	}
	if n, ok := frame.Size(packed); !ok || n != len(packed) || len(plain) > frame.MaxPlain {
		return image, false, fmt.Errorf("%w: %d bytes unpacked are more than boxes pack", ErrUnlike, len(plain))
	}
	out, err := p.replace(image, binary.LittleEndian.AppendUint32(packed, uint32(len(plain))))
	return out, err == nil, err
}

// payload is where the packed kernel lies in the file, with the four bytes behind it.
type payload struct{ base, at, size int }

func (p payload) end() int { return p.at + p.size }

func find(image []byte) (p payload, ok bool) {
	if len(image) < headerEnd || string(image[:2]) != "MZ" || string(image[headerMagic:headerMagic+4]) != "HdrS" {
		return p, false
	}
	p.base = (int(image[setupSectors]) + 1) * 512
	at, size := word(image, payloadOffset), word(image, payloadLength)
	if uint64(p.base)+uint64(at)+uint64(size) > uint64(len(image)) || size < 12 {
		return p, false
	}
	p.at, p.size = p.base+int(at), int(size)
	return p, bytes.HasPrefix(image[p.at:], frame.Magic)
}

func (p payload) unpack(image []byte) ([]byte, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain, err := z.DecodeAll(image[p.at:p.end()-lengthSize], nil)
	if err != nil {
		return nil, fmt.Errorf("the kernel's payload: %w", err)
	}
	if said := word(image, p.end()-lengthSize); int(said) != len(plain) {
		return nil, fmt.Errorf("%w: %d bytes come out of the payload, it says %d", ErrUnlike, len(plain), said)
	}
	return plain, nil
}

// replace puts another payload into the image.
func (p payload) replace(image, packed []byte) ([]byte, error) {
	pe := int(word(image, 0x3c))
	list, err := sections(image, pe)
	if err != nil {
		return nil, err
	}
	front, back, err := split(list, p)
	if err != nil {
		return nil, err
	}
	last := list[len(list)-1]
	added := section{name: [8]byte{'.', 'p', 'a', 'y', 'l', 'o', 'a', 'd'}, size: uint32(len(packed)), at: round(last.at+last.size, page), flags: readable}
	out := bytes.Clone(image[:last.offset+last.raw])
	clear(out[p.at:p.end()])
	if err := p.refer(out, added.at, packed); err != nil {
		return nil, err
	}
	gap := back.offset - (front.offset + front.raw)
	out = append(out[:front.offset+front.raw], out[back.offset:]...)
	var all []section
	for _, s := range list {
		switch {
		case s.at == front.at:
			back.offset -= gap
			all = append(all, front, back)
		default:
			if s.at > front.at {
				s.offset -= gap
			}
			all = append(all, s)
		}
	}
	out = append(out, make([]byte, int(round(uint32(len(out)), fileBlock))-len(out))...)
	added.offset, added.raw = uint32(len(out)), round(added.size, fileBlock)
	out = append(append(out, packed...), make([]byte, added.raw-added.size)...)
	p.headers(out, pe, append(all, added))
	return out, nil
}

// headers writes what the headers say of the new image.
func (p payload) headers(out []byte, pe int, all []section) {
	le, added := binary.LittleEndian, all[len(all)-1]
	le.PutUint16(out[pe+peSections:], uint16(len(all)))
	for i, s := range all {
		h := out[pe+peTable+i*entrySize:][:entrySize]
		clear(h)
		copy(h, s.name[:])
		for j, v := range []uint32{s.size, s.at, s.raw, s.offset} {
			le.PutUint32(h[8+4*j:], v)
		}
		le.PutUint32(h[36:], s.flags)
	}
	le.PutUint32(out[pe+peDataSize:], word(out, pe+peDataSize)+added.raw)
	le.PutUint32(out[pe+peImageSize:], round(added.at+added.size, page))
	le.PutUint32(out[pe+peChecksum:], 0)
	le.PutUint64(out[pe+peSecurity:], 0)
	le.PutUint32(out[payloadOffset:], added.offset-uint32(p.base))
	le.PutUint32(out[payloadLength:], added.size)
	le.PutUint32(out[systemSize:], (uint32(len(out)-p.base)+15)/16)
}

// sections reads the table. In Linux' images a place in the file is one in memory, and what follows the last section is
// a signature.
func sections(image []byte, pe int) (list []section, err error) {
	bad := func(format string, a ...any) ([]section, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrUnlike}, a...)...)
	}
	if pe < 0x40 || pe+peTable > setupSectors || string(image[pe:pe+4]) != "PE\x00\x00" || word(image, pe+peAlignment) != page || word(image, pe+peAlignment+4) != fileBlock {
		return bad("its PE headers lie at %#x, or sections are aligned by others than %d and %d", pe, page, fileBlock)
	}
	n := int(binary.LittleEndian.Uint16(image[pe+peSections:]))
	if n < 2 || n > maxSections || pe+peTable+(n+2)*entrySize > setupSectors {
		return bad("%d sections leave no room for two more", n)
	}
	for i := range n {
		h := image[pe+peTable+i*entrySize:]
		s := section{name: [8]byte(h), size: word(h, 8), at: word(h, 12), raw: word(h, 16), offset: word(h, 20), flags: word(h, 36)}
		if s.at != s.offset || s.at%page != 0 || s.raw > s.size || uint64(s.at)+uint64(s.raw) > uint64(len(image)) || s.size > 1<<30 || s.at < word(image, pe+peHeaders) {
			return bad("section %q lies at %#x in memory, at %#x in the file", h[:8], s.at, s.offset)
		}
		if i > 0 && s.at != round(list[i-1].at+list[i-1].size, page) {
			return bad("section %q does not follow the one before", h[:8])
		}
		list = append(list, s)
	}
	return list, nil
}

// split makes two of the section that holds the payload: what lies before it, which in memory goes on with zeros to
// where the other begins, and what lies behind it.
func split(list []section, p payload) (front, back section, err error) {
	for _, s := range list[:len(list)-1] {
		if uint32(p.at) < s.at || uint32(p.end()) > s.at+s.raw || s.raw != s.size || s.flags&executable == 0 {
			continue
		}
		front, back = s, s
		front.raw = round(uint32(p.at), page) - s.at
		back.at = uint32(p.end()) / page * page
		if back.at <= front.at+front.raw {
			break
		}
		front.size = back.at - s.at
		back.offset, back.size = back.at, s.at+s.size-back.at
		back.raw = back.size
		return front, back, nil
	}
	return front, back, fmt.Errorf("%w: its payload is not in a section of code with more behind it", ErrUnlike)
}

// refer has the program in out refer to what lies at another place in memory, in place of the payload.
func (p payload) refer(out []byte, at uint32, packed []byte) error {
	le := binary.LittleEndian
	loads := 0
	for i := p.base; i+4 <= len(out); i++ {
		if i == p.at-4 { // no instruction ends there
			i = p.end()
		}
		if int64(i)+4+int64(int32(word(out, i))) != int64(p.at) {
			continue
		}
		// lea payload(%rip), register: a prefix for 64 bits, the operation, and the mode of addressing.
		if op := out[i-3 : i]; op[0]&0xfb != 0x48 || op[1] != 0x8d || op[2]&0xc7 != 0x05 { // check: reference
			return fmt.Errorf("%w: at %#x stands % x before the payload's address", ErrUnlike, i, op)
		}
		le.PutUint32(out[i:], at-uint32(i)-4)
		loads++
	}
	if loads == 0 || loads > 4 { // check: references
		return fmt.Errorf("%w: its program loads the payload's address %d times", ErrUnlike, loads)
	}
	// The program's constants input_len and output_len stand side by side.
	unpacked := packed[len(packed)-lengthSize:]
	was := append(le.AppendUint32(nil, uint32(p.size)), unpacked...)
	if n := bytes.Count(out[p.end():], was); n != 1 { // check: lengths
		return fmt.Errorf("%w: the payload's length stands in %d places", ErrUnlike, n)
	}
	le.PutUint32(out[p.end()+bytes.Index(out[p.end():], was):], uint32(len(packed)))
	return nil
}

func word(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

func round(n, to uint32) uint32 { return (n + to - 1) / to * to }
