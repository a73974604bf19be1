package btf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
)

// A Plan tells, for each section of the old content, in which order its types and names stand in the new one. The first
// section is the kernel's.
type Plan []renumbering

type renumbering struct {
	Offset, Size int64 // of the section in the old content
	Types        []run // of the old types
	Names        []run // of the old names, in the order in which the types now name them first; those without a type come last
}

// run says: so many as they followed each other before, from there on. A name that was not there before is one without
// Count.
type run struct {
	From, Count int
	Name        string
}

// Bounds of a plan.
const (
	maxSections = 1 << 16
	maxBytes    = 96 << 20 // of all sections, which are held in memory
)

// Renumbered is old content whose sections of types say what the plan makes of them. Each stays where it was, cut or
// filled with zeros; what does not fit follows behind the old content.
type Renumbered struct {
	old     io.ReaderAt
	size    int64
	patches []patch // in the order of their places
	Behind  []byte
}

type patch struct {
	at int64
	b  []byte
}

// Apply reads the sections of the old content, of that size, and renumbers them. What it holds in memory is as much as
// the sections have, and 16 bytes for each type and 8 for each name of the kernel.
func (p Plan) Apply(old io.ReaderAt, size int64) (*Renumbered, error) {
	r := &Renumbered{old: old, size: size}
	var kernel *numbers
	total := int64(0)
	for _, n := range p {
		if total += n.Size; n.Offset < 0 || n.Size < 0 || n.Size > maxSection || n.Offset > size-n.Size || total > maxBytes {
			return nil, ErrFormat
		}
		raw := make([]byte, n.Size)
		if got, err := old.ReadAt(raw, n.Offset); got < len(raw) {
			return nil, fmt.Errorf("the old content: %w", err)
		}
		s, err := parse(raw)
		if err != nil {
			return nil, err
		}
		out, x, err := n.apply(s, kernel)
		if err != nil {
			return nil, err
		}
		if kernel == nil {
			kernel = x
		}
		if total += int64(len(out)); total > maxBytes {
			return nil, ErrFormat
		}
		fit := min(len(out), len(raw))
		clear(raw[copy(raw, out):])
		r.patches = append(r.patches, patch{n.Offset, raw})
		r.Behind = append(r.Behind, out[fit:]...)
	}
	sort.Slice(r.patches, func(i, j int) bool { return r.patches[i].at < r.patches[j].at })
	return r, nil
}

// Size is that of the old content and of what lies behind.
func (r *Renumbered) Size() int64 { return r.size + int64(len(r.Behind)) }

