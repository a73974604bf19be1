package tpm

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/tpm/attest"
	"tributary.dev/tributary/pkg/tpm/eventlog"
)

const sha256Bank = 0x000b

// eventLog is a firmware's log with SHA-1 and SHA-256 digests: events of PCR 4, one that is only
// told, and those given of PCR 11.
func eventLog(events ...string) []byte {
	u16, u32 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = u32(spec, 2)
	spec = u16(u16(spec, 4), 20)
	spec = append(u16(u16(spec, sha256Bank), 32), 0)
	b := append(u32(u32(nil, 0), eventlog.NoAction), make([]byte, 20)...)
	b = append(u32(b, uint32(len(spec))), spec...)
	add := func(pcr, kind uint32, event string) {
		b = u32(u32(u32(b, pcr), kind), 2)
		b = append(u16(b, 4), make([]byte, 20)...)
		b = append(u16(b, sha256Bank), attest.Event([]byte(event))...)
		b = append(u32(b, uint32(len(event))), event...)
	}
	add(4, 0x80000003, "boot loader")
	add(PCRKernel, eventlog.NoAction, "told")
	for _, e := range events {
		add(PCRKernel, 0xd, e)
	}
	return b
}

func TestParseEventLog(t *testing.T) {
	b := eventLog(v1, v2)
	log, err := ParseEventLog(b, PCRKernel)
	if err != nil || !slices.EqualFunc(log, kernelLog(v1, v2), bytes.Equal) {
		t.Fatalf("%x, %v", log, err)
	}
	if attest.Replay(log) != extended(v1, v2) {
		t.Error("the log leads elsewhere")
	}
	whole := len(eventLog(v1))
	for n := range b {
		got, err := ParseEventLog(b[:n], PCRKernel)
		if err == nil && n != whole && len(got) > 0 {
			t.Errorf("cut to %d bytes, %d events are read", n, len(got))
		}
	}
}

func FuzzParseEventLog(f *testing.F) {
	f.Add(eventLog(v1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := ParseEventLog(b, PCRKernel)
		for _, d := range log {
			if err != nil || len(d) != 32 {
				t.Error("a digest of another length")
			}
		}
	})
}
