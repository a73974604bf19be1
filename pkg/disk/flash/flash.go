// Package flash answers: does the disk now hold exactly the image, and could a cut on the way leave something that boots?
package flash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"tributary.dev/tributary/pkg/disk/bmap"
	"tributary.dev/tributary/pkg/disk/gpt"
)

// Device is the disk. Zero makes a stretch read as zeros, by whatever the device does best. Drop forgets what was
// cached, so that the next read comes from the disk.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Zero(offset, size int64) error
	Drop() error
}

// Phase is what is being done.
type Phase string

const (
	Erasing   Phase = "erasing"
	Writing   Phase = "writing"
	Verifying Phase = "verifying"
)

var (
	// ErrImage: the image is not what its block map says.
	ErrImage = errors.New("the image is damaged")
	// ErrDisk: the disk does not give back what was written.
	ErrDisk = errors.New("the disk does not keep what is written")
	// ErrSmall: the disk is smaller than the image.
	ErrSmall = errors.New("the disk is too small")
)

// The ends of an image, with a copy of the table each, make a disk look like one. They are written last.
const (
	head = 1 << 20
	tail = 33 * 512 // entries and header of the backup
)

// ends are the image's bytes that were held back.
type ends struct {
	head, tail []byte
	size       int64 // of the image
}

func newEnds(size int64) *ends {
	h := min(head, size)
	return &ends{head: make([]byte, h), tail: make([]byte, min(tail, size-h)), size: size}
}

// keep takes what of b, which lies at that offset of the image, belongs to the ends, and answers the part to write now.
func (e *ends) keep(b []byte, at int64) (middle []byte, where int64) {
	from, to := int64(len(e.head)), e.size-int64(len(e.tail))
	end := at + int64(len(b))
	if at < from {
		copy(e.head[at:], b)
	}
	if end > to {
		copy(e.tail[max(0, at-to):], b[max(0, to-at):])
	}
	at0 := min(max(at, from), end)
	return b[at0-at : max(at0, min(end, to))-at], at0
}

// lay puts the ends over b, as if the disk had them already.
func (e *ends) lay(b []byte, at int64) {
	if at < int64(len(e.head)) {
		copy(b, e.head[at:])
	}
	if to := e.size - int64(len(e.tail)); at+int64(len(b)) > to {
		copy(b[max(0, to-at):], e.tail[max(0, at-to):])
	}
}

// Write puts the image (uncompressed, read once) on a disk of size bytes, reads it back, and makes the partition of
// that label the rest of the disk (an empty label: none). Until all is verified the disk has no partition table, so
// that a half-written one cannot boot; the whole may be repeated. Progress is told in bytes, and may be nil.
func Write(ctx context.Context, dst Device, size int64, image io.Reader, m bmap.Map, grow string, progress func(p Phase, done, total int64)) error {
	if size < m.ImageSize {
		return fmt.Errorf("%w: it has %d bytes, the image needs %d", ErrSmall, size, m.ImageSize)
	}
	if progress == nil {
		progress = func(Phase, int64, int64) {}
	}
	if err := erase(ctx, dst, size, m, progress); err != nil {
		return err
	}
	held, err := copyRanges(ctx, dst, image, m, progress)
	if err != nil {
		return err
	}
	if err := errors.Join(dst.Sync(), dst.Drop()); err != nil {
		return err
	}
	if err := verify(ctx, dst, m, held, progress); err != nil {
		return err
	}
	return finish(dst, size, held, grow)
}

// erase takes away both tables, then what the image leaves empty, where an older system may lie.
func erase(ctx context.Context, dst Device, size int64, m bmap.Map, progress func(Phase, int64, int64)) error {
	if err := errors.Join(dst.Zero(0, min(head, size)), dst.Zero(max(0, size-head)/4096*4096, size-max(0, size-head)/4096*4096), dst.Sync()); err != nil {
		return err
	}
	total, done, at := m.ImageSize-m.Mapped(), int64(0), int64(0)
	gap := func(to int64) error {
		for at < to {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(64<<20, to-at)
			if err := dst.Zero(at, n); err != nil {
				return err
			}
			at, done = at+n, done+n
			progress(Erasing, done, total)
		}
		return nil
	}
	for _, r := range m.Ranges {
		if err := gap(r.Offset()); err != nil {
			return err
		}
		at = r.Offset() + m.Size(r)
	}
	return gap(m.ImageSize)
}

