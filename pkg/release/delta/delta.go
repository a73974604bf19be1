// Package delta answers: what must travel to make new content out of old content that is there already?
//
// A delta is a list of copies, each with its changes, and of bytes that have no counterpart (match.go). The changes are
// told by a model that knows how pointers move when code moves (model.go). Before all that, the descriptions of types that
// a kernel and its modules carry are numbered as in the new content (pkg/release/btf). Apply reads the old content at any
// place, writes the new one in order, and checks it against the digest in the header.
package delta

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/release/btf"
)

// The magic number ends with the format's. Another format gets another media type too (pkg/release), so that a box that
// does not know it takes the plain content.
var magic = [8]byte{'T', 'R', 'D', 'E', 'L', 'T', 'A', '2'}

// Bounds of what Apply reads.
const (
	MaxContent = 4 << 30 // old or new, bytes
	maxOps     = 1 << 19 // 20 MB
	maxList    = 16 << 20
	maxWindow  = 8 << 20 // of zstd
	headerSize = 8 + 8 + 8 + 32 + 32 + 4 + len(lengths{})*8
)

// lengths follow the header: the number of operations, then the bytes of each part, in the parts' order.
type lengths [5]uint64

const (
	numOps = iota
	partOps
	partTypes // how descriptions of types are renumbered
	partChanges
	partExtra
)

// ErrFormat: not a delta, or one that is damaged.
var ErrFormat = errors.New("not a whole delta")

// ErrOld: the content that is there is not the one that the delta was made from.
var ErrOld = errors.New("the delta was made from other content")

// Header is the beginning of a delta. Sizes are bytes.
type Header struct {
	OldSize, NewSize int64
	Old, New         [32]byte // SHA-256
	base             uint32
}

// ErrUnlike: the contents have so little in common that the plain one is to be taken.
var ErrUnlike = errors.New("the contents are too different for a delta")

// Make gives the delta from old to new. base is what 32-bit pointers in the content have more than the place they point
// to, 0 if unknown. It needs about 60 MB and four times the size of the contents.
func Make(old, new []byte, base uint32) ([]byte, error) {
	if len(old) > 1<<31-1 || len(new) > 1<<31-1 {
		return nil, fmt.Errorf("contents of %d and %d bytes: a delta is made of at most 2 GiB", len(old), len(new))
	}
	types := btf.Make(old, new)
	renumbered, err := types.Apply(bytes.NewReader(old), int64(len(old)))
	if err != nil {
		return nil, err
	}
	from := make([]byte, renumbered.Size())
	if _, err := renumbered.ReadAt(from, 0); err != nil && err != io.EOF {
		return nil, err
	}
	ops := plan(from, new)
	if len(ops) > maxOps {
		return nil, ErrUnlike
	}
	changes := encodeChanges(ops, from, new, base)
	var extra []byte
	at := int64(0)
	for _, o := range ops {
		at += o.Copy
		extra = append(extra, new[at:at+o.Extra]...)
		at += o.Extra
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow))
	if err != nil {
		return nil, err
	}
	parts := [][]byte{z.EncodeAll(packOps(ops), nil), z.EncodeAll(types.Encode(), nil), changes, z.EncodeAll(extra, nil)}
	oldSum, newSum := sha256.Sum256(old), sha256.Sum256(new)
	out := append([]byte{}, magic[:]...)
	out = binary.BigEndian.AppendUint64(out, uint64(len(old)))
	out = binary.BigEndian.AppendUint64(out, uint64(len(new)))
	out = append(append(out, oldSum[:]...), newSum[:]...)
	out = binary.BigEndian.AppendUint32(out, base)
	out = binary.BigEndian.AppendUint64(out, uint64(len(ops)))
	for _, p := range parts {
		out = binary.BigEndian.AppendUint64(out, uint64(len(p)))
	}
	return append(out, bytes.Join(parts, nil)...), nil
}

func encodeChanges(ops []op, old, new []byte, base uint32) []byte {
	c := newEncoder()
	m := newModel(c, ops, base, int64(len(new)))
	at := int64(0)
	for _, o := range ops {
		s := newStretches(m, o, at)
		for s.left > 0 {
			n := s.begin(func(p []byte, off int64) error { copy(p, old[min(int(off), len(old)):]); return nil })
			copy(s.new[behind:], new[at:at+int64(n)])
			s.end(n)
			at += int64(n)
		}
		at += o.Extra
	}
	return c.finish()
}

func packOps(ops []op) (list []byte) {
	from := int64(0)
	for _, o := range ops {
		list = binary.AppendVarint(list, o.Old-from)
		list = binary.AppendUvarint(list, uint64(o.Copy))
		list = binary.AppendUvarint(list, uint64(o.Extra))
		from = o.Old + o.Copy
	}
	return list
}

// stretches goes through a copy in pieces of a bounded size, each with the context around it.
type stretches struct {
	m            *model
	left         int64
	oldAt, newAt int64
	old, new     []byte
}

const piece = 64 << 10

func newStretches(m *model, o op, newAt int64) *stretches {
	return &stretches{m: m, left: o.Copy, oldAt: o.Old, newAt: newAt, old: make([]byte, behind+piece+ahead), new: make([]byte, behind+piece)}
}

// begin reads the old bytes of the next piece. What lies outside of the old content is zero.
func (s *stretches) begin(read func(p []byte, off int64) error) int {
	n := int(min(s.left, piece))
	clear(s.old[behind+n:])
	_ = read(s.old[behind:behind+n+ahead], s.oldAt)
	return n
}

