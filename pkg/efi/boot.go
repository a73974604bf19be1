package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"tributary.dev/tributary/pkg/disk/gpt"
)

// Option is a boot entry, the content of a variable Boot#### (EFI_LOAD_OPTION).
type Option struct {
	Active bool
	Name   string
	Path   []byte // a device path, as HardDrive makes it
	Data   []byte // for the program
}

const active = 1

// Encode gives the variable's content.
func (o Option) Encode() []byte {
	le := binary.LittleEndian
	var attributes uint32
	if o.Active {
		attributes = active
	}
	b := le.AppendUint32(nil, attributes)
	b = le.AppendUint16(b, uint16(len(o.Path)))
	for _, u := range utf16.Encode([]rune(o.Name + "\x00")) {
		b = le.AppendUint16(b, u)
	}
	return append(append(b, o.Path...), o.Data...)
}

// DecodeOption reads a variable's content of at most 64 KiB.
func DecodeOption(b []byte) (Option, error) {
	var o Option
	if len(b) < 8 || len(b) > 64<<10 {
		return o, fmt.Errorf("a boot entry of %d bytes", len(b))
	}
	le := binary.LittleEndian
	o.Active = le.Uint32(b)&active != 0
	size := int(le.Uint16(b[4:]))
	var name []uint16
	for b = b[6:]; ; b = b[2:] {
		if len(b) < 2 {
			return o, errors.New("a boot entry's name has no end")
		}
		u := le.Uint16(b)
		if u == 0 {
			b = b[2:]
			break
		}
		name = append(name, u)
	}
	if size > len(b) {
		return o, fmt.Errorf("a boot entry's path of %d bytes, %d are there", size, len(b))
	}
	o.Name, o.Path, o.Data = strings.ToValidUTF8(string(utf16.Decode(name)), "?"), bytes.Clone(b[:size]), bytes.Clone(b[size:])
	return o, nil
}

