// Package record answers: what is a batch of records, who signed it, and what follows it?
//
// A device numbers its records without gaps and chains them: the chain value
// after record n is a hash over the value before and the record itself. A batch
// is a run of records with one signature by the device. Because the chain goes
// from record to record and not from batch to batch, a device may cut the same
// records into other batches after a restart and still be the same device; only
// other content under the same number is a fork.
//
// What both ends know already is signed and not sent: the device's id always, and
// the chain value before the batch on the first try. A retry carries it, so that
// the core can tell a repeat, a gap and a fork apart without any context.
package record

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"tributary.dev/tributary/pkg/api"
)

// Lost is the kind of a record that stands for records which the device gave up.
// It has no payload.
const Lost api.RecordKind = 255

// Bounds of every decoder in this package.
const (
	MaxPayload = 64 << 10  // bytes of one record
	MaxBatch   = 512 << 10 // bytes of one batch on the wire
	MaxBody    = 2 << 20   // bytes of a batch's records once decompressed
	MaxRecords = 16 << 10  // records in one batch
	MaxAck     = 512       // bytes of one acknowledgement
)

// Errors that callers tell apart.
var (
	// ErrSignature means that the bytes are not what the key signed, or that the
	// chain value before them is another one than assumed.
	ErrSignature = errors.New("signature does not match")
	// ErrMalformed means that the bytes are no batch or acknowledgement at all.
	ErrMalformed = errors.New("malformed")
)

// PoisonError tells that a batch is truly signed by its device and yet cannot be
// read. Its numbers are known, so it can be set aside and acknowledged.
type PoisonError struct {
	Header Header
	Err    error
}

func (e *PoisonError) Error() string {
	return fmt.Sprintf("records %d to %d are unreadable: %v", e.Header.First, e.Header.Last, e.Err)
}

func (e *PoisonError) Unwrap() error { return e.Err }

// Record is one entry of a device's log.
type Record struct {
	// Seq numbers the record. Last is Seq, or higher when the record stands for all
	// of Seq..Last: intervals that were summed, or records that were lost.
	Seq, Last uint64
	Kind      api.RecordKind
	Payload   []byte
	// End is the chain value after Last as it was before records were summed or lost,
	// so that the chain behind them stands. It is zero when the record is itself.
	End Hash

	usage *api.Usage // the payload decoded, when the packing gave it so
}

// Usage decodes the payload of a usage record.
func (r *Record) Usage() (api.Usage, error) {
	if r.usage != nil {
		return *r.usage, nil
	}
	return DecodeUsage(r.Payload)
}

// Stands reports whether r stands for other records, and so carries End.
func (r *Record) Stands() bool { return r.Last > r.Seq || r.Kind == Lost }

// Hash is a chain value: the first 16 bytes of a SHA-256. Zero is the value before
// a spool epoch's first record.
type Hash [16]byte

// IsZero reports whether h stands before a first record.
func (h Hash) IsZero() bool { return h == Hash{} }

// Next returns the chain value after r.
func (h Hash) Next(r Record) Hash {
	if r.Stands() {
		return r.End
	}
	var fixed [len(h) + 1 + 16]byte
	copy(fixed[:], h[:])
	fixed[len(h)] = byte(r.Kind)
	binary.BigEndian.PutUint64(fixed[len(h)+1:], r.Seq)
	binary.BigEndian.PutUint64(fixed[len(h)+9:], r.Last)
	return h.next(r, fixed[:])
}

func (h Hash) next(r Record, fixed []byte) (out Hash) {
	var sum [sha256.Size]byte
	if len(r.Payload) <= 512 {
		// One call on the stack is a third of the price of a hash.Hash.
		var buf [33 + 512]byte
		n := copy(buf[:], fixed)
		n += copy(buf[n:], r.Payload)
		sum = sha256.Sum256(buf[:n])
	} else {
		d := sha256.New()
		d.Write(fixed)
		d.Write(r.Payload)
		d.Sum(sum[:0])
	}
	copy(out[:], sum[:])
	return out
}

// LostRange makes the record that stands for first..last when h is the chain value
// after last.
func LostRange(first, last uint64, h Hash) Record {
	return Record{Seq: first, Last: last, Kind: Lost, End: h}
}

// Chain returns the chain value after all of rs, given the one before.
func Chain(prev Hash, rs []Record) Hash {
	for _, r := range rs {
		prev = prev.Next(r)
	}
	return prev
}
