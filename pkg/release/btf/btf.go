// Package btf answers: what do a kernel's type descriptions say once types and names have other numbers?
//
// A kernel and each of its modules carry a section BTF (Linux, Documentation/bpf/btf.rst): a list of types that name each
// other by their place in the list, and a table of names. The tool that makes it works in several threads, so that two
// builds of the same source number nearly all differently, and the modules, which go on counting where the kernel ends,
// with them. A plan tells the new order of types and names (plan.go finds it); Read makes of the old sections what the new
// ones are by that order (apply.go). What it leaves wrong, pkg/release/delta mends as any other change.
package btf

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Bounds of a section.
const (
	headerSize = 24
	maxSection = 32 << 20 // bytes
	maxTypes   = 1 << 20
)

// head is how a section begins: magic, version 1, no flags, the header's length, and types right behind it.
var head = []byte{0x9f, 0xeb, 1, 0, headerSize, 0, 0, 0, 0, 0, 0, 0}

// ErrFormat: not a plan, or one for other content.
var ErrFormat = errors.New("not a whole description of types")

// Kinds of types with something of their own in how they are laid out.
const (
	kindInt, kindPointer, kindArray, kindStruct, kindUnion, kindEnum = 1, 2, 3, 4, 5, 6
	kindTypedef, kindVolatile, kindConst, kindRestrict, kindFunc     = 8, 9, 10, 11, 12
	kindProto, kindVar, kindDatasec, kindDeclTag, kindTypeTag        = 13, 14, 15, 17, 18
	kindEnum64, lastKind                                             = 19, 19
)

// section is a parsed one. Types have numbers from first on, names offsets from base on.
type section struct {
	raw   []byte  // the whole section
	types []int32 // where each begins in raw; one more for the end
	names []byte  // the table
	first uint32  // number of the first type: 1, or the next after the kernel's
	base  uint32  // offset of the first name: 0, or the length of the kernel's table
}

// size gives the length of the section that b begins with, from its header.
func size(b []byte) (n int, ok bool) {
	if len(b) < headerSize || !bytes.HasPrefix(b, head) {
		return 0, false
	}
	le := binary.LittleEndian
	types, at, names := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:])), int64(le.Uint32(b[20:]))
	if all := headerSize + types + names; at != types || all > maxSection || all > int64(len(b)) || types == 0 {
		return 0, false
	}
	return headerSize + int(types+names), true
}

// parse takes a whole section apart. Numbers are as in the kernel's own; follows makes them those of a module.
func parse(raw []byte) (*section, error) {
	if n, ok := size(raw); !ok || n != len(raw) {
		return nil, ErrFormat
	}
	end := headerSize + int(binary.LittleEndian.Uint32(raw[12:]))
	s := &section{raw: raw, names: raw[end:], first: 1}
	for at := headerSize; at < end; {
		s.types = append(s.types, int32(at))
		n, ok := length(raw[at:end])
		if !ok || len(s.types) > maxTypes {
			return nil, ErrFormat
		}
		at += n
	}
	s.types = append(s.types, int32(end))
	return s, nil
}

// follows makes s the section of a module of that kernel.
func (s *section) follows(kernel *section) {
	s.first, s.base = uint32(kernel.count())+1, uint32(len(kernel.names))
}

func (s *section) count() int { return len(s.types) - 1 }

func (s *section) typ(i int) []byte { return s.raw[s.types[i]:s.types[i+1]] }

// length is that of the type that b begins with.
func length(b []byte) (int, bool) {
	if len(b) < 12 {
		return 0, false
	}
	info := binary.LittleEndian.Uint32(b[4:])
	n, each := 12, 0
	switch kind := info >> 24 & 31; kind {
	case kindInt, kindVar, kindDeclTag:
		n += 4
	case kindArray:
		n += 12
	case kindStruct, kindUnion, kindDatasec, kindEnum64:
		each = 12
	case kindEnum, kindProto:
		each = 8
	default:
		if kind == 0 || kind > lastKind {
			return 0, false
		}
	}
	n += each * int(info&0xffff)
	return n, n <= len(b)
}

// fields calls f with the place of each number in a whole type: of a type, or else of a name.
func fields(t []byte, f func(at int, isType bool)) {
	f(0, false)
	info := binary.LittleEndian.Uint32(t[4:])
	n := int(info & 0xffff)
	switch info >> 24 & 31 {
	case kindPointer, kindTypedef, kindVolatile, kindConst, kindRestrict, kindFunc, kindVar, kindDeclTag, kindTypeTag:
		f(8, true)
	case kindArray:
		f(12, true)
		f(16, true)
	case kindStruct, kindUnion:
		for at := 12; n > 0; n, at = n-1, at+12 {
			f(at, false)
			f(at+4, true)
		}
	case kindEnum:
		for at := 12; n > 0; n, at = n-1, at+8 {
			f(at, false)
		}
	case kindProto:
		f(8, true)
		for at := 12; n > 0; n, at = n-1, at+8 {
			f(at, false)
			f(at+4, true)
		}
	case kindDatasec:
		for at := 12; n > 0; n, at = n-1, at+12 {
			f(at, true)
		}
	case kindEnum64:
		for at := 12; n > 0; n, at = n-1, at+12 {
			f(at, false)
		}
	}
}

func number(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// starts gives where each name of a table begins.
func starts(names []byte) (list []uint32) {
	for at := 0; at < len(names); {
		list = append(list, uint32(at))
		n := bytes.IndexByte(names[at:], 0)
		if n < 0 {
			return list
		}
		at += n + 1
	}
	return list
}

// name gives the one at a place, without its zero.
func name(names []byte, at uint32) []byte {
	if uint64(at) >= uint64(len(names)) {
		return nil
	}
	if n := bytes.IndexByte(names[at:], 0); n >= 0 {
		return names[at:][:n]
	}
	return names[at:]
}