// copyRanges writes all ranges but the image's ends, which it answers.
func copyRanges(ctx context.Context, dst Device, image io.Reader, m bmap.Map, progress func(Phase, int64, int64)) (*ends, error) {
	held := newEnds(m.ImageSize)
	buf := make([]byte, 1<<20)
	total, done, at := m.Mapped(), int64(0), int64(0)
	for _, r := range m.Ranges {
		if _, err := io.CopyBuffer(io.Discard, io.LimitReader(image, r.Offset()-at), buf); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrImage, err)
		}
		at = r.Offset()
		h := sha256.New()
		for end := at + m.Size(r); at < end; {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			b := buf[:min(int64(len(buf)), end-at)]
			if _, err := io.ReadFull(image, b); err != nil {
				return nil, fmt.Errorf("%w: it ends at byte %d: %w", ErrImage, at, err)
			}
			h.Write(b)
			if middle, where := held.keep(b, at); len(middle) > 0 {
				if _, err := dst.WriteAt(middle, where); err != nil {
					return nil, err
				}
			}
			at, done = at+int64(len(b)), done+int64(len(b))
			progress(Writing, done, total)
		}
		if [32]byte(h.Sum(nil)) != r.Sum {
			return nil, fmt.Errorf("%w: blocks %d to %d", ErrImage, r.First, r.Last)
		}
	}
	// What is behind the last range must be there too: a stream that was cut short is no image.
	if n, err := io.CopyBuffer(io.Discard, image, buf); err != nil || at+n != m.ImageSize {
		return nil, fmt.Errorf("%w: %d bytes of %d: %w", ErrImage, at+n, m.ImageSize, errors.Join(err))
	}
	return held, nil
}

func verify(ctx context.Context, dst Device, m bmap.Map, held *ends, progress func(Phase, int64, int64)) error {
	total, done := m.Mapped(), int64(0)
	for _, r := range m.Ranges {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := make([]byte, m.Size(r)) // at most 16 MiB, see bmap.Make
		if _, err := dst.ReadAt(b, r.Offset()); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %w", ErrDisk, err)
		}
		held.lay(b, r.Offset())
		if sha256.Sum256(b) != r.Sum {
			return fmt.Errorf("%w: blocks %d to %d read back otherwise", ErrDisk, r.First, r.Last)
		}
		done += int64(len(b))
		progress(Verifying, done, total)
	}
	return nil
}

// finish writes the head without its table, then the table, made for this disk, at both ends.
func finish(dst Device, size int64, held *ends, grow string) error {
	t, _, err := gpt.Read(headOf(held.head), size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrImage, err)
	}
	number := 0
	if grow != "" {
		if number, _ = t.Find(grow); number == 0 {
			return fmt.Errorf("%w: no partition %s", ErrImage, grow)
		}
	}
	if _, err := t.Grow(size, number); err != nil {
		return err
	}
	behind := (2 + 128*128/t.SectorSize) * t.SectorSize
	if _, err := dst.WriteAt(held.head[behind:], behind); err != nil {
		return err
	}
	return t.Write(dst)
}

// headOf reads as the disk that begins so and has nothing else.
type headOf []byte

func (h headOf) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(h)) {
		copy(p, h[off:])
	}
	return len(p), nil
}

// Empty says whether a disk looks unused: zeros in its first and last MiB, which hold every partition table and the
// labels of whole-disk file systems.
func Empty(r io.ReaderAt, size int64) (bool, error) {
	b := make([]byte, min(head, size))
	for _, at := range []int64{0, size - int64(len(b))} {
		if _, err := r.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if len(bytes.TrimLeft(b, "\x00")) > 0 {
			return false, nil
		}
	}
	return true, nil
}
