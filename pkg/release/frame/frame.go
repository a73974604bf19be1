// Package frame answers: which zstd frames of an image can be unpacked, and packed again to the same bits here and on the box?
//
// Those that the builder packed itself, by the encoder that boxes have too: the initramfs. An edit of one program in it
// changes nearly all of the frame, so deltas are made of what it holds. The encoder is that of the library, whose
// version go.mod pins for builder and box alike; a test pins its output. A library with other output needs the old
// encoder beside it as long as boxes are to take deltas from those that have it.
package frame

import (
	"bytes"
	"errors"

	"github.com/klauspost/compress/zstd"
)

// Bounds.
const (
	window = 8 << 20
	// MaxPlain bounds what is unpacked, in bytes: it is held in memory.
	MaxPlain = 64 << 20
)

// ErrFormat: not a frame that this package unpacks.
var ErrFormat = errors.New("not a whole zstd frame of a small window")

// Magic is how a frame begins (RFC 8878, section 3.1.1).
var Magic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// Encode packs as image/initramfs does. The same bytes give the same bytes. It needs about 60 MB.
func Encode(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
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
// again: kernels' payloads are such.
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

// Decode unpacks a whole frame.
func Decode(frame []byte) ([]byte, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxPlain), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain, err := z.DecodeAll(frame, nil)
	if err != nil {
		return nil, errors.Join(ErrFormat, err)
	}
	return plain, nil
}
