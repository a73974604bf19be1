package update

import (
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/efi"
)

// BootVariables is the Firmware of a box: a boot option for each slot's ESP, known by the partition's GUID.
type BootVariables struct {
	Vars  efi.Variables
	Flash *Flash
}

// Usable implements Firmware.
func (b *BootVariables) Usable() error {
	if u, ok := b.Vars.(interface{ Usable() error }); ok {
		return u.Usable()
	}
	return nil
}

// options gives the numbers of both boot options, which it makes where they are missing. The order is left alone.
func (b *BootVariables) options() (map[Slot]uint16, error) {
	t, _, err := gpt.Read(b.Flash.Disk, b.Flash.Size)
	if err != nil {
		return nil, err
	}
	slots, want := []Slot{"a", "b"}, []efi.Option(nil)
	for _, s := range slots {
		n, p := t.Find("esp-" + string(s))
		if n == 0 {
			return nil, fmt.Errorf("the disk has no partition esp-%s", s)
		}
		want = append(want, efi.Option{Active: true, Name: "Tributary " + strings.ToUpper(string(s)), Path: efi.HardDrive(n, p, managerFile(b.Flash.Arch))})
	}
	numbers, err := efi.Ensure(b.Vars, want...)
	if err != nil {
		return nil, err
	}
	return map[Slot]uint16{"a": numbers[0], "b": numbers[1]}, nil
}

func slotOf(options map[Slot]uint16, number uint16) Slot {
	for s, n := range options {
		if n == number {
			return s
		}
	}
	return ""
}

// Order implements Firmware: which of our slots come in the firmware's order, first to last.
func (b *BootVariables) Order() (order []Slot, err error) {
	options, err := b.options()
	if err != nil {
		return nil, err
	}
	list, err := efi.Order(b.Vars)
	for _, n := range list {
		if s := slotOf(options, n); s != "" {
			order = append(order, s)
		}
	}
	return order, err
}

// Next implements Firmware.
func (b *BootVariables) Next() (Slot, error) {
	options, err := b.options()
	if err != nil {
		return "", err
	}
	n, set, err := efi.Next(b.Vars)
	if err != nil || !set {
		return "", err
	}
	return slotOf(options, n), nil
}

// SetNext implements Firmware.
func (b *BootVariables) SetNext(s Slot) error {
	options, err := b.options()
	if err != nil {
		return err
	}
	return efi.SetNext(b.Vars, options[s])
}

// ClearNext implements Firmware.
func (b *BootVariables) ClearNext() error { return efi.ClearNext(b.Vars) }

// SetOrder implements Firmware.
func (b *BootVariables) SetOrder(first Slot) error {
	options, err := b.options()
	if err != nil {
		return err
	}
	return efi.First(b.Vars, options[first], options[first.Other()])
}
