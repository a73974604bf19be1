package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"os"
)

// ErrCorrupt is wrapped by every finding of Check.
var ErrCorrupt = errors.New("state file is corrupt")

// Bounds of what Check follows.
const (
	maxDepth    = 32
	maxPageSize = 64 << 10
	maxFile     = 1 << 30
	noFreelist  = ^uint64(0)
)

// The layout of bbolt's file, version 2 (go.etcd.io/bbolt, internal/common).
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2
	headerLen   = 16
	elementLen  = 16
	metaLen     = 64
	branchPage  = 0x01
	leafPage    = 0x02
	bucketFlag  = 0x01
)

// CheckFile is Check of a file by name.
func CheckFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return Check(f, info.Size())
}

// Check reads a whole bbolt file without mapping it and without trusting it, and
// verifies the checksums of this package's own pairs. bbolt's own check is not used:
// it maps the file, and a wild page number there ends the process by a signal.
// Findings wrap ErrCorrupt; other errors are those of reading.
func Check(r io.ReaderAt, size int64) error {
	if size > maxFile {
		return fmt.Errorf("%w: %d bytes are too many", ErrCorrupt, size)
	}
	m, err := newestMeta(r, size)
	if err != nil {
		return err
	}
	if m.freelist != noFreelist {
		return fmt.Errorf("%w: it holds a free list, which this program never writes", ErrCorrupt)
	}
	if m.pages > uint64(size)/uint64(m.pageSize) {
		return fmt.Errorf("%w: cut short: %d of %d pages", ErrCorrupt, uint64(size)/uint64(m.pageSize), m.pages)
	}
	w := walker{r: r, meta: m, seen: make([]bool, m.pages)}
	return w.page(m.root, 0, scope{}, nil, nil)
}

type meta struct {
	pageSize              uint32
	root, freelist, pages uint64
	tx                    uint64
}

// newestMeta finds the newer of the two meta pages that are whole.
func newestMeta(r io.ReaderAt, size int64) (meta, error) {
	var best meta
	for at := int64(0); at <= maxPageSize && at+headerLen+metaLen <= size; at = max(1024, at*2) {
		var b [metaLen]byte
		if _, err := r.ReadAt(b[:], at+headerLen); err != nil {
			return best, err
		}
		m, ok := readMeta(b[:])
		if ok && (at == 0 || at == int64(m.pageSize)) && (best.pageSize == 0 || m.tx > best.tx) {
			best = m
		}
	}
	if best.pageSize == 0 {
		return best, fmt.Errorf("%w: no meta page is whole", ErrCorrupt)
	}
	return best, nil
}

func readMeta(b []byte) (m meta, ok bool) {
	le := binary.LittleEndian
	sum := fnv.New64a()
	sum.Write(b[:56])
	if le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion || sum.Sum64() != le.Uint64(b[56:]) {
		return m, false
	}
	m = meta{pageSize: le.Uint32(b[8:]), root: le.Uint64(b[16:]), freelist: le.Uint64(b[32:]), pages: le.Uint64(b[40:]), tx: le.Uint64(b[48:])}
	return m, m.pageSize >= 1024 && m.pageSize <= maxPageSize && m.pageSize&(m.pageSize-1) == 0
}

type walker struct {
	r    io.ReaderAt
	meta meta
	seen []bool
}

// scope is where in the file a page lies: which top bucket, how deep in buckets.
type scope struct {
	level  int // 0: the root, whose pairs are buckets
	bucket []byte
}

func (w *walker) fault(page uint64, format string, args ...any) error {
	return fmt.Errorf("%w: page %d: %s", ErrCorrupt, page, fmt.Sprintf(format, args...))
}

// page checks one page and all below it. Its keys must lie in [low, high).
func (w *walker) page(id uint64, depth int, in scope, low, high []byte) error {
	if id < 2 || id >= w.meta.pages || depth > maxDepth {
		return w.fault(id, "out of range")
	}
	size := int(w.meta.pageSize)
	head := make([]byte, size)
	if _, err := w.r.ReadAt(head, int64(id)*int64(size)); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	le := binary.LittleEndian
	if le.Uint64(head) != id {
		return w.fault(id, "is numbered %d", le.Uint64(head))
	}
	over := uint64(le.Uint32(head[12:]))
	if over >= w.meta.pages-id {
		return w.fault(id, "runs past the end")
	}
	for p := id; p <= id+over; p++ {
		if w.seen[p] {
			return w.fault(p, "is used twice")
		}
		w.seen[p] = true
	}
	if over > 0 {
		head = append(head, make([]byte, int(over)*size)...)
		if _, err := w.r.ReadAt(head[size:], int64(id+1)*int64(size)); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
	}
	return w.content(id, head, depth, in, low, high)
}

