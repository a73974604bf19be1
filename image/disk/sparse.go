package disk

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/disk/bmap"
)

// sparse writes to a file that is all zeros, leaves blocks of zeros out, and remembers every block that was written,
// those of zeros too: whoever flashes by the map onto a used disk must bring them there, or what lay there before shows
// through in the midst of a file. What is mapped is thus a matter of meaning, not of the file system that the builder
// runs on.
type sparse struct {
	f       *os.File
	written map[int64]bool // blocks in the file
	mapped  map[int64]bool // blocks that count
}

var zero [bmap.BlockSize]byte

func (s *sparse) WriteAt(b []byte, off int64) (int, error) {
	for n := 0; n < len(b); {
		at := off + int64(n)
		block := at / bmap.BlockSize
		k := min(len(b)-n, int(bmap.BlockSize-at%bmap.BlockSize))
		if piece := b[n : n+k]; s.written[block] || !bytes.Equal(piece, zero[:k]) {
			if _, err := s.f.WriteAt(piece, at); err != nil {
				return n, err
			}
			s.written[block] = true
		}
		s.mapped[block] = true
		n += k
	}
	return len(b), nil
}

func (s *sparse) Sync() error { return nil } // an image may be built again

func (s *sparse) blocks() []int64 {
	out := make([]int64, 0, len(s.mapped))
	for b := range s.mapped {
		out = append(out, b)
	}
	slices.Sort(out)
	return out
}

// window is how far back a decoder must remember: it finds the first ESP's files again in the second, and a small
// box that installs has that much memory to spare.
const window = 64 << 20

// longGap is how many zeros in a row are worth frames of their own.
const longGap = 16 << 20

// Compress writes the image as zstd frames, one after the other as RFC 8878 allows, and answers the SHA-256 of the
// image itself. Long stretches of zeros are frames made by hand: nothing need look at gigabytes of them. The same image
// gives the same bytes.
func Compress(dst string, im *Image) (sum [32]byte, err error) {
	in, err := os.Open(im.Path)
	if err != nil {
		return sum, err
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return sum, err
	}
	defer out.Close()
	w := &frames{out: bufio.NewWriterSize(out, 1<<20), sum: sha256.New()}
	if w.z, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(2)); err != nil {
		return sum, err
	}
	if err := im.stream(w, in); err != nil {
		return sum, err
	}
	if err := errors.Join(w.end(), w.out.Flush(), out.Close()); err != nil {
		return sum, err
	}
	return [32]byte(w.sum.Sum(nil)), nil
}

// frames is a compressed file in the making.
type frames struct {
	out  *bufio.Writer
	z    *zstd.Encoder
	sum  hash.Hash
	open bool // a frame was begun
}

func (f *frames) Write(b []byte) (int, error) {
	if !f.open {
		f.z.Reset(f.out)
		f.open = true
	}
	f.sum.Write(b)
	return f.z.Write(b)
}

func (f *frames) end() error {
	if !f.open {
		return nil
	}
	f.open = false
	return f.z.Close()
}

var megabyte [1 << 20]byte

// zeros adds n zero bytes.
func (f *frames) zeros(n int64) error {
	for left := n; left > 0; left -= min(left, int64(len(megabyte))) {
		part := megabyte[:min(left, int64(len(megabyte)))]
		if n < longGap {
			if _, err := f.Write(part); err != nil {
				return err
			}
			continue
		}
		f.sum.Write(part)
	}
	if n < longGap {
		return nil
	}
	if err := f.end(); err != nil {
		return err
	}
	_, err := f.out.Write(zeroFrame(n))
	return err
}

// zeroFrame is one frame of n zeros: run-length blocks of 128 KiB (RFC 8878, 3.1.1.2.2), four bytes each.
func zeroFrame(n int64) []byte {
	const run = 128 << 10
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0xfd2fb528)
	b = append(b, 0xc0, 7<<3) // content size in 8 bytes; a window of 128 KiB
	b = le.AppendUint64(b, uint64(n))
	for n > 0 {
		k := min(n, run)
		n -= k
		head := uint32(k)<<3 | 1<<1
		if n == 0 {
			head |= 1
		}
		b = append(b, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return b
}

// stream gives the whole image, reading only what it holds.
func (im *Image) stream(w *frames, in io.ReaderAt) error {
	at := int64(0)
	for _, r := range im.Map.Ranges {
		if err := w.zeros(r.Offset() - at); err != nil {
			return err
		}
		if _, err := io.Copy(w, io.NewSectionReader(in, r.Offset(), im.Map.Size(r))); err != nil {
			return err
		}
		at = r.Offset() + im.Map.Size(r)
	}
	return w.zeros(im.Size - at)
}
