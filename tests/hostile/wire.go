package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
)

// A message of a frame of the link, as somebody reads it who has its description alone:
// a frame is a byte of version (1) and flags (1: zstd without its magic), then CBOR
// arrays that begin with their type.
type message []cbor.RawMessage

// The types of messages that matter here. Those named up go towards the core.
const (
	upState     = 2 // from, count, group…
	upPatch     = 3 // group…
	upAttach    = 4 // [attachment]…
	upBatch     = 8 // device, batch
	downRun     = 6 // from, count, manifest or delta…
	downPatch   = 7 // manifest or delta…
	downAck     = 8 // device, acknowledgement
	downCommand = 9 // device, command
)

var (
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	unzip, _  = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(16<<20))
)

// openFrame returns a frame's messages, and its body in clear.
func openFrame(frame []byte) (list []message, body []byte, err error) {
	if len(frame) == 0 || frame[0]>>4 != 1 {
		return nil, nil, errors.New("no frame of version 1")
	}
	body = frame[1:]
	if frame[0]&1 != 0 {
		if body, err = unzip.DecodeAll(append(bytes.Clone(zstdMagic), body...), nil); err != nil {
			return nil, nil, err
		}
	}
	for rest := body; len(rest) > 0; {
		var m message
		if rest, err = cbor.UnmarshalFirst(rest, &m); err != nil {
			return nil, nil, err
		}
		if len(m) == 0 {
			return nil, nil, errors.New("a message without a type")
		}
		list = append(list, m)
	}
	return list, body, nil
}

// packFrame is the reverse, never compressed.
func packFrame(list ...message) []byte {
	out := []byte{1 << 4}
	for _, m := range list {
		out = append(out, encode(m)...)
	}
	return out
}

// encode never fails on what is encoded here.
func encode(v any) cbor.RawMessage {
	b, err := cbor.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("hostile: %T does not encode: %v", v, err))
	}
	return b
}

func newMessage(typ int, fields ...any) message {
	m := message{encode(typ)}
	for _, f := range fields {
		m = append(m, encode(f))
	}
	return m
}

func (m message) typ() (n int) {
	_ = cbor.Unmarshal(m[0], &n) // else 0, which nobody uses
	return n
}

// bytes reads a field that is a byte string; nil when it is none.
func (m message) bytes(i int) (b []byte) {
	if i < len(m) {
		_ = cbor.Unmarshal(m[i], &b)
	}
	return b
}

func (m message) uint(i int) (n uint64) {
	if i < len(m) {
		_ = cbor.Unmarshal(m[i], &n)
	}
	return n
}

// flip returns a copy with one bit changed, two thirds on.
func flip(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) > 0 {
		b[len(b)*2/3] ^= 0x10
	}
	return b
}

// seen is the file of everything that was seen in clear.
type seen struct {
	mu sync.Mutex
	f  *os.File
}

func openSeen(path string) (*seen, error) {
	if path == "" {
		return &seen{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &seen{f: f}, err
}

func (s *seen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return len(b), nil
	}
	return s.f.Write(b)
}

func (s *seen) Close() error {
	if s.f == nil {
		return nil
	}
	return s.f.Close()
}