// ReadAt implements io.ReaderAt.
func (r *Renumbered) ReadAt(b []byte, off int64) (n int, err error) {
	if off < r.size {
		part := b[:min(int64(len(b)), r.size-off)]
		if n, err = r.old.ReadAt(part, off); n < len(part) {
			return n, err
		}
		i := sort.Search(len(r.patches), func(i int) bool { return r.patches[i].at+int64(len(r.patches[i].b)) > off })
		for ; i < len(r.patches) && r.patches[i].at < off+int64(n); i++ {
			p := r.patches[i]
			if p.at >= off {
				copy(part[p.at-off:], p.b)
			} else {
				copy(part, p.b[off-p.at:])
			}
		}
	}
	if n < len(b) && off+int64(n) < r.Size() {
		n += copy(b[n:], r.Behind[off+int64(n)-r.size:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// numbers tells the new numbers of the old types and names of a section.
type numbers struct {
	first, base         uint32   // of the old section, where its own begin
	newFirst, newBase   uint32   // and in the new one
	nextFirst, nextBase uint32   // where those that follow begin, in the new one
	types               []uint32 // of each old type of its own; 0 if there is none any more
	names               []uint32 // of each place in the old table, plus one; 0 if there is none any more
	kernel              *numbers // those before its own
}

func (x *numbers) typ(old uint32) uint32 {
	switch i := old - x.first; {
	case old >= x.first && i < uint32(len(x.types)):
		return x.types[i]
	case old < x.first && x.kernel != nil:
		return x.kernel.typ(old)
	}
	return 0
}

func (x *numbers) name(old uint32) uint32 {
	switch i := old - x.base; {
	case old >= x.base && i < uint32(len(x.names)) && x.names[i] > 0:
		return x.names[i] - 1
	case old < x.base && x.kernel != nil:
		return x.kernel.name(old)
	}
	return 0
}

// apply gives the section as the new kernel numbers it. kernel is nil for the kernel's own.
func (n renumbering) apply(s *section, kernel *numbers) ([]byte, *numbers, error) {
	x := &numbers{first: 1, newFirst: 1, kernel: kernel}
	if kernel != nil {
		x.first, x.base = kernel.first+uint32(len(kernel.types)), kernel.base+uint32(len(kernel.names))
		x.newFirst, x.newBase = kernel.nextFirst, kernel.nextBase
	}
	order, size, err := n.order(s, x)
	if err != nil {
		return nil, nil, err
	}
	names, err := n.table(s, x, order)
	if err != nil {
		return nil, nil, err
	}
	x.nextFirst, x.nextBase = x.newFirst+uint32(len(order)), x.newBase+uint32(len(names))
	out := make([]byte, headerSize, headerSize+size+len(names))
	copy(out, s.raw[:headerSize])
	for at, v := range map[int]int{12: size, 16: size, 20: len(names)} {
		binary.LittleEndian.PutUint32(out[at:], uint32(v))
	}
	for _, i := range order {
		at := len(out)
		out = append(out, s.typ(int(i))...)
		t := out[at:]
		fields(t, func(at int, isType bool) {
			v := number(t, at)
			if isType {
				v = x.typ(v)
			} else {
				v = x.name(v)
			}
			binary.LittleEndian.PutUint32(t[at:], v)
		})
	}
	return append(out, names...), x, nil
}

// order lists the old types as they now follow each other, and fills in their numbers. size is that of all, in bytes.
func (n renumbering) order(s *section, x *numbers) (order []int32, size int, err error) {
	x.types = make([]uint32, s.count())
	for _, r := range n.Types {
		if r.From < 0 || r.Count < 0 || r.From > s.count() || r.Count > s.count()-r.From {
			return nil, 0, ErrFormat
		}
		for i := r.From; i < r.From+r.Count; i++ {
			if x.types[i] == 0 { // a type that stands for several is known by the first
				x.types[i] = x.newFirst + uint32(len(order))
			}
			order = append(order, int32(i))
			size += len(s.typ(i))
		}
		if size > most(s) {
			return nil, 0, ErrFormat
		}
	}
	return order, size, nil
}

// table gives the new table of names, and fills in their places.
func (n renumbering) table(s *section, x *numbers, order []int32) (out []byte, err error) {
	x.names = make([]uint32, len(s.names))
	list := s.mentioned(x.base, order)
	for _, r := range n.Names {
		if r.Count == 0 { // a plan holds the name in full: these need no bound
			out = append(append(out, r.Name...), 0)
		}
		if r.From < 0 || r.Count < 0 || r.From > len(list) || r.Count > len(list)-r.From {
			return nil, ErrFormat
		}
		for _, at := range list[r.From:][:r.Count] {
			x.names[at] = x.newBase + uint32(len(out)) + 1
			out = append(append(out, name(s.names, at)...), 0)
			if len(out) > most(s) {
				return nil, ErrFormat
			}
		}
	}
	return out, nil
}

// most bounds the bytes of a section's types, and of its names, once they are renumbered.
func most(s *section) int { return 2*len(s.raw) + 1<<16 }

// mentioned lists the places of a section's own names: first those that the types name, in that order.
func (s *section) mentioned(base uint32, order []int32) (list []uint32) {
	seen := make([]bool, len(s.names))
	add := func(at uint32) {
		if uint64(at) < uint64(len(seen)) && !seen[at] {
			seen[at] = true
			list = append(list, at)
		}
	}
	if base == 0 {
		add(0) // the empty name
	}
	for _, i := range order {
		t := s.typ(int(i))
		fields(t, func(at int, isType bool) {
			if !isType {
				add(number(t, at) - base)
			}
		})
	}
	for _, at := range starts(s.names) {
		add(at)
	}
	return list
}

// Encode gives the plan's bytes, which are packed elsewhere.
func (p Plan) Encode() (b []byte) {
	b = binary.AppendUvarint(b, uint64(len(p)))
	behind := int64(0)
	for _, n := range p {
		b = binary.AppendVarint(b, n.Offset-behind)
		b = binary.AppendUvarint(b, uint64(n.Size))
		behind = n.Offset + n.Size
		for _, runs := range [][]run{n.Types, n.Names} {
			b = binary.AppendUvarint(b, uint64(len(runs)))
			next := 0
			for _, r := range runs {
				b = binary.AppendUvarint(b, uint64(r.Count))
				if r.Count == 0 {
					b = binary.AppendUvarint(b, uint64(len(r.Name)))
					b = append(b, r.Name...)
					continue
				}
				b = binary.AppendVarint(b, int64(r.From-next))
				next = r.From + r.Count
			}
		}
	}
	return b
}

// Decode reads what Encode wrote.
func Decode(b []byte) (Plan, error) {
	d := &decoder{r: bytes.NewReader(b)}
	p := make(Plan, 0)
	behind := int64(0)
	for range d.count(maxSections) {
		n := renumbering{Offset: behind + d.signed()}
		n.Size = int64(d.count(maxSection))
		behind = n.Offset + n.Size
		n.Types, n.Names = d.runs(), d.runs()
		if d.failed {
			return nil, ErrFormat
		}
		p = append(p, n)
	}
	if d.failed || d.r.Len() > 0 {
		return nil, ErrFormat
	}
	return p, nil
}

type decoder struct {
	r      *bytes.Reader
	failed bool
}

func (d *decoder) count(most int) int {
	v, err := binary.ReadUvarint(d.r)
	if err != nil || v > uint64(most) {
		d.failed = true
		return 0
	}
	return int(v)
}

func (d *decoder) signed() int64 {
	v, err := binary.ReadVarint(d.r)
	if err != nil || v > 1<<40 || v < -1<<40 {
		d.failed = true
		return 0
	}
	return v
}

func (d *decoder) runs() (list []run) {
	next := 0
	for range d.count(d.r.Len()) { // each has a byte and more
		r := run{Count: d.count(maxTypes)}
		if r.Count == 0 {
			text := make([]byte, d.count(d.r.Len()))
			_, _ = io.ReadFull(d.r, text)
			r.Name = string(text)
		} else {
			r.From = next + int(d.signed())
			next = r.From + r.Count
		}
		if d.failed {
			return nil
		}
		list = append(list, r)
	}
	return list
}
