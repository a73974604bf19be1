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
				if again, err := Ensure(v, b); err != nil || !slices.Equal(again, []uint16{3}) {
					t.Fatal(again, err) // also where the order does not have it yet
				}
				if err := First(v, got...); err != nil {
					t.Fatal(err)
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
			if n, set, err := Next(v); err != nil || !set || n != 3 {
				t.Error(n, set, err)
			}
			if err := errors.Join(ClearNext(v), ClearNext(v)); err != nil {
				t.Error(err)
			}
			if _, set, err := Next(v); err != nil || set {
				t.Error(set, err)
			}
			if _, err := Current(v); !errors.Is(err, ErrNone) {
				t.Error(err)
			}
		})
	}
}

// forgetful takes what is written and keeps something else, as some firmwares do.
type forgetful struct{ Memory }

func (f forgetful) Set(name string, vendor gpt.GUID, attributes uint32, data []byte) error {
	return f.Memory.Set(name, vendor, attributes, bytes.Repeat([]byte{0}, len(data)))
}

func TestNotKept(t *testing.T) {
	if err := SetNext(forgetful{Memory{}}, 3); err == nil {
		t.Error("a variable that is not kept passes for written")
	}
	if err := FS(t.TempDir() + "/none").Usable(); err == nil {
		t.Error("no variables are usable")
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
	got := Option{Active: true, Name: "A", Path: HardDrive(1, gpt.Partition{ID: id, First: 2048, Last: 6143}, "a.efi")}.Encode()
	if !bytes.Equal(got, want) {
		t.Fatalf("\n%x\n%x", got, want)
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
