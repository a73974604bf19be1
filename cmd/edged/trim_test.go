package main

import (
	"reflect"
	"testing"
)

func TestReadOnlySegments(t *testing.T) {
	got := readOnlySegments([]byte(`00400000-01100000 r-xp 00000000 fe:01 12 /usr/bin/edged
01100000-02000000 r--p 00d00000 fe:01 12                  /usr/bin/edged
02000000-02100000 rw-p 01c00000 fe:01 12                  /usr/bin/edged
7f0000000000-7f0000010000 r-xp 00000000 fe:01 13          /usr/lib/libc.so
c000000000-c000400000 rw-p 00000000 00:00 0
7fff0000-7fff1000 r-xp 00000000 00:00 0                   [vdso]
nonsense
`), "/usr/bin/edged")
	if want := []segment{{0x400000, 0x1100000}, {0x1100000, 0x2000000}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestDropText runs on with its text given back.
func TestDropText(t *testing.T) {
	for range 3 {
		if err := dropText(); err != nil {
			t.Fatal(err)
		}
		TestReadOnlySegments(t)
	}
}

func FuzzReadOnlySegments(f *testing.F) {
	f.Add([]byte("00400000-01100000 r-xp 00000000 fe:01 12 /x\n"))
	f.Fuzz(func(t *testing.T, maps []byte) {
		for _, s := range readOnlySegments(maps, "/x") {
			if s.from >= s.to {
				t.Fatal("empty segment")
			}
		}
	})
}
