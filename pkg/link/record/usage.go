package record

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"tributary.dev/tributary/pkg/api"
)

// MaxUses bounds the containers of one usage record.
const MaxUses = 4096

// MaxMeters bounds the further meters of one container.
const MaxMeters = 64

// EncodeUsage writes the payload of a usage record: CBOR with the keys in order and
// the shortest numbers (RFC 8949 section 4.2.1).
func EncodeUsage(u api.Usage) ([]byte, error) {
	if len(u.Uses) > MaxUses {
		return nil, fmt.Errorf("%w: usage of %d containers", ErrMalformed, len(u.Uses))
	}
	return appendUsage(make([]byte, 0, 32+64*len(u.Uses)), &u), nil
}

// appendUsage writes what encMode would, in a sixth of the time: the core does so for
// every record, to check the chain.
func appendUsage(b []byte, u *api.Usage) []byte {
	head := byte(0xa3)
	if u.Cut {
		head++
	}
	b = appendInt(append(b, head, 1), u.From)
	b = appendInt(append(b, 2), u.To)
	b = append(b, 3)
	if u.Uses == nil {
		b = append(b, 0xf6)
	} else {
		b = appendHead(b, 0x80, uint64(len(u.Uses)))
	}
	for i := range u.Uses {
		b = appendUse(b, &u.Uses[i])
	}
	if u.Cut {
		b = append(b, 4, 0xf5)
	}
	return b
}

func appendUse(b []byte, c *api.ContainerUse) []byte {
	values := [...]uint64{c.RunMillis, c.CPUMicros, c.MemoryByteSeconds, c.RxBytes, c.TxBytes}
	at := len(b)
	b = append(b, 0xa2, 1)
	b = append(appendHead(b, 0x60, uint64(len(c.App))), c.App...)
	b = append(b, 2)
	b = append(appendHead(b, 0x60, uint64(len(c.Service))), c.Service...)
	for k, v := range values {
		if v != 0 {
			b[at]++
			b = appendHead(append(b, byte(3+k)), 0, v)
		}
	}
	if c.Accelerator != (api.AcceleratorUse{}) {
		b[at]++
		b = appendAccelerator(append(b, 8), &c.Accelerator)
	}
	if len(c.More) > 0 {
		b[at]++
		b = appendMore(append(b, 9), c.More)
	}
	return b
}

// appendMore orders keys as RFC 8949 section 4.2.1 does: by their encoded bytes, and so the
// shorter first.
func appendMore(b []byte, more map[string]uint64) []byte {
	keys := slices.SortedFunc(maps.Keys(more), func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	b = appendHead(b, 0xa0, uint64(len(keys)))
	for _, k := range keys {
		b = append(appendHead(b, 0x60, uint64(len(k))), k...)
		b = appendHead(b, 0, more[k])
	}
	return b
}

func appendAccelerator(b []byte, u *api.AcceleratorUse) []byte {
	at := len(b)
	b = append(b, 0xa0)
	for k, v := range u.Fields() {
		if *v != 0 {
			b[at]++
			b = appendHead(append(b, byte(1+k)), 0, *v)
		}
	}
	return b
}

// appendInt and appendHead are RFC 8949 section 3.1, shortest form.
func appendInt(b []byte, v int64) []byte {
	if v < 0 {
		return appendHead(b, 0x20, ^uint64(v))
	}
	return appendHead(b, 0, uint64(v))
}

func appendHead(b []byte, major byte, v uint64) []byte {
	switch {
	case v < 24:
		return append(b, major|byte(v))
	case v <= math.MaxUint8:
		return append(b, major|24, byte(v))
	case v <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(v))
	case v <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), v)
}

// DecodeUsage reads the payload of a usage record.
func DecodeUsage(payload []byte) (u api.Usage, err error) {
	if len(payload) > MaxPayload {
		return u, fmt.Errorf("%w: usage of %d bytes", ErrMalformed, len(payload))
	}
	if err = decMode().Unmarshal(payload, &u); err != nil {
		return u, fmt.Errorf("%w: usage: %v", ErrMalformed, err)
	}
	if len(u.Uses) > MaxUses {
		return u, fmt.Errorf("%w: usage of %d containers", ErrMalformed, len(u.Uses))
	}
	for i := range u.Uses {
		if len(u.Uses[i].More) > MaxMeters {
			return u, fmt.Errorf("%w: usage of %d meters", ErrMalformed, len(u.Uses[i].More))
		}
	}
	return u, nil
}

// EncodeEvent writes the payload of an event or audit record.
func EncodeEvent(e api.Event) ([]byte, error) { return encMode().Marshal(e) }

