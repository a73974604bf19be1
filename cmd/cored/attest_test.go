package main

import (
	"errors"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	judge "tributary.dev/tributary/pkg/tpm/attest"
)

// TestTalk: a report comes in pieces, is read once, and has an end.
func TestTalk(t *testing.T) {
	var heard []string
	one := &talk{heard: func(line []byte) error { heard = append(heard, string(line)); return nil }}
	for _, part := range []string{`{"a`, `":1}`, "\n", "more\n"} {
		if n, err := one.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if !one.done || len(heard) != 1 || heard[0] != `{"a":1}` {
		t.Errorf("%q", heard)
	}
	long := &talk{heard: func([]byte) error { return errors.New("heard") }}
	if _, err := long.Write([]byte(strings.Repeat("x", judge.MaxReport+1))); api.CodeOf(err) != api.TooLarge || long.done {
		t.Errorf("a report without end: %v", err)
	}
}

// TestBusy: a device is asked one question at a time, and once more if it came again meanwhile.
func TestBusy(t *testing.T) {
	b, id := &busy{more: map[api.DeviceID]bool{}}, api.DeviceID{1}
	if !b.begin(id) || b.begin(id) || b.begin(id) || !b.begin(api.DeviceID{2}) {
		t.Error("two questions at once")
	}
	if !b.end(id) || !b.begin(id) || b.end(id) {
		t.Error("not asked once more, or more than once")
	}
}