// content checks the elements of a page, or of a small bucket that lies within a value.
func (w *walker) content(id uint64, b []byte, depth int, in scope, low, high []byte) error {
	le := binary.LittleEndian
	flags, count := le.Uint16(b[8:]), int(le.Uint16(b[10:]))
	if headerLen+count*elementLen > len(b) {
		return w.fault(id, "%d elements do not fit", count)
	}
	if flags == branchPage && count == 0 || flags != branchPage && flags != leafPage {
		return w.fault(id, "is of type %#x with %d elements", flags, count)
	}
	keys := make([][]byte, count)
	for i := range count {
		at := headerLen + i*elementLen
		e := b[at:]
		pos, ksize := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:]))
		if flags == leafPage {
			pos, ksize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:]))
		}
		if uint64(at)+pos+ksize > uint64(len(b)) {
			return w.fault(id, "key %d does not fit", i)
		}
		keys[i] = b[uint64(at)+pos:][:ksize]
		if i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0 || low != nil && bytes.Compare(keys[i], low) < 0 || high != nil && bytes.Compare(keys[i], high) >= 0 {
			return w.fault(id, "key %d is out of order", i)
		}
	}
	for i, key := range keys {
		e := b[headerLen+i*elementLen:]
		if flags == branchPage {
			next := high
			if i+1 < count {
				next = keys[i+1]
			}
			if err := w.page(le.Uint64(e[8:]), depth+1, in, key, next); err != nil {
				return err
			}
			continue
		}
		pos, ksize, vsize := uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		if pos+ksize+vsize > uint64(len(e)) {
			return w.fault(id, "value %d does not fit", i)
		}
		if err := w.pair(id, le.Uint32(e), key, e[pos+ksize:][:vsize], depth, in); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) pair(id uint64, flags uint32, key, value []byte, depth int, in scope) error {
	switch {
	case flags == bucketFlag:
		return w.bucket(id, key, value, depth, in)
	case flags != 0:
		return w.fault(id, "pair with flags %#x", flags)
	case in.level == 0:
		return w.fault(id, "a pair outside of any bucket")
	case in.level == 1 && bytes.HasPrefix(in.bucket, []byte(ownPrefix)):
		if _, ok := unwrap(in.bucket, key, value); !ok {
			return w.fault(id, "a value of bucket %q does not match its checksum", in.bucket)
		}
	}
	return nil
}

func (w *walker) bucket(id uint64, key, value []byte, depth int, in scope) error {
	if len(value) < headerLen || depth > maxDepth {
		return w.fault(id, "a bucket of %d bytes", len(value))
	}
	inside := scope{level: in.level + 1, bucket: in.bucket}
	if in.level == 0 {
		inside.bucket = key
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return w.page(root, depth+1, inside, nil, nil)
	}
	if len(value) < 2*headerLen {
		return w.fault(id, "a small bucket of %d bytes", len(value))
	}
	return w.content(id, value[headerLen:], depth+1, inside, nil, nil)
}

// ownPrefix marks the top buckets whose values carry a checksum.
const ownPrefix = "kv:"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wrap puts a checksum over bucket, key and value before the value.
func wrap(bucket, key, value []byte) []byte {
	out := make([]byte, 4, 4+len(value))
	binary.LittleEndian.PutUint32(out, checksum(bucket, key, value))
	return append(out, value...)
}

// unwrap is the inverse; the value aliases b.
func unwrap(bucket, key, b []byte) ([]byte, bool) {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != checksum(bucket, key, b[4:]) {
		return nil, false
	}
	return b[4:], true
}

func checksum(bucket, key, value []byte) uint32 {
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], uint32(len(key)))
	sum := crc32.Update(0, castagnoli, bucket)
	sum = crc32.Update(sum, castagnoli, n[:])
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, value)
}
