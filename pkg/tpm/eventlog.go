package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// EventLog is where the kernel shows the firmware's log of what was measured before it.
const EventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

const (
	maxEventLog = 1 << 20
	maxEvents   = 8192
	noAction    = 3 // EV_NO_ACTION: told, not measured
	sha256Alg   = 0x000b
)

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
	out := c.b[:n]
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

// ParseEventLog takes the SHA-256 digests that went into one PCR out of a firmware's log of at
// most 1 MiB, in their order (TCG PC Client Platform Firmware Profile, 10.2: the crypto agile
// form). Nothing vouches for a log but that it leads to the PCR's value.
func ParseEventLog(b []byte, pcr uint) ([][]byte, error) {
	if len(b) > maxEventLog {
		return nil, fmt.Errorf("an event log of %d bytes: at most %d", len(b), maxEventLog)
	}
	c := &cursor{b: b}
	sizes, err := c.header()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for n := 0; len(c.b) > 0; n++ {
		if n == maxEvents {
			return nil, fmt.Errorf("an event log of more than %d events", maxEvents)
		}
		index, kind, digest := c.event(sizes)
		if c.bad {
			return nil, errLog
		}
		if uint(index) != pcr || kind == noAction {
			continue
		}
		if digest == nil {
			return nil, fmt.Errorf("an event of PCR %d has no SHA-256 digest", pcr)
		}
		out = append(out, bytes.Clone(digest))
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

func (c *cursor) event(sizes map[uint16]uint16) (pcr, kind uint32, digest []byte) {
	pcr, kind = c.u32(), c.u32()
	n := c.u32()
	if n > uint32(len(sizes)) {
		c.bad = true
		return 0, 0, nil
	}
	for range n {
		alg := c.u16()
		size, ok := sizes[alg]
		if !ok {
			c.bad = true
			return 0, 0, nil
		}
		if d := c.take(uint32(size)); alg == sha256Alg {
			digest = d
		}
	}
	c.take(c.u32())
	return pcr, kind, digest
}
