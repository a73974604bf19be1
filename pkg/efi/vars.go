// Package efi answers: what does the firmware start next, and how is it told otherwise?
//
// It reads and writes EFI variables through the kernel's efivarfs and knows the form of boot entries (UEFI 2.10,
// sections 3.1.3 and 10.3).
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/gpt"
)

// Attributes of variables (UEFI 2.10, 8.2).
const (
	NonVolatile = 1 << iota
	BootService
	Runtime

	kept = NonVolatile | BootService | Runtime
)

// Vendors of variables.
var (
	Global = mustParse("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	Loader = mustParse("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f") // systemd-boot's and systemd-stub's
)

func mustParse(s string) gpt.GUID {
	g, err := gpt.Parse(s)
	if err != nil {
		panic(err) // a constant of this file is mistyped
	}
	return g
}

// ErrNone: the variable does not exist.
var ErrNone = errors.New("no such EFI variable")

const (
	maxVariable = 1 << 20
	immutable   = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
)

// Dir is where the kernel shows the variables.
const Dir = "/sys/firmware/efi/efivars"

// Variables is the firmware's store.
type Variables interface {
	// List gives the names of a vendor's variables, in no order.
	List(vendor gpt.GUID) ([]string, error)
	// Get answers ErrNone where there is none.
	Get(name string, vendor gpt.GUID) (attributes uint32, data []byte, err error)
	// Set writes or, with the attribute for it, appends. It may be repeated.
	Set(name string, vendor gpt.GUID, attributes uint32, data []byte) error
	// Delete does nothing where there is none.
	Delete(name string, vendor gpt.GUID) error
}

// FS is the store behind a mounted efivarfs, /sys/firmware/efi/efivars.
type FS string

func (f FS) path(name string, vendor gpt.GUID) string {
	return filepath.Join(string(f), name+"-"+vendor.String())
}

// Usable tells whether there are variables at all, and that they can be written: a firmware started the old way has
// none, and some kernels (PREEMPT_RT) and firmwares leave them read-only.
func (f FS) Usable() error {
	if _, err := os.ReadDir(string(f)); err != nil {
		return fmt.Errorf("the firmware shows no variables: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(string(f), &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return errors.New("the firmware's variables are read-only")
	}
	return nil
}

// List implements Variables.
func (f FS) List(vendor gpt.GUID) (names []string, err error) {
	list, err := os.ReadDir(string(f))
	for _, e := range list {
		if name, ok := strings.CutSuffix(e.Name(), "-"+vendor.String()); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// Get implements Variables.
func (f FS) Get(name string, vendor gpt.GUID) (uint32, []byte, error) {
	b, err := os.ReadFile(f.path(name, vendor))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, fmt.Errorf("%s: %w", name, ErrNone)
	}
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 4 || len(b) > maxVariable {
		return 0, nil, fmt.Errorf("EFI variable %s has %d bytes", name, len(b))
	}
	return binary.LittleEndian.Uint32(b), b[4:], nil
}

// Set implements Variables. The kernel passes one write on as one call of the firmware, which is atomic.
func (f FS) Set(name string, vendor gpt.GUID, attributes uint32, data []byte) error {
	path := f.path(name, vendor)
	f.unlock(path)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), data...))
	return errors.Join(err, file.Close())
}

// Delete implements Variables.
func (f FS) Delete(name string, vendor gpt.GUID) error {
	path := f.path(name, vendor)
	f.unlock(path)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unlock takes the immutable flag away, with which the kernel guards variables that it does not know. Where there is
// no file, or no such flag, there is nothing to take away.
func (f FS) unlock(path string) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	flags, err := unix.IoctlGetInt(int(file.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&immutable != 0 {
		_ = unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable) // the write that follows says so
	}
}

// Memory is a store for tests and for trying out.
type Memory map[string][]byte

func key(name string, vendor gpt.GUID) string { return name + "-" + vendor.String() }

// List implements Variables.
func (m Memory) List(vendor gpt.GUID) (names []string, err error) {
	for k := range m {
		if name, ok := strings.CutSuffix(k, "-"+vendor.String()); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// Get implements Variables.
func (m Memory) Get(name string, vendor gpt.GUID) (uint32, []byte, error) {
	b, ok := m[key(name, vendor)]
	if !ok {
		return 0, nil, fmt.Errorf("%s: %w", name, ErrNone)
	}
	return binary.LittleEndian.Uint32(b), b[4:], nil
}

// Set implements Variables.
func (m Memory) Set(name string, vendor gpt.GUID, attributes uint32, data []byte) error {
	m[key(name, vendor)] = append(binary.LittleEndian.AppendUint32(nil, attributes), data...)
	return nil
}

// Delete implements Variables.
func (m Memory) Delete(name string, vendor gpt.GUID) error {
	delete(m, key(name, vendor))
	return nil
}
