package update

import (
	"fmt"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/efi"
)

// Signed reads the certificate tables of what a slot's ESP starts, boot manager and kernel image in this order: by them
// it is known which key of the firmware's lets them through.
func (f *Flash) Signed(slot Slot) (tables [][]byte, err error) {
	f.forget()
	v, found, err := f.look(slot)
	if err != nil {
		return nil, err
	}
	for _, file := range []string{managerFile(f.Arch), ukiDir + "/" + found.Name} {
		table, err := signedFile(v, file)
		if err != nil {
			return nil, fmt.Errorf("slot %s, %s: %w", slot, file, err)
		}
		tables = append(tables, table)
	}
	return tables, nil
}

func signedFile(v *fat.Volume, file string) ([]byte, error) {
	c, err := v.OpenFile(file)
	if err != nil {
		return nil, err
	}
	return efi.SignedBy(c, c.Size())
}