// end codes the piece, and keeps its end as context of the next.
func (s *stretches) end(n int) {
	s.m.stretch(s.old, s.new, n, s.oldAt, s.newAt)
	copy(s.old[:behind], s.old[n:n+behind])
	copy(s.new[:behind], s.new[n:n+behind])
	s.oldAt += int64(n)
	s.newAt += int64(n)
	s.left -= int64(n)
}

// ReadHeader reads the first bytes of a delta.
func ReadHeader(b []byte) (h Header, err error) {
	if len(b) < headerSize || [8]byte(b[:8]) != magic {
		return h, ErrFormat
	}
	h.OldSize, h.NewSize = int64(binary.BigEndian.Uint64(b[8:])), int64(binary.BigEndian.Uint64(b[16:]))
	h.Old, h.New = [32]byte(b[24:]), [32]byte(b[56:])
	h.base = binary.BigEndian.Uint32(b[88:])
	if h.OldSize < 0 || h.OldSize > MaxContent || h.NewSize < 0 || h.NewSize > MaxContent {
		return h, ErrFormat
	}
	return h, nil
}

// Apply writes the new content to w. The delta is held in memory; the old content is read at any place and is trusted to
// be what it was: the digest of what comes out is what counts. It needs up to 60 MB, and the size of the descriptions of
// types in the old content, 13 MB in a kernel with a thousand modules.
func Apply(old io.ReaderAt, patch []byte, w io.Writer) error {
	h, err := ReadHeader(patch)
	if err != nil {
		return err
	}
	n, parts, err := split(patch)
	if err != nil {
		return err
	}
	from, err := renumber(old, h.OldSize, parts[partTypes])
	if err != nil {
		return err
	}
	ops, err := unpackOps(parts[partOps], int(n[numOps]), from.Size(), h.NewSize)
	if err != nil {
		return err
	}
	z, err := zstd.NewReader(bytes.NewReader(parts[partExtra]), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	defer z.Close()
	m := newModel(newDecoder(parts[partChanges]), ops, h.base, h.NewSize)
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<20)
	if err := replay(m, ops, from, z, out); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if [32]byte(sum.Sum(nil)) != h.New {
		return ErrOld
	}
	return nil
}

// split gives what follows the header.
func split(patch []byte) (n lengths, parts [len(lengths{})][]byte, err error) {
	rest := patch[headerSize:]
	for i := range n {
		n[i] = binary.BigEndian.Uint64(patch[92+8*i:])
		if i == numOps {
			continue
		}
		if n[i] > uint64(len(rest)) {
			return n, parts, ErrFormat
		}
		parts[i], rest = rest[:n[i]], rest[n[i]:]
	}
	if n[numOps] > maxOps || len(rest) > 0 {
		return n, parts, ErrFormat
	}
	return n, parts, nil
}

// renumber gives the old content as the operations see it.
func renumber(old io.ReaderAt, size int64, packed []byte) (*btf.Renumbered, error) {
	list, err := unpack(packed)
	if err != nil {
		return nil, err
	}
	types, err := btf.Decode(list)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	from, err := types.Apply(old, size)
	if errors.Is(err, btf.ErrFormat) {
		return nil, fmt.Errorf("%w: %w", ErrOld, err)
	}
	return from, err
}

func unpack(packed []byte) ([]byte, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxList))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	list, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return list, nil
}

func replay(m *model, ops []op, old *btf.Renumbered, extra io.Reader, out io.Writer) error {
	at := int64(0)
	for _, o := range ops {
		s := newStretches(m, o, at)
		for s.left > 0 {
			var failed error
			n := s.begin(func(p []byte, off int64) error {
				p = p[:min(int64(len(p)), old.Size()-off)]
				got, err := old.ReadAt(p, off)
				if got < len(p) {
					failed = fmt.Errorf("the old content: %w", err)
				}
				return nil
			})
			if failed != nil {
				return failed
			}
			s.end(n)
			if _, err := out.Write(s.new[behind : behind+n]); err != nil {
				return err
			}
			// end has moved the context, not the piece: it is written from where it was coded
			at += int64(n)
		}
		if _, err := io.CopyN(out, extra, o.Extra); err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		at += o.Extra
	}
	return nil
}

func unpackOps(packed []byte, n int, oldSize, newSize int64) ([]op, error) {
	list, err := unpack(packed)
	if err != nil {
		return nil, err
	}
	var ops []op
	var from, at int64
	r := bytes.NewReader(list)
	for range n {
		jump, err1 := binary.ReadVarint(r)
		cp, err2 := binary.ReadUvarint(r)
		extra, err3 := binary.ReadUvarint(r)
		if errors.Join(err1, err2, err3) != nil || cp > uint64(newSize) || extra > uint64(newSize) {
			return nil, ErrFormat
		}
		o := op{Old: from + jump, Copy: int64(cp), Extra: int64(extra)}
		if o.Old < 0 || o.Old > oldSize || o.Copy > oldSize-o.Old || o.Copy+o.Extra > newSize-at {
			return nil, ErrFormat
		}
		ops = append(ops, o)
		from, at = o.Old+o.Copy, at+o.Copy+o.Extra
	}
	if at != newSize || r.Len() > 0 {
		return nil, ErrFormat
	}
	return ops, nil
}
