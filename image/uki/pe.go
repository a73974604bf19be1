// Package uki answers: how does one signed file hold kernel, first file system and command line, and what will the TPM say of it?
//
// A unified kernel image is systemd's EFI stub with further PE sections (Unified Kernel Image specification of the
// UAPI group). Signing follows Microsoft's Authenticode for PE; the prediction of PCR 11 follows systemd-stub(7).
package uki

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	maxSections = 96 // as Windows has it
	maxImage    = 1 << 30
	sectionSize = 40
	maxZeros    = 1 << 20 // behind a section's bytes in the file
)

// ErrFormat: the file is no PE image that this package handles.
var ErrFormat = errors.New("not an EFI program")

// Machines of PE images.
const (
	MachineAMD64 = 0x8664
	MachineARM64 = 0xaa64
)

// Section is one of a PE image's parts.
type Section struct {
	Name    string
	Address uint32 // in memory, from the image's base
	Size    uint32 // in memory: what the stub measures
	offset  uint32 // in the file
	raw     uint32 // in the file
}

// image is a parsed PE32+ file. All offsets in it were checked against its length.
type image struct {
	b           []byte
	coff        int // offset of the COFF header
	optional    int // offset of the optional header
	table       int // offset of the section table
	Machine     uint16
	sections    []Section
	headers     uint32 // SizeOfHeaders
	memoryAlign uint32
	fileAlign   uint32
	certOffset  uint32
	certSize    uint32
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
}

// parse reads the headers. It allocates in proportion to the number of sections, at most 96.
func parse(b []byte) (*image, error) {
	le := binary.LittleEndian
	if len(b) < 0x40 || len(b) > maxImage || string(b[:2]) != "MZ" {
		return nil, malformed("no MZ header in %d bytes", len(b))
	}
	at := int(le.Uint32(b[0x3c:]))
	if at < 0x40 || at > len(b)-24-112 || string(b[at:at+4]) != "PE\x00\x00" {
		return nil, malformed("no PE header")
	}
	p := &image{b: b, coff: at + 4, optional: at + 24, Machine: le.Uint16(b[at+4:])}
	n, size := int(le.Uint16(b[p.coff+2:])), int(le.Uint16(b[p.coff+16:]))
	p.table = p.optional + size
	o := b[p.optional:]
	switch {
	case le.Uint16(o) != 0x20b:
		return nil, malformed("not PE32+")
	case size < 112+5*8 || le.Uint32(o[108:]) < 5:
		return nil, malformed("no room for a certificate table's entry")
	case n == 0 || n > maxSections || p.table+n*sectionSize > len(b):
		return nil, malformed("%d sections", n)
	}
	p.memoryAlign, p.fileAlign, p.headers = le.Uint32(o[32:]), le.Uint32(o[36:]), le.Uint32(o[60:])
	p.certOffset, p.certSize = le.Uint32(o[112+4*8:]), le.Uint32(o[112+4*8+4:])
	if !power(p.memoryAlign) || !power(p.fileAlign) || p.fileAlign > 1<<16 || p.memoryAlign > 1<<24 {
		return nil, malformed("alignment %d, %d", p.memoryAlign, p.fileAlign)
	}
	if int64(p.headers) > int64(len(b)) || int(p.headers) < p.table+n*sectionSize {
		return nil, malformed("headers of %d bytes", p.headers)
	}
	if uint64(p.certOffset)+uint64(p.certSize) > uint64(len(b)) || p.certSize > 0 && p.certOffset < p.headers {
		return nil, malformed("the certificates lie outside the file")
	}
	for i := range n {
		s, err := p.section(b[p.table+i*sectionSize:])
		if err != nil {
			return nil, err
		}
		p.sections = append(p.sections, s)
	}
	return p, nil
}

func power(n uint32) bool { return n != 0 && n&(n-1) == 0 }

func (p *image) section(h []byte) (Section, error) {
	le := binary.LittleEndian
	s := Section{
		Name: strings.TrimRight(string(h[:8]), "\x00"),
		Size: le.Uint32(h[8:]), Address: le.Uint32(h[12:]), raw: le.Uint32(h[16:]), offset: le.Uint32(h[20:]),
	}
	end := uint64(s.offset) + uint64(s.raw)
	if s.raw > 0 && (end > uint64(len(p.b)) || s.offset < p.headers) || s.Size > maxImage || s.Address > maxImage {
		return s, malformed("section %q lies outside the file", s.Name)
	}
	if p.certSize > 0 && s.raw > 0 && end > uint64(p.certOffset) {
		return s, malformed("section %q lies over the certificates", s.Name)
	}
	return s, nil
}

