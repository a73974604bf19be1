package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// secureBoot is the PCR of the firmware's keys.
const secureBoot = 7

// vendors are those of the variables that PCR 7 is measured of, as they lie in memory.
var vendors = map[string][16]byte{
	"KEK": {0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c},
	"db":  {0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f},
	"dbx": {0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f},
}

// Change is what is different in the start that is foretold.
type Change struct {
	// Variables are the whole contents of KEK, db and dbx; those that are left out stay as they were measured.
	Variables map[string][]byte
	// Booted are the entries of db (EFI_SIGNATURE_DATA: owner and certificate) by which the firmware let this start's boot
	// manager and kernel image through, in this order; Boots are those of the start that is foretold.
	Booted, Boots [][]byte
}

// variable is UEFI_VARIABLE_DATA, of whose bytes the digest of an event is.
func variable(name string, content []byte) []byte {
	units := utf16.Encode([]rune(name))
	id := vendors[name]
	b := binary.LittleEndian.AppendUint64(id[:], uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(content)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, content...)
}

// named tells whether that is this variable's.
func named(data []byte, name string) bool {
	want := variable(name, nil)
	const sizes = 16 + 8
	return len(data) >= len(want) && bytes.Equal(data[:sizes], want[:sizes]) && bytes.Equal(data[sizes+8:len(want)], want[sizes+8:])
}

func measured(kind uint32, data []byte) Event {
	d := sha256.Sum256(data)
	return Event{PCR: secureBoot, Kind: kind, Digest: d[:], Data: data}
}

// Foretell gives the PCR 7 of another start from the log of this one. An error means that the firmware measures in a way
// that is not known here: nothing is foretold then.
func Foretell(log []Event, c Change) (pcr7 [32]byte, err error) {
	events, err := Of(log, secureBoot)
	if err != nil {
		return pcr7, err
	}
	events, err = started(events, c.Booted)
	if err != nil {
		return pcr7, err
	}
	for name, content := range c.Variables {
		if _, ok := vendors[name]; !ok {
			return pcr7, fmt.Errorf("the variable %s is none that is foretold", name)
		}
		at := slices.IndexFunc(events, func(e Event) bool { return e.Kind == VariableConfig && named(e.Data, name) })
		if at < 0 { // check: measured
			return pcr7, fmt.Errorf("the firmware's log has no measurement of %s", name)
		}
		if was := measured(VariableConfig, events[at].Data); !bytes.Equal(was.Digest, events[at].Digest) { // check: form
			return pcr7, fmt.Errorf("the firmware measures %s in a way that is not known", name)
		}
		events[at] = measured(VariableConfig, variable(name, content))
	}
	return Replay(starts(events, c.Boots)), nil
}

func authority(entry []byte) Event { return measured(Authority, variable("db", entry)) }

// starts adds what the firmware measures as it lets through what it starts: each entry once in a start (UEFI's EDK2 and
// the profile, 3.3.4.8, say so of all that it starts, cards' programs too).
func starts(events []Event, by [][]byte) []Event {
	for _, entry := range by {
		e := authority(entry)
		if !slices.ContainsFunc(events, func(old Event) bool { return old.Kind == Authority && bytes.Equal(old.Digest, e.Digest) }) {
			events = append(events, e)
		}
	}
	return events
}

// started takes that off again: what is left is the same whatever the firmware starts then.
func started(events []Event, by [][]byte) ([]Event, error) {
	// What a card's program was let through by already is not measured again: then the separator, or a card's, is last.
	if n := len(events); n == 0 || events[n-1].Kind != Authority && events[n-1].Kind != separator { // check: last
		return nil, errors.New("the firmware's log does not end with the key that let something through")
	}
	for n := min(len(by), len(events)); n >= 0; n-- {
		left := slices.Clone(events[:len(events)-n])
		again := starts(slices.Clone(left), by)
		if len(again) == len(events) && Replay(again) == Replay(events) {
			return left, nil
		}
	}
	return nil, errors.New("the firmware's log does not end with the keys that let the boot manager and the kernel image through")
}
