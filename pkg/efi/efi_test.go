package efi

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/disk/gpt"
)

var part = gpt.Partition{Type: gpt.ESP, ID: gpt.Named("esp"), First: 2048, Last: 4095, Name: "esp-a"}

func TestOption(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Option{
			Active: rapid.Bool().Draw(t, "active"), Name: rapid.StringMatching(`[a-zA-Z ü]{0,20}`).Draw(t, "name"),
			Path: HardDrive(1, part, "EFI/BOOT/BOOTX64.EFI"), Data: []byte(rapid.StringN(0, 10, 40).Draw(t, "data")),
		}
		got, err := DecodeOption(o.Encode())
		if err != nil || got.Active != o.Active || got.Name != o.Name || !bytes.Equal(got.Path, o.Path) || !bytes.Equal(got.Data, o.Data) {
			t.Fatalf("%+v became %+v: %v", o, got, err)
		}
	})
	id, ok := PartitionOf(HardDrive(3, part, "x"))
	if !ok || id != part.ID {
		t.Errorf("the path leads to %s", id)
	}
}

// Any store: ours come first, the others keep their order, and doing it again changes nothing.
func TestEnsure(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) Variables{
		"memory": func(*testing.T) Variables { return Memory{} },
		"files":  func(t *testing.T) Variables { return FS(t.TempDir()) },
	} {
		t.Run(name, func(t *testing.T) {
			v := open(t)
			for n, name := range []string{"USB", "Net", "Tributary A"} {
				if err := v.Set(entryName(uint16(n)), Global, kept, Option{Active: true, Name: name, Path: []byte{0x7f, 0xff, 4, 0}}.Encode()); err != nil {
					t.Fatal(err)
				}
			}
			if err := SetOrder(v, []uint16{0, 2, 1}); err != nil {
				t.Fatal(err)
			}
			a := Option{Active: true, Name: "Tributary A", Path: HardDrive(1, part, "EFI/BOOT/BOOTX64.EFI")}
			b := Option{Active: true, Name: "Tributary B", Path: HardDrive(2, part, "EFI/BOOT/BOOTX64.EFI")}
			for range 2 {
				got, err := Ensure(v, a, b)
				if err != nil || !slices.Equal(got, []uint16{2, 3}) {
					t.Fatal(got, err)
				}
				order, err := Order(v)
				if err != nil || !slices.Equal(order, []uint16{2, 3, 0, 1}) {
					t.Fatal(order, err)
				}
			}
			if o, err := Entry(v, 2); err != nil || !bytes.Equal(o.Path, a.Path) {
				t.Error(o, err)
			}
			if err := SetNext(v, 3); err != nil {
				t.Fatal(err)
			}
			if _, next, err := v.Get("BootNext", Global); err != nil || !bytes.Equal(next, []byte{3, 0}) {
				t.Error(next, err)
			}
			if err := errors.Join(v.Delete("BootNext", Global), v.Delete("BootNext", Global)); err != nil {
				t.Error(err)
			}
			if _, _, err := v.Get("BootNext", Global); !errors.Is(err, ErrNone) {
				t.Error(err)
			}
			if _, err := Current(v); !errors.Is(err, ErrNone) {
				t.Error(err)
			}
		})
	}
}

func FuzzDecodeOption(f *testing.F) {
	f.Add(Option{Active: true, Name: "x", Path: HardDrive(1, part, "x"), Data: []byte("d")}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := DecodeOption(b)
		if err != nil {
			return
		}
		PartitionOf(o.Path)
		if again, err := DecodeOption(o.Encode()); err == nil && !bytes.Equal(again.Path, o.Path) {
			t.Fatal("another path")
		}
	})
}
