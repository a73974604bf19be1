package main

import (
	"os"
	"path/filepath"
	"testing"
)

// What the kernel's stub did not find out, the firmware is asked.
func TestStubSays(t *testing.T) {
	page := func(b byte) []byte {
		out := make([]byte, 4096)
		out[0x1ec] = b
		return out
	}
	for name, c := range map[string]struct {
		text      []byte
		on, known bool
	}{
		"enforced": {page(3), true, true},
		"off":      {page(2), false, true},
		"unknown":  {page(1), false, false},
		"unset":    {page(0), false, false},
		"short":    {page(3)[:0x1ec], false, false},
	} {
		file := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(file, c.text, 0o644); err != nil {
			t.Fatal(err)
		}
		if on, known := stubSays(file); on != c.on || known != c.known {
			t.Errorf("%s: %v, %v", name, on, known)
		}
	}
	if on, known := stubSays(filepath.Join(t.TempDir(), "none")); on || known {
		t.Errorf("no such page: %v, %v", on, known)
	}
}