// DecodeEvent reads the payload of an event or audit record.
func DecodeEvent(payload []byte) (e api.Event, err error) {
	if len(payload) > MaxPayload {
		return e, fmt.Errorf("%w: event of %d bytes", ErrMalformed, len(payload))
	}
	if err = decMode().Unmarshal(payload, &e); err != nil {
		return e, fmt.Errorf("%w: event: %v", ErrMalformed, err)
	}
	return e, nil
}

// packColumns holds usage records alone, as numbers:
//
//	records, names, then per name: bytes shared with the name before, rest of the name
//	pairs, then per pair: app name, service name
//	per record: Last-Seq, End unless that is 0, From - To of the record before, To-From - the same before, uses
//	per use: pair - the pair after the one before, RunMillis - the one before,
//	         CPUMicros, MemoryByteSeconds, RxBytes, TxBytes
//
// All are varints; differences are zigzagged and wrap. A lifelike record of ten
// containers takes 550 bytes in CBOR, 370 with zstd and 270 so.
const (
	packColumns = 2
	packCuts    = 3
)

// columns packs rs; ok is false when one of them would not come out byte for byte.
//
// packCuts is the same with the flags of each record after its uses: 1 for a cut.
func columns(rs []Record) (packing uint8, body []byte, ok bool) {
	us := make([]api.Usage, len(rs))
	for i, r := range rs {
		if r.Kind != api.RecordUsage {
			return 0, nil, false
		}
		u, err := DecodeUsage(r.Payload)
		if err != nil {
			return 0, nil, false
		}
		if len(u.Uses) == 0 {
			u.Uses = nil
		}
		again, err := EncodeUsage(u)
		if err != nil || !bytes.Equal(again, r.Payload) {
			return 0, nil, false
		}
		// Few boxes have accelerators: their records are packed as others are.
		if slices.ContainsFunc(u.Uses, func(c api.ContainerUse) bool { return c.Accelerator != (api.AcceleratorUse{}) || c.More != nil }) {
			return 0, nil, false
		}
		us[i] = u
	}
	w := columnWriter{cuts: slices.ContainsFunc(us, func(u api.Usage) bool { return u.Cut })}
	w.tables(us)
	w.records(rs, us)
	if w.cuts {
		return packCuts, w.out, true
	}
	return packColumns, w.out, true
}

type pair struct{ app, service string }

type columnWriter struct {
	out   []byte
	cuts  bool
	pairs map[pair]uint64
}

func (w *columnWriter) num(n uint64)     { w.out = binary.AppendUvarint(w.out, n) }
func (w *columnWriter) diff(a, b uint64) { w.out = binary.AppendVarint(w.out, int64(a-b)) }

func (w *columnWriter) tables(us []api.Usage) {
	w.pairs = make(map[pair]uint64)
	ids := make(map[string]uint64)
	var names []string
	var pairs []pair
	id := func(name string) {
		if _, ok := ids[name]; !ok {
			ids[name] = uint64(len(names))
			names = append(names, name)
		}
	}
	for i := range us {
		for j := range us[i].Uses {
			p := pair{us[i].Uses[j].App, us[i].Uses[j].Service}
			if _, ok := w.pairs[p]; ok {
				continue
			}
			w.pairs[p] = uint64(len(pairs))
			pairs = append(pairs, p)
			id(p.app)
		}
	}
	for _, p := range pairs { // after all apps, whose names resemble each other
		id(p.service)
	}
	w.num(uint64(len(us)))
	w.num(uint64(len(names)))
	before := ""
	for _, name := range names {
		n := shared(before, name)
		w.num(uint64(n))
		w.num(uint64(len(name) - n))
		w.out = append(w.out, name[n:]...)
		before = name
	}
	w.num(uint64(len(pairs)))
	for _, p := range pairs {
		w.num(ids[p.app])
		w.num(ids[p.service])
	}
}

func shared(a, b string) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

func (w *columnWriter) records(rs []Record, us []api.Usage) {
	var to, length, run uint64
	for i, u := range us {
		w.num(rs[i].Last - rs[i].Seq)
		if rs[i].Stands() {
			w.out = append(w.out, rs[i].End[:]...)
		}
		w.diff(uint64(u.From), to)
		w.diff(uint64(u.To)-uint64(u.From), length)
		to, length = uint64(u.To), uint64(u.To)-uint64(u.From)
		w.num(uint64(len(u.Uses)))
		var next uint64
		for _, c := range u.Uses {
			p := w.pairs[pair{c.App, c.Service}]
			w.diff(p, next)
			next = p + 1
			w.diff(c.RunMillis, run)
			run = c.RunMillis
			w.num(c.CPUMicros)
			w.num(c.MemoryByteSeconds)
			w.num(c.RxBytes)
			w.num(c.TxBytes)
		}
		if w.cuts {
			w.num(flags(&us[i]))
		}
	}
}

func flags(u *api.Usage) uint64 {
	if u.Cut {
		return 1
	}
	return 0
}

