package stream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// FrameType says what a frame's payload is. Types that a side does not know are
// skipped by it and carried on by whoever is in between.
type FrameType uint8

// The frame types.
const (
	Stdin      FrameType = 1 // bytes towards the process or socket
	Stdout     FrameType = 2 // bytes from it
	Stderr     FrameType = 3
	CloseStdin FrameType = 4 // no more Stdin will come
	Resize     FrameType = 5 // Size: two uint16, columns and rows
	Exit       FrameType = 6 // int32, the process's exit status; the last frame
	Failure    FrameType = 7 // JSON api.Error; the last frame
	Ping       FrameType = 8 // empty
)

// MaxPayload bounds one frame; longer data takes several.
const MaxPayload = 32 << 10

// headerSize: one byte type, three bytes length, big-endian.
const headerSize = 4

// Frame is one unit on the wire.
type Frame struct {
	Type    FrameType
	Payload []byte
}

// AppendFrame encodes f at the end of dst. A payload over MaxPayload is a fault of
// the caller and is cut.
func AppendFrame(dst []byte, f Frame) []byte {
	p := f.Payload[:min(len(f.Payload), MaxPayload)]
	dst = binary.BigEndian.AppendUint32(dst, uint32(f.Type)<<24|uint32(len(p)))
	return append(dst, p...)
}

// ReadFrame decodes one frame. It allocates no more than the frame's length, which
// MaxPayload bounds. It fails with io.EOF at a clean end, with
// io.ErrUnexpectedEOF within a frame.
func ReadFrame(r io.Reader) (Frame, error) {
	var buf []byte
	return readFrame(r, &buf)
}

func readFrame(r io.Reader, buf *[]byte) (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	word := binary.BigEndian.Uint32(h[:])
	n := int(word & 0xffffff)
	if n > MaxPayload {
		return Frame{}, fmt.Errorf("stream: a frame of %d bytes, more than %d", n, MaxPayload)
	}
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	p := (*buf)[:n]
	if _, err := io.ReadFull(r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return Frame{FrameType(word >> 24), p}, nil
}

// Size is a terminal's size in characters.
type Size struct {
	Columns uint16 `cbor:"1,keyasint,omitempty" json:"columns"`
	Rows    uint16 `cbor:"2,keyasint,omitempty" json:"rows"`
}

func (s Size) encode() []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.Columns), s.Rows)
}

func decodeSize(p []byte) (Size, error) {
	if len(p) != 4 {
		return Size{}, fmt.Errorf("stream: a resize of %d bytes, not 4", len(p))
	}
	return Size{binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])}, nil
}

func encodeExit(code int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(int32(code))) }

func decodeExit(p []byte) (int, error) {
	if len(p) != 4 {
		return 1, fmt.Errorf("stream: an exit of %d bytes, not 4", len(p))
	}
	return int(int32(binary.BigEndian.Uint32(p))), nil
}
