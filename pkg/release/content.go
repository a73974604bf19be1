package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"tributary.dev/tributary/pkg/release/frame"
	"tributary.dev/tributary/pkg/release/lz4k"
)

// Identity names the content of an installed release, so that a delta can say what it starts from. A box computes it
// from what it runs: root hash, and the digests of UKI and boot manager as they lie on its ESP.
func Identity(roothash string, uki, manager []byte) string {
	u, m := sha256.Sum256(uki), sha256.Sum256(manager)
	sum := sha256.Sum256([]byte("tributary content 1\n" + strings.ToLower(roothash) + "\n" + hex.EncodeToString(u[:]) + "\n" + hex.EncodeToString(m[:]) + "\n"))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// FindPacked looks for stretches of a UKI that Unfold unpacks: what the builder itself packed (pkg/release/frame), and
// payloads of kernels in LZ4 (pkg/release/lz4k). With again, only those that are packed again to the same bytes, as a
// description must list them; it takes some seconds of work.
func FindPacked(uki []byte, again bool) (list []Packed) {
	for at := 0; at < len(uki); {
		p, ok := packedAt(uki, at)
		if !ok {
			at += 4 // so lie the archives in an initramfs; sections of a PE file lie at multiples of 512
			continue
		}
		packed := uki[p.Offset:][:p.Size]
		at = int(p.Offset+p.Size+3) &^ 3
		if p.Plain, ok = p.measure(packed, again); ok {
			list = append(list, p)
		}
	}
	return list
}

func packedAt(uki []byte, at int) (p Packed, ok bool) {
	if at%512 == 0 && bytes.HasPrefix(uki[at:], []byte("MZ")) {
		if k, ok := lz4k.Find(uki[at:]); ok {
			return Packed{Offset: int64(at + k.Offset), Size: int64(k.Size), Form: FormLZ4}, true
		}
	}
	if n, ok := frame.Size(uki[at:]); ok {
		return Packed{Offset: int64(at), Size: int64(n), Form: FormZstd}, true
	}
	return p, false
}

// measure gives the length of what is packed; with again, ok tells too whether packing it gives the same bytes.
func (p Packed) measure(packed []byte, again bool) (plain int64, ok bool) {
	if !again {
		plain, err := p.unpack(packed, io.Discard)
		return plain, err == nil && plain > 0
	}
	same := newDigest()
	z, err := p.packer(same)
	if err != nil {
		return 0, false
	}
	plain, err = p.unpack(packed, z)
	return plain, errors.Join(err, z.Close()) == nil && plain > 0 && same.part() == PartOf(packed)
}

// unpack writes what is packed, and tells its length.
func (p Packed) unpack(packed []byte, w io.Writer) (int64, error) {
	switch p.Form {
	case FormZstd:
		return frame.Decode(packed, w)
	case FormLZ4:
		plain, err := lz4k.Decode(packed)
		if err != nil {
			return 0, err
		}
		n, err := w.Write(plain)
		return int64(n), err
	}
	return 0, p.known()
}

// packer packs what is written to it.
func (p Packed) packer(w io.Writer) (io.WriteCloser, error) {
	switch p.Form {
	case FormZstd:
		return frame.NewEncoder(w)
	case FormLZ4:
		return &fitter{size: p.Size, w: w}, nil
	}
	return nil, p.known()
}

// known says why this box cannot pack a stretch, or nil.
func (p Packed) known() error {
	most := map[string]int64{FormZstd: frame.MaxPlain, FormLZ4: lz4k.MaxPlain}
	switch bound, ok := most[p.Form]; {
	case !ok:
		return fmt.Errorf("the release packs a part of its kernel image as %q, which this box does not know", p.Form)
	case p.Plain > bound: // check: packed bound
		return fmt.Errorf("the release packs %d bytes of its kernel image as %q; this box packs %d", p.Plain, p.Form, bound)
	}
	return nil
}

// Packs says why this box cannot make the kernel image of the release from its content, or nil. It then fetches the
// release whole, where the kernel image is as it is.
func (d Description) Packs() error {
	for _, p := range d.Packed {
		if err := p.known(); err != nil { // check: form
			return err
		}
	}
	return nil
}

// fitter packs a kernel's payload into the place that it has.
type fitter struct {
	size  int64
	plain []byte
	w     io.Writer
}

func (f *fitter) Write(b []byte) (int, error) {
	if len(f.plain)+len(b) > lz4k.MaxPlain {
		return 0, fmt.Errorf("more than %d bytes to pack", lz4k.MaxPlain)
	}
	f.plain = append(f.plain, b...)
	return len(b), nil
}

func (f *fitter) Close() error {
	packed, ok := lz4k.Fit(f.plain, int(f.size))
	if !ok {
		return errors.New("the kernel's payload has no room any more")
	}
	_, err := f.w.Write(packed)
	return err
}

// Unfold writes the UKI's part of the content: it with the packed stretches unpacked.
func Unfold(uki []byte, packed []Packed, w io.Writer) error {
	at := int64(0)
	for _, p := range packed {
		if _, err := w.Write(uki[at:p.Offset]); err != nil {
			return err
		}
		n, err := p.unpack(uki[p.Offset:p.Offset+p.Size], w)
		if err != nil {
			return err
		}
		if n != p.Plain {
			return fmt.Errorf("a packed stretch has %d bytes, %d are said", n, p.Plain)
		}
		at = p.Offset + p.Size
	}
	_, err := w.Write(uki[at:])
	return err
}

// ErrPacked: the UKI that was packed here is not that of the release: it was packed by another encoder.
var ErrPacked = errors.New("the kernel image was packed by another encoder than this box has")

// Folder takes the UKI's part of the content, in pieces of any length, and writes the UKI.
type Folder struct {
	d    Description
	w    *digest
	next int   // of the packed stretches
	left int64 // of the bytes until the stretch begins, or until it ends
	z    io.WriteCloser
	from int64 // where in the UKI the stretch began
}

// NewFolder writes to w.
func NewFolder(d Description, w io.Writer) *Folder {
	f := &Folder{d: d, w: newDigest(w)}
	f.between(0)
	return f
}

// between goes on with what is not packed.
func (f *Folder) between(at int64) {
	end := f.d.UKI.Size
	if f.next < len(f.d.Packed) {
		end = f.d.Packed[f.next].Offset
	}
	f.left = end - at
}

// Write implements io.Writer.
func (f *Folder) Write(b []byte) (n int, err error) {
	for {
		if err := f.turn(); err != nil {
			return n, err
		}
		if len(b) == 0 {
			return n, nil
		}
		if f.left == 0 {
			return n, errors.New("more content than the kernel image has")
		}
		piece := b[:min(int64(len(b)), f.left)]
		to := io.Writer(f.w)
		if f.z != nil {
			to = f.z
		}
		if _, err := to.Write(piece); err != nil {
			return n, err
		}
		b, n, f.left = b[len(piece):], n+len(piece), f.left-int64(len(piece))
	}
}

// turn begins and ends stretches, where one does here.
func (f *Folder) turn() (err error) {
	for f.left == 0 && f.next < len(f.d.Packed) {
		p := f.d.Packed[f.next]
		if f.z == nil {
			f.from, f.left = f.w.n, p.Plain
			f.z, err = p.packer(f.w)
			if err != nil {
				return err
			}
			continue
		}
		err = f.z.Close()
		if f.z = nil; err != nil || f.w.n-f.from != p.Size {
			return errors.Join(ErrPacked, err)
		}
		f.next++
		f.between(p.Offset + p.Size)
	}
	return nil
}

// Close ends it and holds the UKI against its digest.
func (f *Folder) Close() error {
	if err := f.turn(); err != nil {
		return err
	}
	if f.left > 0 || f.z != nil || f.next < len(f.d.Packed) {
		return errors.New("the kernel image's content is not whole")
	}
	if f.w.part() != f.d.UKI { // check: the kernel image's digest
		if len(f.d.Packed) > 0 {
			return ErrPacked
		}
		return fmt.Errorf("%d bytes that are not the kernel image of the release", f.w.n)
	}
	return nil
}

// digest counts and hashes what it passes on.
type digest struct {
	n   int64
	sum hash.Hash
	w   io.Writer
}

func newDigest(w ...io.Writer) *digest {
	d := &digest{sum: sha256.New()}
	d.w = io.MultiWriter(append(w, d.sum)...)
	return d
}

func (d *digest) Write(b []byte) (int, error) {
	n, err := d.w.Write(b)
	d.n += int64(n)
	return n, err
}

func (d *digest) part() Part { return Part{d.n, hex.EncodeToString(d.sum.Sum(nil))} }

// Check compares size and digest.
func (p Part) Check(b []byte) error {
	if sum := sha256.Sum256(b); int64(len(b)) != p.Size || hex.EncodeToString(sum[:]) != p.SHA256 {
		return fmt.Errorf("%d bytes that are not those of the release", len(b))
	}
	return nil
}

// PartOf describes bytes.
func PartOf(b []byte) Part {
	sum := sha256.Sum256(b)
	return Part{int64(len(b)), hex.EncodeToString(sum[:])}
}

// Pieces is several things read as one. It serves a delta's old content: unpacked UKI, boot manager, root.
type Pieces []Piece

// Piece is one of them.
type Piece struct {
	io.ReaderAt
	Size int64
}

// Size is that of all.
func (p Pieces) Size() (n int64) {
	for _, piece := range p {
		n += piece.Size
	}
	return n
}

// ReadAt implements io.ReaderAt.
func (p Pieces) ReadAt(b []byte, off int64) (n int, err error) {
	for _, piece := range p {
		if off >= piece.Size {
			off -= piece.Size
			continue
		}
		want := b[n:][:min(int64(len(b)-n), piece.Size-off)]
		got, err := piece.ReaderAt.ReadAt(want, off)
		n += got
		if got < len(want) {
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
		off = 0
	}
	return n, io.EOF
}
