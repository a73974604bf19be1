// Package frame answers: which zstd frames of an image can be unpacked, and packed again to the same bits here and on the box?
//
// Those that the builder packed itself, by the encoder that boxes have too: the initramfs, and the payload of a kernel
// (image/kernel). An edit of one program changes nearly all of a frame, so deltas are made of what it holds. The encoder
// is that of the library, whose version go.mod pins for builder and box alike; a test pins its output. Other output is
// another form (pkg/release, FormZstd): a box without its encoder fetches the release whole.
package frame

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Bounds.
const (
	window = 4 << 20
	// MaxPlain bounds what is packed and unpacked, in bytes. It is never in memory as a whole.
	MaxPlain = 128 << 20
)

// ErrFormat: not a frame that this package unpacks.
var ErrFormat = errors.New("not a whole zstd frame of a small window")

// Magic is how a frame begins (RFC 8878, section 3.1.1).
var Magic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// NewEncoder packs what is written to it until it is closed. The same bytes give the same bytes, however they are cut. It
// needs 10 MB.
func NewEncoder(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
}

// Encode packs what is in memory.
func Encode(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := NewEncoder(&out)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Size gives the length of the frame that b begins with. A frame of a larger window is nobody's that boxes could pack
// again: such are kernels' payloads as they come.
func Size(b []byte) (n int, ok bool) {
	if !bytes.HasPrefix(b, Magic) {
		return 0, false
	}
	var h zstd.Header
	if h.Decode(b) != nil || h.Skippable || h.WindowSize > window {
		return 0, false
	}
	// Blocks follow, each with three bytes before it: last, type, size (RFC 8878, section 3.1.1.2).
	for at := h.HeaderSize; at+3 <= len(b); {
		head := int(b[at]) | int(b[at+1])<<8 | int(b[at+2])<<16
		size := head >> 3
		switch head >> 1 & 3 {
		case 1: // one byte, repeated
			size = 1
		case 3:
			return 0, false
		}
		at += 3 + size
		if head&1 == 1 {
			if h.HasCheckSum {
				at += 4
			}
			return at, at <= len(b)
		}
	}
	return 0, false
}

// Decode unpacks a whole frame into w and tells how many bytes came out. It needs 10 MB.
func Decode(frame []byte, w io.Writer) (int64, error) {
	z, err := zstd.NewReader(bytes.NewReader(frame), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	n, err := io.Copy(w, io.LimitReader(z, MaxPlain+1))
	if err == nil && n > MaxPlain {
		err = fmt.Errorf("more than %d bytes come out", MaxPlain)
	}
	if err != nil {
		return n, errors.Join(ErrFormat, err)
	}
	return n, nil
}
