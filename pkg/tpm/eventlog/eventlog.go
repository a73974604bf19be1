// Package eventlog answers: what did the firmware measure before the system ran, and what will it
// measure once its keys, or the key that signed what it starts, are others?
//
// It reads the firmware's log (TCG PC Client Platform Firmware Profile, 10.2: the crypto agile
// form) and foretells PCR 7 by replaying it with what is different (3.3.4.8 there). Nothing
// vouches for a log but that it leads to the PCR's value.
package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// File is where the kernel shows the firmware's log.
const File = "/sys/kernel/security/tpm0/binary_bios_measurements"

// Kinds of events.
const (
	NoAction       = 3 // told, not measured
	separator      = 4
	VariableConfig = 0x80000001
	Authority      = 0x800000e0
)

const (
	maxLog    = 1 << 20
	maxEvents = 8192
	sha256Alg = 0x000b
)

// Event is one measurement. Digest is SHA-256's, nil where the firmware made none; Data is what
// the firmware tells of it.
type Event struct {
	PCR, Kind    uint32
	Digest, Data []byte
}

// cursor takes little-endian fields from the front; it stays at its first error.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n uint32) []byte {
	if c.bad || uint64(n) > uint64(len(c.b)) {
		c.bad = true
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

var errLog = errors.New("the event log is cut short or malformed")

// Parse reads a log of at most 1 MiB and 8,192 events. The events lie in b.
func Parse(b []byte) ([]Event, error) {
	if len(b) > maxLog {
		return nil, fmt.Errorf("an event log of %d bytes: at most %d", len(b), maxLog)
	}
	c := &cursor{b: b}
	sizes, err := c.header()
	if err != nil {
		return nil, err
	}
	var out []Event
	for len(c.b) > 0 {
		if len(out) == maxEvents {
			return nil, fmt.Errorf("an event log of more than %d events", maxEvents)
		}
		e := c.event(sizes)
		if c.bad {
			return nil, errLog
		}
		out = append(out, e)
	}
	return out, nil
}

// header reads the log's first event, which has the old form and names the digests of the others.
func (c *cursor) header() (sizes map[uint16]uint16, err error) {
	c.take(4 + 4 + 20) // PCR, type, an empty SHA-1 digest
	spec := &cursor{b: c.take(c.u32())}
	if c.bad || !bytes.Equal(spec.take(16), []byte("Spec ID Event03\x00")) {
		return nil, errors.New("the event log is not of the form with several digests")
	}
	spec.take(4 + 4) // platform class, versions, size of a word
	n := spec.u32()
	if spec.bad || n == 0 || n > 16 {
		return nil, errLog
	}
	sizes = map[uint16]uint16{}
	for range n {
		alg, size := spec.u16(), spec.u16()
		if spec.bad || size == 0 || size > 64 || alg == sha256Alg && size != 32 {
			return nil, errLog
		}
		sizes[alg] = size
	}
	return sizes, nil
}

func (c *cursor) event(sizes map[uint16]uint16) (e Event) {
	e.PCR, e.Kind = c.u32(), c.u32()
	n := c.u32()
	if n > uint32(len(sizes)) {
		c.bad = true
		return e
	}
	for range n {
		alg := c.u16()
		size, ok := sizes[alg]
		if !ok {
			c.bad = true
			return e
		}
		if d := c.take(uint32(size)); alg == sha256Alg {
			e.Digest = d
		}
	}
	e.Data = c.take(c.u32())
	return e
}

// Of gives the measurements of one PCR, in their order.
func Of(events []Event, pcr uint32) ([]Event, error) {
	var out []Event
	for _, e := range events {
		if e.PCR != pcr || e.Kind == NoAction {
			continue
		}
		if e.Digest == nil {
			return nil, fmt.Errorf("an event of PCR %d has no SHA-256 digest", pcr)
		}
		out = append(out, e)
	}
	return out, nil
}

// Replay is the value of a PCR to which these measurements lead.
func Replay(events []Event) (pcr [32]byte) {
	for _, e := range events {
		pcr = sha256.Sum256(append(pcr[:], e.Digest...))
	}
	return pcr
}