// HardDrive is the device path of a file on a partition, found by the partition's own GUID on whichever disk
// (UEFI 2.10, 10.3.5.1 and 10.3.5.4). The file is written with slashes.
func HardDrive(number int, p gpt.Partition, file string) []byte {
	le := binary.LittleEndian
	b := []byte{4, 1, 42, 0}
	b = le.AppendUint32(b, uint32(number))
	b = le.AppendUint64(b, p.First)
	b = le.AppendUint64(b, p.Last-p.First+1)
	b = append(append(b, p.ID[:]...), 2, 2) // a GPT, signed by a GUID
	var name []byte
	for _, u := range utf16.Encode([]rune(`\` + strings.ReplaceAll(file, "/", `\`) + "\x00")) {
		name = le.AppendUint16(name, u)
	}
	b = append(b, 4, 4, byte(len(name)+4), byte((len(name)+4)>>8))
	return append(append(b, name...), 0x7f, 0xff, 4, 0)
}

// PartitionOf answers the GUID of the partition that a device path of HardDrive's kind begins with.
func PartitionOf(path []byte) (gpt.GUID, bool) {
	for len(path) >= 4 {
		n := int(binary.LittleEndian.Uint16(path[2:]))
		if n < 4 || n > len(path) {
			return gpt.GUID{}, false
		}
		if path[0] == 4 && path[1] == 1 && n == 42 && path[41] == 2 {
			return gpt.GUID(path[24:40]), true
		}
		path = path[n:]
	}
	return gpt.GUID{}, false
}

func entryName(n uint16) string { return fmt.Sprintf("Boot%04X", n) }

// Order is the firmware's boot order; empty where it has none.
func Order(v Variables) ([]uint16, error) {
	_, b, err := v.Get("BootOrder", Global)
	if errors.Is(err, ErrNone) {
		return nil, nil
	}
	var out []uint16
	for ; len(b) >= 2; b = b[2:] {
		out = append(out, binary.LittleEndian.Uint16(b))
	}
	return out, err
}

// keep writes a variable where it says something else, since flash memory wears out, and reads it back, since some
// firmwares only seem to take what they are given.
func keep(v Variables, name string, data []byte) error {
	if _, old, err := v.Get(name, Global); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := v.Set(name, Global, kept, data); err != nil {
		return fmt.Errorf("EFI variable %s: %w", name, err)
	}
	if _, back, err := v.Get(name, Global); err != nil || !bytes.Equal(back, data) {
		return fmt.Errorf("EFI variable %s does not keep what is written: %w", name, errors.Join(err, errors.ErrUnsupported))
	}
	return nil
}

// SetOrder writes the boot order.
func SetOrder(v Variables, order []uint16) error {
	var b []byte
	for _, n := range order {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	return keep(v, "BootOrder", b)
}

// First puts these entries first in the boot order, in this order, and leaves the others behind them as they were.
func First(v Variables, front ...uint16) error {
	old, err := Order(v)
	if err != nil {
		return err
	}
	return SetOrder(v, append(slices.Clone(front), slices.DeleteFunc(old, func(n uint16) bool { return slices.Contains(front, n) })...))
}

// Entry reads one boot entry.
func Entry(v Variables, n uint16) (Option, error) {
	_, b, err := v.Get(entryName(n), Global)
	if err != nil {
		return Option{}, err
	}
	return DecodeOption(b)
}

// Next is what the firmware starts once, if it is set.
func Next(v Variables) (n uint16, set bool, err error) {
	_, b, err := v.Get("BootNext", Global)
	if errors.Is(err, ErrNone) {
		return 0, false, nil
	}
	if err != nil || len(b) != 2 {
		return 0, false, fmt.Errorf("BootNext of %d bytes: %w", len(b), errors.Join(err, errors.ErrUnsupported))
	}
	return binary.LittleEndian.Uint16(b), true, nil
}

// SetNext makes the firmware start that entry once, before all others. It is used up before the entry starts (UEFI 2.10,
// 3.3).
func SetNext(v Variables, n uint16) error {
	return keep(v, "BootNext", binary.LittleEndian.AppendUint16(nil, n))
}

// ClearNext takes that back.
func ClearNext(v Variables) error { return v.Delete("BootNext", Global) }

// Current is the entry that this start came from.
func Current(v Variables) (uint16, error) {
	_, b, err := v.Get("BootCurrent", Global)
	if err != nil {
		return 0, err
	}
	if len(b) != 2 {
		return 0, fmt.Errorf("BootCurrent has %d bytes", len(b))
	}
	return binary.LittleEndian.Uint16(b), nil
}

// Ensure makes sure that there are entries like these, and leaves the boot order alone. An entry of the same name is
// written again only when it differs; of several, the first in the boot order is taken. It answers the entries' numbers,
// and may be repeated.
func Ensure(v Variables, want ...Option) ([]uint16, error) {
	order, err := Order(v)
	if err != nil {
		return nil, err
	}
	names, err := v.List(Global)
	if err != nil {
		return nil, err
	}
	taken := slices.Clone(order)
	for _, name := range names {
		if digits, ok := strings.CutPrefix(name, "Boot"); ok && len(digits) == 4 {
			if n, err := strconv.ParseUint(digits, 16, 16); err == nil {
				taken = append(taken, uint16(n))
			}
		}
	}
	slices.Sort(taken[len(order):])
	byName := map[string]uint16{}
	for _, n := range slices.Backward(taken) {
		if o, err := Entry(v, n); err == nil {
			byName[o.Name] = n
		}
	}
	var numbers []uint16
	for _, o := range want {
		n, ok := byName[o.Name]
		if !ok {
			if n, err = free(taken); err != nil {
				return nil, err
			}
			taken = append(taken, n)
		}
		if err := keep(v, entryName(n), o.Encode()); err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// free finds a number that no entry has.
func free(taken []uint16) (uint16, error) {
	for n := uint16(0); n < 0x1000; n++ {
		if !slices.Contains(taken, n) {
			return n, nil
		}
	}
	return 0, errors.New("the firmware has no free boot entry")
}
