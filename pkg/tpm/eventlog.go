package tpm

import (
	"bytes"

	"tributary.dev/tributary/pkg/tpm/eventlog"
)

// EventLog is where the kernel shows the firmware's log of what was measured before it.
const EventLog = eventlog.File

// ParseEventLog takes the SHA-256 digests that went into one PCR out of a firmware's log of at
// most 1 MiB, in their order.
func ParseEventLog(b []byte, pcr uint) ([][]byte, error) {
	events, err := eventlog.Parse(b)
	if err != nil {
		return nil, err
	}
	if events, err = eventlog.Of(events, uint32(pcr)); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range events {
		out = append(out, bytes.Clone(e.Digest))
	}
	return out, nil
}
