// Package gpud answers: how does the agent, which has no C in it, speak with NVIDIA's library?
//
// Through a program of its own, gpud, that is started where there is a card of NVIDIA's. The
// two exchange frames over its standard input and output: a length of four bytes, big end
// first, then one message in CBOR of at most MaxFrame bytes. The agent asks and gpud answers,
// in any order, by number; an answer with number 0 is an event that nobody asked for. The
// first question must be OpHello: two versions that differ end there, with words.
package gpud

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"tributary.dev/tributary/pkg/api"
)

// Version is of the protocol. Fields may be added under it; what changes meaning raises it.
const Version = 1

// MaxFrame bounds a message: 16 cards in all detail take 60 KiB.
const MaxFrame = 1 << 20

// Op is what is asked.
type Op string

// The questions. Those that change a card may be asked again when the answer was lost: read
// the layout first, and go on from what it says.
const (
	OpHello   Op = "hello"   // Version in, Hello out
	OpCards   Op = "cards"   // Cards out
	OpLayout  Op = "layout"  // Card in, MIG out
	OpCreate  Op = "create"  // Card, Profile, At in, Instance out; not idempotent: the driver refuses a second one there
	OpDestroy Op = "destroy" // Card, Instance in; a slice that is gone is no fault
	OpSetMIG  Op = "set-mig" // Card, On in, MIG out: Enabled is the mode in force, Pending that after a reset
	OpSample  Op = "sample"  // Samples out
	OpCompute Op = "compute" // Card, Mode in: who may use it at once
)

// Request is one question.
type Request struct {
	ID       uint64           `cbor:"1,keyasint"`
	Op       Op               `cbor:"2,keyasint"`
	Version  int              `cbor:"3,keyasint,omitempty"`
	Card     string           `cbor:"4,keyasint,omitempty"` // UUID
	Profile  int              `cbor:"5,keyasint,omitempty"`
	At       api.MIGPlacement `cbor:"6,keyasint,omitempty"`
	Instance int              `cbor:"7,keyasint,omitempty"`
	On       bool             `cbor:"8,keyasint,omitempty"`
	// Mode is a compute mode, in nvidia-smi's word: Default, Exclusive_Process, Prohibited.
	Mode string `cbor:"9,keyasint,omitempty"`
}

// Reply is an answer, or an event.
type Reply struct {
	ID       uint64           `cbor:"1,keyasint"`
	Fault    *Fault           `cbor:"2,keyasint,omitempty"`
	Hello    *Hello           `cbor:"3,keyasint,omitempty"`
	Cards    []Card           `cbor:"4,keyasint,omitempty"`
	MIG      *api.MIG         `cbor:"5,keyasint,omitempty"`
	Instance *api.MIGInstance `cbor:"6,keyasint,omitempty"`
	Samples  []Sample         `cbor:"7,keyasint,omitempty"`
	Event    *Event           `cbor:"8,keyasint,omitempty"`
}

// Fault is why a question was not answered as hoped.
type Fault struct {
	Code    api.Code `cbor:"1,keyasint"`
	Message string   `cbor:"2,keyasint"`
	Remedy  string   `cbor:"3,keyasint,omitempty"`
}

func (f *Fault) err() error { return &api.Error{Code: f.Code, Message: f.Message, Remedy: f.Remedy} }

// Hello is what gpud says of itself.
type Hello struct {
	Version int    `cbor:"1,keyasint"`
	Driver  string `cbor:"2,keyasint,omitempty"`
	Library string `cbor:"3,keyasint,omitempty"`
	// CUDA is 1000 times the major and 10 times the minor version.
	CUDA int `cbor:"4,keyasint,omitempty"`
}

// Card is one card with all that the library tells of it.
type Card struct {
	Accelerator api.Accelerator `cbor:"1,keyasint"`
	// Details are the fields of `nvidia-smi -q -x`, by their path below <gpu>, in its words:
	// "fb_memory_usage/total": "81559 MiB".
	Details map[string]string `cbor:"2,keyasint,omitempty"`
}

// Sample is what one card or slice used, at one time.
type Sample struct {
	Card  string `cbor:"1,keyasint"`
	Slice string `cbor:"2,keyasint,omitempty"` // UUID of the slice; empty: the whole card
	Time  int64  `cbor:"3,keyasint"`           // Unix milliseconds, by the clock of the box
	// MemoryMiB is in use; Percent is the part of the time in which a kernel ran, -1 unknown.
	MemoryMiB int64 `cbor:"4,keyasint"`
	Percent   int   `cbor:"5,keyasint"`
	// EnergyMJ is what the card has used since the driver was loaded, in thousandths of a
	// joule; 0 unknown. Slices have none of their own: accel.Meter parts it.
	EnergyMJ uint64 `cbor:"6,keyasint,omitempty"`
	PowerMW  uint32 `cbor:"7,keyasint,omitempty"`
	Celsius  int    `cbor:"8,keyasint,omitempty"`
	// Processes are those that run on it, by number.
	Processes []uint32 `cbor:"9,keyasint,omitempty"`
}

// Event is what a card tells by itself.
type Event struct {
	Card string    `cbor:"1,keyasint"`
	Kind EventKind `cbor:"2,keyasint"`
	// Xid is NVIDIA's number of the fault (Xid Errors, in the driver's documentation).
	Xid uint64 `cbor:"3,keyasint,omitempty"`
	// Instance is the GPU instance that it is about, where the driver tells one; -1 otherwise.
	Instance int   `cbor:"4,keyasint"`
	Time     int64 `cbor:"5,keyasint"`
}

// EventKind is a sort of event.
type EventKind string

// The sorts of events.
const (
	EventXid         EventKind = "xid"
	EventECCSingle   EventKind = "ecc-corrected"
	EventECCDouble   EventKind = "ecc-uncorrected"
	EventUnavailable EventKind = "unavailable" // fallen off the bus
)

// ErrFrame says that what came is no frame of this protocol; the connection is of no more use.
var ErrFrame = errors.New("gpud: no frame of this protocol")

var (
	encoder = mustEncoder()
	decoder = mustDecoder()
)

func mustEncoder() cbor.EncMode {
	m, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}

// maxNested is how deep a message may go: a place of a profile of a card's MIG, in an answer, lies nine deep.
const maxNested = 12

func mustDecoder() cbor.DecMode {
	m, err := cbor.DecOptions{MaxNestedLevels: maxNested, MaxArrayElements: 4096, MaxMapPairs: 4096, DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}

// Write sends one message, in one call of w.Write.
func Write(w io.Writer, message any) error {
	body, err := encoder.Marshal(message)
	if err != nil {
		return fmt.Errorf("gpud: %w", err)
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("gpud: a message of %d bytes is too large", len(body))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...))
	return err
}

// Read takes one message in. io.EOF means that the other end closed between two messages.
func Read(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame { // check: frame size
		return fmt.Errorf("%w: it says that it has %d bytes", ErrFrame, n)
	}
	body, err := readBounded(r, int(n))
	if err != nil {
		return err
	}
	if err := decoder.Unmarshal(body, message); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}

// readBounded takes no more memory than what really comes.
func readBounded(r io.Reader, n int) ([]byte, error) {
	var body []byte
	for len(body) < n {
		part := min(n-len(body), 64<<10)
		body = append(body, make([]byte, part)...)
		if _, err := io.ReadFull(r, body[len(body)-part:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return body, nil
}
