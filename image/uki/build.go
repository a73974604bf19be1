package uki

import (
	"errors"
	"fmt"
	"strings"
)

// Config is what a unified kernel image is made of.
type Config struct {
	Stub      []byte // systemd-stub, unsigned: linuxx64.efi.stub or linuxaa64.efi.stub
	Kernel    []byte // an EFI kernel
	Microcode []byte // an uncompressed cpio archive with the processor's microcode; may be empty
	Initrd    []byte // cpio archives, compressed or not
	Cmdline   string // at most 4096 bytes, one line
	OSRelease string // the file /etc/os-release
	Uname     string // the kernel's release
	// DeviceTree is given to the kernel in place of the firmware's, where the firmware brings no ACPI tables; may be empty.
	DeviceTree []byte
	PolicyKey  []byte // PEM of the key that signs Policy; the stub gives it to the initramfs in /.extra

	// Policy is asked, once all measured parts stand, for the signature file of PCR 11's value (systemd-measure's
	// JSON, which the stub gives to the initramfs); nil leaves it out. It is not measured itself.
	Policy func(image []byte) ([]byte, error)
}

// Build makes the image, unsigned. The same config gives the same bytes.
func Build(c Config) ([]byte, error) {
	if len(c.Kernel) == 0 || len(c.Initrd) == 0 {
		return nil, errors.New("a unified kernel image needs a kernel and an initramfs")
	}
	if len(c.Cmdline) > 4096 || strings.ContainsAny(c.Cmdline, "\n\x00") {
		return nil, fmt.Errorf("a command line of %d bytes: at most 4096, on one line", len(c.Cmdline))
	}
	kernel, err := parse(c.Kernel)
	if err != nil {
		return nil, fmt.Errorf("the kernel: %w", err)
	}
	stub, err := parse(c.Stub)
	if err != nil {
		return nil, fmt.Errorf("the stub: %w", err)
	}
	if kernel.Machine != stub.Machine {
		return nil, fmt.Errorf("the kernel is for machine %#x, the stub for %#x", kernel.Machine, stub.Machine)
	}
	// The kernel wants an uncompressed archive with microcode first, aligned to 4 bytes before what follows.
	initrd := append([]byte{}, c.Microcode...)
	initrd = append(initrd, make([]byte, (4-len(initrd)%4)%4)...)
	initrd = append(initrd, c.Initrd...)

	parts := []addition{
		{".osrel", []byte(c.OSRelease)},
		{".cmdline", []byte(c.Cmdline)},
		{".uname", []byte(c.Uname)},
		{".initrd", initrd},
		{".linux", c.Kernel},
	}
	if len(c.DeviceTree) > 0 {
		if len(c.DeviceTree) < 40 || string(c.DeviceTree[:4]) != "\xd0\x0d\xfe\xed" {
			return nil, errors.New("what is given as a device tree is none")
		}
		parts = append(parts, addition{".dtb", c.DeviceTree})
	}
	if len(c.PolicyKey) > 0 {
		parts = append(parts, addition{".pcrpkey", c.PolicyKey})
	}
	image, err := extend(c.Stub, parts)
	if err != nil || c.Policy == nil {
		return image, err
	}
	sig, err := c.Policy(image)
	if err != nil {
		return nil, fmt.Errorf("signing PCR 11's value: %w", err)
	}
	return extend(image, []addition{{".pcrsig", sig}})
}
