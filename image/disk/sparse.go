package disk

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/disk/bmap"
)

// sparse writes to a file that is all zeros, leaves blocks of zeros out, and remembers the others. Holes are thus a
// matter of content, not of the file system that the builder runs on.
type sparse struct {
	f    *os.File
	used map[int64]bool
}

var zero [bmap.BlockSize]byte

func (s *sparse) WriteAt(b []byte, off int64) (int, error) {
	for n := 0; n < len(b); {
		at := off + int64(n)
		k := min(len(b)-n, int(bmap.BlockSize-at%bmap.BlockSize))
		if piece := b[n : n+k]; s.used[at/bmap.BlockSize] || !bytes.Equal(piece, zero[:k]) {
			if _, err := s.f.WriteAt(piece, at); err != nil {
				return n, err
			}
			s.used[at/bmap.BlockSize] = true
		}
		n += k
	}
	return len(b), nil
}

func (s *sparse) Sync() error { return nil } // an image may be built again

func (s *sparse) blocks() []int64 {
	out := make([]int64, 0, len(s.used))
	for b := range s.used {
		out = append(out, b)
	}
	slices.Sort(out)
	return out
}

// window is how far back a decoder must remember: it finds the first ESP's files again in the second, and a small
// box that installs has that much memory to spare.
const window = 64 << 20

// Compress writes the image as one zstd stream. The same image gives the same bytes.
func Compress(dst string, im *Image) error {
	in, err := os.Open(im.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(dst)
	if err != nil {
		return err
	}
	defer out.Close()
	buffered := bufio.NewWriterSize(out, 1<<20)
	w, err := zstd.NewWriter(buffered, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return err
	}
	if err := errors.Join(im.stream(w, in), w.Close(), buffered.Flush()); err != nil {
		return err
	}
	return out.Close()
}

// stream gives the whole image, reading only what it holds.
func (im *Image) stream(w io.Writer, in io.ReaderAt) error {
	at := int64(0)
	zeros := make([]byte, 1<<20)
	skip := func(to int64) error {
		for at < to {
			n := min(to-at, int64(len(zeros)))
			if _, err := w.Write(zeros[:n]); err != nil {
				return err
			}
			at += n
		}
		return nil
	}
	for _, r := range im.Map.Ranges {
		if err := skip(r.Offset()); err != nil {
			return err
		}
		n, err := io.Copy(w, io.NewSectionReader(in, r.Offset(), im.Map.Size(r)))
		if err != nil {
			return err
		}
		at += n
	}
	return skip(im.Size)
}