// data is the section as it stands in memory: its virtual size, zeros behind what the file has.
func (p *image) data(s Section) ([]byte, error) {
	if int64(s.Size) > int64(s.raw)+maxZeros {
		return nil, malformed("section %q has %d bytes in memory, %d in the file", s.Name, s.Size, s.raw)
	}
	in := p.b[s.offset : s.offset+min(s.raw, s.Size)]
	if s.raw == 0 {
		in = nil
	}
	if uint32(len(in)) == s.Size {
		return in, nil
	}
	out := make([]byte, s.Size)
	copy(out, in)
	return out, nil
}

func (p *image) find(name string) (Section, bool) {
	i := slices.IndexFunc(p.sections, func(s Section) bool { return s.Name == name })
	if i < 0 {
		return Section{}, false
	}
	return p.sections[i], true
}

// Sections lists a PE image's sections in the order of its table.
func Sections(pe []byte) ([]Section, error) {
	p, err := parse(pe)
	if err != nil {
		return nil, err
	}
	return slices.Clone(p.sections), nil
}

// Read gives the content of a section of a PE image.
func Read(pe []byte, name string) ([]byte, error) {
	p, err := parse(pe)
	if err != nil {
		return nil, err
	}
	s, ok := p.find(name)
	if !ok {
		return nil, fmt.Errorf("the image has no section %s", name)
	}
	data, err := p.data(s)
	return slices.Clone(data), err
}

type addition struct {
	name string
	data []byte
}

func align(n, to uint32) uint32 { return (n + to - 1) &^ (to - 1) }

// extend gives a copy of the image with further sections, readable only, behind those it has.
func extend(pe []byte, more []addition) ([]byte, error) {
	p, err := parse(pe)
	if err != nil {
		return nil, err
	}
	if p.certSize > 0 {
		return nil, errors.New("the stub is signed already: take the unsigned one")
	}
	if end := p.table + (len(p.sections)+len(more))*sectionSize; uint32(end) > p.headers {
		return nil, fmt.Errorf("the stub's header has no room for %d more sections: %d bytes of %d", len(more), end, p.headers)
	}
	total := len(pe)
	for _, m := range more {
		total += len(m.data) + int(p.fileAlign)
	}
	if total > maxImage {
		return nil, fmt.Errorf("an image of %d bytes is too large", total)
	}
	le := binary.LittleEndian
	out := make([]byte, align(uint32(len(pe)), p.fileAlign), total+int(p.fileAlign))
	copy(out, pe)
	last := slices.MaxFunc(p.sections, func(a, b Section) int { return cmp.Compare(a.Address+max(a.Size, a.raw), b.Address+max(b.Size, b.raw)) })
	address := last.Address + max(last.Size, last.raw)
	for i, m := range more {
		if _, taken := p.find(m.name); taken || len(m.name) > 8 {
			return nil, fmt.Errorf("section %s: the name is taken or too long", m.name)
		}
		address = align(address, p.memoryAlign)
		size, raw := uint32(len(m.data)), align(uint32(len(m.data)), p.fileAlign)
		h := out[p.table+(len(p.sections)+i)*sectionSize:][:sectionSize]
		clear(h)
		copy(h, m.name)
		le.PutUint32(h[8:], size)
		le.PutUint32(h[12:], address)
		le.PutUint32(h[16:], raw)
		le.PutUint32(h[20:], uint32(len(out)))
		le.PutUint32(h[36:], 0x40000040) // initialised data, readable
		out = append(out, m.data...)
		out = append(out, make([]byte, raw-size)...)
		address += size
	}
	le.PutUint16(out[p.coff+2:], uint16(len(p.sections)+len(more)))
	le.PutUint32(out[p.optional+56:], align(address, p.memoryAlign))
	clear(out[p.coff+8 : p.coff+16]) // no symbol table: its place would be wrong now
	setChecksum(out, p.optional+64)
	return out, nil
}

// setChecksum writes the checksum that PE defines: the sum of 16-bit words with carry, and the length.
func setChecksum(b []byte, at int) {
	le := binary.LittleEndian
	le.PutUint32(b[at:], 0)
	var sum uint64
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint64(le.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint64(b[len(b)-1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	le.PutUint32(b[at:], uint32(sum)+uint32(len(b)))
}
