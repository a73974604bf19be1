package efivar

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tributary.dev/tributary/pkg/disk/gpt"
)

func TestOrderAndNext(t *testing.T) {
	dir := t.TempDir()
	v := Open(dir)
	if err := v.Usable(); err != nil {
		t.Fatal(err)
	}
	if order, err := v.Order(); err != nil || len(order) != 0 {
		t.Fatalf("%v %v", order, err)
	}
	// as a firmware wrote it: the CD, the network, the shell
	if err := os.WriteFile(filepath.Join(dir, "BootOrder-"+global), []byte{7, 0, 0, 0, 3, 0, 1, 0, 0, 0}, 0o600); err != nil {
		t.Fatal(err)
	}
	entry := func(name string, n uint32) Entry {
		return Entry{Name: name, Partition: n, Start: 2048, Count: 8192, ID: gpt.Named(name), File: `\EFI\BOOT\BOOTX64.EFI`}
	}
	a, err := v.Ensure(entry("Tributary A", 1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := v.Ensure(entry("Tributary B", 2))
	if err != nil || a == b {
		t.Fatalf("%d %d %v", a, b, err)
	}
	if again, err := v.Ensure(entry("Tributary A", 1)); err != nil || again != a {
		t.Fatalf("%d %v", again, err)
	}
	moved := entry("Tributary A", 1)
	moved.Start = 4096
	if again, err := v.Ensure(moved); err != nil || again != a {
		t.Fatalf("an entry that changed: %d %v", again, err)
	}
	if err := v.SetOrder(b, a); err != nil {
		t.Fatal(err)
	}
	if order, err := v.Order(); err != nil || !slices.Equal(order, []uint16{b, a, 3}) && !slices.Equal(order, []uint16{b, a, 3, 1, 0}) {
		t.Fatalf("%v %v", order, err)
	}
	if _, set, err := v.Next(); set || err != nil {
		t.Fatal(set, err)
	}
	if err := v.SetNext(b); err != nil {
		t.Fatal(err)
	}
	if n, set, err := v.Next(); !set || n != b || err != nil {
		t.Fatal(n, set, err)
	}
	for range 2 {
		if err := v.ClearNext(); err != nil {
			t.Fatal(err)
		}
	}
	if _, set, _ := v.Next(); set {
		t.Fatal("still set")
	}
}

// TestEncode holds an option against the bytes that the specification asks for, put down by hand.
func TestEncode(t *testing.T) {
	id, err := gpt.Parse("11223344-5566-7788-99aa-bbccddeeff00")
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		1, 0, 0, 0, 66, 0, 'A', 0, 0, 0,
		4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77,
		0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0, 2, 2,
		4, 4, 18, 0, '\\', 0, 'a', 0, '.', 0, 'e', 0, 'f', 0, 'i', 0, 0, 0, 0x7f, 0xff, 4, 0,
	}
	want[4] = byte(len(want) - 10)
	got := Entry{Name: "A", Partition: 1, Start: 2048, Count: 4096, ID: id, File: `\a.efi`}.encode()
	if !bytes.Equal(got, want) {
		t.Fatalf("\n%x\n%x", got, want)
	}
}

func FuzzDescription(f *testing.F) {
	f.Add(Entry{Name: "Tributary A", File: `\x`}.encode())
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := description(b); len(s) > 3*len(b) {
			t.Fatal("longer than what it was read from")
		}
	})
}
