package rise

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/install"
	"tributary.dev/tributary/pkg/efi"
)

// bootFile is where firmware looks on removable media (UEFI 2.10, 3.5.1.1).
var bootFile = map[string]string{"amd64": "EFI/BOOT/BOOTX64.EFI", "arm64": "EFI/BOOT/BOOTAA64.EFI"}

// reinstall has the firmware start the installer on a stick, once. The rescue writes to no
// disk and takes nothing from the stick: the installer is a signed system of its own, which
// the firmware checks, and asks before it writes. It tells whether the box shall start anew.
func (r *rise) reinstall(t *terminals) bool {
	vars := variables()
	if vars == nil {
		t.printf("\nThis firmware cannot be told what to start: choose the stick in its own menu.\n")
		return false
	}
	for _, name := range blk.Disks("/sys") {
		table, err := tableOf("/dev/" + name)
		if err != nil {
			continue
		}
		n, p := table.Find(install.Label)
		if n == 0 {
			continue
		}
		if err := startOnce(vars, n, p); err != nil {
			t.printf("\n%s holds the installer, and the firmware does not take it: %v\n", name, err)
			return false
		}
		t.printf("\nThe installer on %s is started.\n", name)
		return true
	}
	t.printf("\nNo stick with the installer is seen. Plug one in, wait for a few seconds, and try again.\n")
	return false
}

// startOnce makes a partition what the firmware starts next, and then no more.
func startOnce(vars efi.Variables, number int, p gpt.Partition) error {
	file, ok := bootFile[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("nobody knows what to start on %s", runtime.GOARCH)
	}
	numbers, err := efi.Ensure(vars, efi.Option{Active: true, Name: "Tributary installer", Path: efi.HardDrive(number, p, file)})
	if err != nil {
		return err
	}
	return efi.SetNext(vars, numbers[0])
}

func tableOf(node string) (*gpt.Table, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	t, _, err := gpt.Read(f, size)
	if t == nil && err == nil {
		err = errors.New("no table")
	}
	return t, err
}
