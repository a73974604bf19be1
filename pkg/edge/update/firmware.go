package update

import (
	"fmt"
	"strings"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/update/efivar"
)

// BootVariables is the Firmware of a box: a boot option for each slot's ESP, known by the partition's GUID.
type BootVariables struct {
	Vars  *efivar.Vars
	Flash *Flash
}

// Usable implements Firmware.
func (b *BootVariables) Usable() error { return b.Vars.Usable() }

// options gives the numbers of both boot options, which it makes where they are missing. The order is left alone.
func (b *BootVariables) options() (map[Slot]uint16, error) {
	t, _, err := gpt.Read(b.Flash.Disk, b.Flash.Size)
	if err != nil {
		return nil, err
	}
	out := map[Slot]uint16{}
	for _, s := range []Slot{"a", "b"} {
		n, p := t.Find("esp-" + string(s))
		if n == 0 {
			return nil, fmt.Errorf("the disk has no partition esp-%s", s)
		}
		out[s], err = b.Vars.Ensure(efivar.Entry{Name: "Tributary " + strings.ToUpper(string(s)), Partition: uint32(n), Start: p.First, Count: p.Last - p.First + 1,
			ID: p.ID, File: `\` + strings.ReplaceAll(managerFile(b.Flash.Arch), "/", `\`)})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
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
	list, err := b.Vars.Order()
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
	n, set, err := b.Vars.Next()
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
	return b.Vars.SetNext(options[s])
}

// ClearNext implements Firmware.
func (b *BootVariables) ClearNext() error { return b.Vars.ClearNext() }

// SetOrder implements Firmware.
func (b *BootVariables) SetOrder(first Slot) error {
	options, err := b.options()
	if err != nil {
		return err
	}
	return b.Vars.SetOrder(options[first], options[first.Other()])
}