// uncolumns is the reverse of columns.
func uncolumns(body []byte, first uint64, cuts bool) ([]Record, error) {
	r := columnReader{in: body}
	n := r.count(MaxRecords)
	r.tables()
	rs := make([]Record, 0, min(n, len(body)))
	var to, length, run uint64
	size := 0
	for range n {
		span := r.num()
		var end Hash
		if span > 0 {
			n := copy(end[:], r.in)
			r.in, r.failed = r.in[n:], r.failed || n < len(end)
		}
		u := new(api.Usage)
		from := r.diff(to)
		length = r.diff(length)
		to = from + length
		u.From, u.To = int64(from), int64(to)
		uses := r.count(MaxUses)
		if r.failed || first+span < first {
			break
		}
		if uses > 0 {
			u.Uses = make([]api.ContainerUse, 0, min(uses, 64))
		}
		var next uint64
		for range uses {
			p := r.diff(next)
			if r.failed || p >= uint64(len(r.pairs)) {
				r.failed = true
				break
			}
			next = p + 1
			run = r.diff(run)
			c := api.ContainerUse{App: r.pairs[p].app, Service: r.pairs[p].service, RunMillis: run,
				CPUMicros: r.num(), MemoryByteSeconds: r.num(), RxBytes: r.num(), TxBytes: r.num()}
			// A name may be long and used often: the sum is bounded before it is built.
			if size += len(c.App) + len(c.Service); size > MaxBody {
				r.failed = true
				break
			}
			u.Uses = append(u.Uses, c)
		}
		if cuts {
			n := r.num()
			u.Cut, r.failed = n == 1, r.failed || n > 1
		}
		if r.failed {
			break
		}
		payload := appendUsage(make([]byte, 0, 32+64*len(u.Uses)), u)
		rs = append(rs, Record{Seq: first, Last: first + span, Kind: api.RecordUsage, Payload: payload, End: end, usage: u})
		first += span + 1
	}
	if r.failed || len(rs) != n || len(r.in) != 0 {
		return nil, fmt.Errorf("%w: usage columns", ErrMalformed)
	}
	return rs, nil
}

// columnReader reads until the first fault, which it remembers.
type columnReader struct {
	in     []byte
	pairs  []pair
	failed bool
}

func (r *columnReader) num() uint64 {
	v, n := binary.Uvarint(r.in)
	if n <= 0 {
		r.failed, r.in = true, nil
		return 0
	}
	r.in = r.in[n:]
	return v
}

func (r *columnReader) diff(before uint64) uint64 {
	v, n := binary.Varint(r.in)
	if n <= 0 {
		r.failed, r.in = true, nil
		return 0
	}
	r.in = r.in[n:]
	return before + uint64(v)
}

// count reads a length of at most most, and of no more than the bytes left.
func (r *columnReader) count(most int) int {
	n := r.num()
	if n > uint64(most) || n > uint64(len(r.in)) {
		r.failed, r.in = true, nil
		return 0
	}
	return int(n)
}

func (r *columnReader) tables() {
	names := make([]string, 0, 16)
	before := ""
	size := 0
	for range r.count(MaxBody) {
		n, rest := r.num(), r.count(MaxPayload)
		if r.failed || n > uint64(len(before)) {
			r.failed = true
			return
		}
		name := before[:n] + string(r.in[:rest])
		r.in = r.in[rest:]
		if size += len(name); size > MaxBody || !utf8.ValidString(name) {
			r.failed = true
			return
		}
		names = append(names, name)
		before = name
	}
	pairs := r.count(MaxBody)
	for range pairs {
		a, s := r.num(), r.num()
		if r.failed || a >= uint64(len(names)) || s >= uint64(len(names)) {
			r.failed = true
			return
		}
		r.pairs = append(r.pairs, pair{names[a], names[s]})
	}
}

// EncodeKPI writes the payload of a telemetry record.
func EncodeKPI(k api.KPI) ([]byte, error) { return encMode().Marshal(k) }

// maxKPI bounds the payload of a telemetry record that is a KPI, in bytes.
const maxKPI = 1 << 10

// DecodeKPI reads the payload of a telemetry record.
func DecodeKPI(payload []byte) (k api.KPI, err error) {
	if len(payload) > maxKPI {
		return k, fmt.Errorf("%w: KPI of %d bytes", ErrMalformed, len(payload))
	}
	if err = decMode().Unmarshal(payload, &k); err != nil {
		return k, fmt.Errorf("%w: KPI: %v", ErrMalformed, err)
	}
	if k.Name == "" || k.Count > 0 && k.Min > k.Max {
		return k, fmt.Errorf("%w: KPI %q from %d to %d", ErrMalformed, k.Name, k.Min, k.Max)
	}
	return k, nil
}
