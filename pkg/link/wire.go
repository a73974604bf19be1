package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// errWire means that bytes are not the CBOR that a frame may hold.
var errWire = errors.New("malformed frame")

// The subset of CBOR (RFC 8949) that frames use: definite lengths only.
const (
	majUint  = 0 << 5
	majNeg   = 1 << 5
	majBytes = 2 << 5
	majText  = 3 << 5
	majArray = 4 << 5
	majMap   = 5 << 5
	majTag   = 6 << 5
	majOther = 7 << 5

	cborNull = majOther | 22
)

func putHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func putUint(b []byte, n uint64) []byte     { return putHead(b, majUint, n) }
func putArray(b []byte, n int) []byte       { return putHead(b, majArray, uint64(n)) }
func putBytes(b, v []byte) []byte           { return append(putHead(b, majBytes, uint64(len(v))), v...) }
func putText(b []byte, v string) []byte     { return append(putHead(b, majText, uint64(len(v))), v...) }
func putID(b []byte, v api.DeviceID) []byte { return putBytes(b, v[:]) }

// reader walks over CBOR. The first fault sticks; results after it are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", errWire, what)
	}
	r.b = nil
}

// head reads the next head. info 31 (indefinite length) is refused.
func (r *reader) head() (major byte, n uint64) {
	if len(r.b) == 0 {
		r.fail("cut short")
		return 0, 0
	}
	major, n = r.b[0]&0xe0, uint64(r.b[0]&0x1f)
	r.b = r.b[1:]
	if n < 24 {
		return major, n
	}
	size := 1 << (n - 24)
	if n > 27 || len(r.b) < size {
		r.fail("bad head")
		return 0, 0
	}
	n = 0
	for _, c := range r.b[:size] {
		n = n<<8 | uint64(c)
	}
	r.b = r.b[size:]
	return major, n
}

func (r *reader) expect(major byte, what string) uint64 {
	m, n := r.head()
	if m != major {
		r.fail(what + " expected")
		return 0
	}
	return n
}

func (r *reader) uint() uint64 { return r.expect(majUint, "number") }

// array reads the head of an array. No array has more items than bytes follow.
func (r *reader) array() int {
	n := r.expect(majArray, "array")
	if n > uint64(len(r.b)) {
		r.fail("array longer than the frame")
		return 0
	}
	return int(n)
}

func (r *reader) string(major byte, limit int) []byte {
	n := r.expect(major, "string")
	if n > uint64(len(r.b)) || n > uint64(limit) {
		r.fail("string too long")
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) bytes(limit int) []byte { return r.string(majBytes, limit) }
func (r *reader) text(limit int) string  { return string(r.string(majText, limit)) }

func (r *reader) id() (id api.DeviceID) {
	b := r.bytes(len(id))
	if len(b) != len(id) && r.err == nil {
		r.fail("device id expected")
		return id
	}
	copy(id[:], b)
	return id
}

// null consumes a null if it is next.
func (r *reader) null() bool {
	if len(r.b) > 0 && r.b[0] == cborNull {
		r.b = r.b[1:]
		return true
	}
	return false
}

// raw takes one whole item, whatever it is, nested at most depth levels.
func (r *reader) raw(depth int) []byte {
	start := r.b
	r.skip(depth)
	if r.err != nil {
		return nil
	}
	n := len(start) - len(r.b)
	return start[:n:n]
}

func (r *reader) skip(depth int) {
	if depth < 0 {
		r.fail("nested too deep")
		return
	}
	major, n := r.head()
	if r.err != nil {
		return
	}
	switch major {
	case majBytes, majText:
		if n > uint64(len(r.b)) {
			r.fail("string too long")
			return
		}
		r.b = r.b[n:]
	case majArray, majMap:
		if major == majMap {
			n *= 2
		}
		if n > uint64(len(r.b)) {
			r.fail("longer than the frame")
			return
		}
		for ; n > 0 && r.err == nil; n-- {
			r.skip(depth - 1)
		}
	case majTag:
		r.skip(depth - 1)
	}
}

func putUvarint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }
