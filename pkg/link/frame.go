package link

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A frame is one MQTT payload: a byte of version and flags, then a run of messages,
// each a CBOR array that begins with its type. Messages of types that a reader does
// not know are skipped, except that a relay passes on those of the routed ranges
// (see routeUp); fields past those it knows are skipped too.
const (
	frameVersion = 1 << 4
	flagZstd     = 1 << 0

	// worthwhile is the size below which compression is not tried.
	worthwhile = 200
)

// Messages of a child to its parent.
const (
	upHello    = 1  // feed, position, down feed, down position, digest, absent
	upState    = 2  // from, count, group…
	upPatch    = 3  // group…
	upAttach   = 4  // [attachment, claim…]…
	upBeat     = 5  // position, down position, digest, absent, path
	upBuckets  = 6  // walk, bits, sums
	upRows     = 7  // walk, position, last, rows
	upBatch    = 8  // device, batch
	upNeed     = 9  // [device, epoch, generation]…
	upManifest = 10 // device, manifest
	upAbsent   = 11 // whole, gone, back
	upCert     = 12 // certificate…
	upAsk      = 13 // device
	upSince    = 14 // down position
)

// Messages of a parent to its child.
const (
	downWelcome   = 1  // path, core epoch, [down feed, down position]
	downSince     = 2  // feed, position
	downWalk      = 3  // walk, bits
	downDiff      = 4  // walk, map of buckets
	downWants     = 5  // walk, wants
	downManifests = 6  // from, count, manifest or delta…
	downPatch     = 7  // manifest or delta…
	downAck       = 8  // device, acknowledgement
	downCommand   = 9  // device, command
	downMoved     = 10 // attachment…
	downPath      = 11 // path
	downCerts     = 12 // device…
	downAbsent    = 13 // (nothing)
	downGive      = 14 // device… whose manifest the parent lacks
	downAhead     = 15 // [device, epoch, seq]…
	downWant      = 16 // [device, epoch, seq]…
	downGreet     = 17 // (nothing): say hello again
)

// Types from routeUp on go to the core untouched, types from routeDown on to the
// device that is their first field: room for messages between the ends that relays
// of this version do not know.
const (
	routeUp   = 128
	routeDown = 192
	routeEnd  = 256

	downAnew = 200 // device, epoch: tell your state anew
)

var (
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// The default level's table takes 1 MB, which a leaf with its small frames should
	// not hold; the fastest level takes 0.3 MB.
	bigPackers   = packerPool(zstd.SpeedDefault, 1<<20)
	smallPackers = packerPool(zstd.SpeedFastest, small)
	unpackers    = sync.Pool{New: func() any {
		d, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBody), zstd.WithDecoderLowmem(true))
		return d
	}}
)

// small is the largest body, in bytes, that the small packers take.
const small = 64 << 10

func packerPool(level zstd.EncoderLevel, window int) *sync.Pool {
	return &sync.Pool{New: func() any {
		e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithSingleSegment(true), zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
		return e
	}}
}

// packFrame makes a frame of messages, compressed where that is shorter.
func packFrame(body []byte) []byte {
	if len(body) >= worthwhile {
		packers := smallPackers
		if len(body) > small {
			packers = bigPackers
		}
		if e, _ := packers.Get().(*zstd.Encoder); e != nil {
			z := e.EncodeAll(body, make([]byte, 0, len(body)))
			packers.Put(e)
			if z, ok := bytes.CutPrefix(z, zstdMagic); ok && len(z) < len(body) {
				return append([]byte{frameVersion | flagZstd}, z...)
			}
		}
	}
	return append([]byte{frameVersion}, body...)
}

// openFrame returns the messages of a frame.
func openFrame(frame []byte) ([]byte, error) {
	if len(frame) == 0 || len(frame) > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes", errWire, len(frame))
	}
	body := frame[1:]
	switch frame[0] {
	case frameVersion:
		return body, nil
	case frameVersion | flagZstd:
	default:
		return nil, fmt.Errorf("%w: version %d, flags %#x", errWire, frame[0]>>4, frame[0]&0xf)
	}
	d, _ := unpackers.Get().(*zstd.Decoder)
	if d == nil {
		return nil, fmt.Errorf("%w: no decoder", errWire)
	}
	defer unpackers.Put(d)
	plain, err := d.DecodeAll(append(append(make([]byte, 0, len(body)+4), zstdMagic...), body...), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errWire, err)
	}
	return plain, nil
}

// message is one message of a frame.
type message struct {
	typ    uint64
	fields int    // how many follow the type
	r      reader // stands before the first field
	raw    []byte // the whole, for passing on
}

// each calls take once a field, which reads it, until one cannot be read.
func (m *message) each(take func()) {
	for i := 0; i < m.fields && m.r.err == nil; i++ {
		take()
	}
}

// splitFrame opens a frame and checks that all of it is well-formed, so that a frame
// takes effect as a whole or not at all as far as its syntax goes.
func splitFrame(frame []byte) ([]message, error) {
	body, err := openFrame(frame)
	if err != nil {
		return nil, err
	}
	return splitBody(body)
}

func splitBody(body []byte) ([]message, error) {
	var out []message
	r := reader{b: body}
	for len(r.b) > 0 {
		raw := r.raw(MaxNesting)
		if r.err != nil {
			return nil, r.err
		}
		m := message{raw: raw, r: reader{b: raw}}
		m.fields = m.r.array() - 1
		m.typ = m.r.uint()
		if m.r.err != nil {
			return nil, m.r.err
		}
		out = append(out, m)
	}
	return out, nil
}

// putMessage begins a message of a type with n fields.
func putMessage(b []byte, typ uint64, n int) []byte { return putUint(putArray(b, n+1), typ) }

// putEntry encodes an entry; its number is told as the distance below top.
func putEntry(b []byte, e *Entry, top uint64) []byte {
	extra, _ := countItems(e.Extra)
	b = putText(putArray(b, 4+extra), e.Key)
	if e.Deleted {
		b = append(b, cborNull)
	} else {
		b = putBytes(b, e.Value)
	}
	b = putBytes(putUint(b, top-e.Seq), e.MAC[:])
	return append(b, e.Extra...)
}

func (r *reader) entry(top uint64) (e Entry) {
	n := r.array()
	if n < 4 {
		r.fail("entry too short")
		return e
	}
	e.Key = r.text(MaxKey)
	if e.Deleted = r.null(); !e.Deleted {
		e.Value = bytes.Clone(r.bytes(MaxValue))
		if e.Value == nil {
			e.Value = []byte{}
		}
	}
	back := r.uint()
	if mac := r.bytes(MACSize); len(mac) != MACSize || back >= top || e.Key == "" {
		r.fail("bad entry")
	} else {
		copy(e.MAC[:], mac)
	}
	e.Seq = top - back
	e.Extra = r.rest(n - 4)
	return e
}

// rest takes n items untouched.
func (r *reader) rest(n int) []byte {
	if n == 0 || r.err != nil {
		return nil
	}
	start := r.b
	for range n {
		r.skip(MaxNesting)
	}
	if r.err != nil {
		return nil
	}
	return bytes.Clone(start[:len(start)-len(r.b)])
}

func countItems(b []byte) (n int, err error) {
	r := reader{b: b}
	for len(r.b) > 0 {
		r.skip(MaxNesting)
		n++
	}
	return n, r.err
}
