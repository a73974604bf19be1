package record

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/api"
)

// How a batch's records are packed. A reader that does not know the number treats
// the batch as poison: its range is known, so nothing waits for it.
const (
	packPlain = 0 // CBOR: array of [kind, Last-Seq, payload, End or empty]
	packZstd  = 1 // the same, zstd (RFC 8878) without the four magic bytes
)

// smallest is the length from which compression is tried, in bytes.
const smallest = 128

type wireRecord struct {
	_       struct{} `cbor:",toarray"`
	Kind    api.RecordKind
	Span    uint64
	Payload []byte
	End     []byte
}

var encMode = sync.OnceValue(func() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil // unreachable: the options are constant, and a test encodes with them
	}
	return m
})

var decMode = sync.OnceValue(func() cbor.DecMode {
	m, err := cbor.DecOptions{
		MaxNestedLevels: 8, MaxArrayElements: MaxRecords, MaxMapPairs: 1024,
		IndefLength: cbor.IndefLengthForbidden, DupMapKey: cbor.DupMapKeyEnforcedAPF,
	}.DecMode()
	if err != nil {
		return nil
	}
	return m
})

// Compressors come from pools: they are big, and a device that sends one batch in
// fifteen minutes should not hold one.
var (
	encoders = sync.Pool{New: func() any {
		// The fastest level takes 0.3 MB, the next one 1.4 MB, for the same size within 2 %.
		e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(true))
		return e
	}}
	decoders = sync.Pool{New: func() any {
		d, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBody+64<<10), zstd.WithDecoderLowmem(true))
		return d
	}}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// pack encodes records in the shortest form.
func pack(rs []Record) (uint8, []byte, error) {
	if packing, body, ok := columns(rs); ok {
		return packing, body, nil
	}
	ws := make([]wireRecord, len(rs))
	for i, r := range rs {
		ws[i] = wireRecord{Kind: r.Kind, Span: r.Last - r.Seq, Payload: r.Payload}
		if r.Stands() {
			ws[i].End = rs[i].End[:]
		}
	}
	plain, err := encMode().Marshal(ws)
	if err != nil {
		return 0, nil, fmt.Errorf("encode records: %w", err)
	}
	if len(plain) < smallest {
		return packPlain, plain, nil
	}
	if z, ok := squeeze(plain); ok {
		return packZstd, z, nil
	}
	return packPlain, plain, nil
}

// squeeze compresses; ok is false when that does not help.
func squeeze(plain []byte) (z []byte, ok bool) {
	e, _ := encoders.Get().(*zstd.Encoder)
	if e == nil {
		return nil, false
	}
	defer encoders.Put(e)
	z = e.EncodeAll(plain, make([]byte, 0, len(plain)))
	z, ok = bytes.CutPrefix(z, zstdMagic)
	return z, ok && len(z) < len(plain)
}

// expand is the reverse of squeeze, bounded by MaxBody.
func expand(z []byte) ([]byte, error) {
	d, _ := decoders.Get().(*zstd.Decoder)
	if d == nil {
		return nil, fmt.Errorf("no decoder")
	}
	defer decoders.Put(d)
	framed := append(append(make([]byte, 0, len(z)+4), zstdMagic...), z...)
	plain, err := d.DecodeAll(framed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return plain, nil
}

// unpack is the reverse of pack; the first record has the number first.
func unpack(packing uint8, body []byte, first uint64) ([]Record, error) {
	switch packing {
	case packPlain:
	case packColumns, packCuts:
		return uncolumns(body, first, packing == packCuts)
	case packZstd:
		plain, err := expand(body)
		if err != nil {
			return nil, err
		}
		body = plain
	default:
		return nil, fmt.Errorf("%w: packing %d", ErrMalformed, packing)
	}
	var ws []wireRecord
	if err := decMode().Unmarshal(body, &ws); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	rs := make([]Record, len(ws))
	for i, w := range ws {
		if first+w.Span < first {
			return nil, fmt.Errorf("%w: record %d covers %d more", ErrMalformed, first, w.Span)
		}
		rs[i] = Record{Seq: first, Last: first + w.Span, Kind: w.Kind, Payload: w.Payload}
		if n := copy(rs[i].End[:], w.End); n != len(w.End) || (n != 0 && n != len(Hash{})) {
			return nil, fmt.Errorf("%w: chain value of %d bytes", ErrMalformed, len(w.End))
		}
		first += w.Span + 1
	}
	return rs, nil
}
