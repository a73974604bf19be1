// Package efivar answers: what does the firmware start, this once and always?
//
// It reads and writes the boot variables of UEFI (2.10, 3.3: BootOrder, BootNext, Boot####) through the kernel's
// efivarfs, where a variable is a file of four bytes of attributes and then its content. The kernel marks the files
// immutable against accidents; the mark is taken off for the writing and comes back by itself.
package efivar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/gpt"
)

// Dir is where the kernel shows the variables.
const Dir = "/sys/firmware/efi/efivars"

const (
	global     = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE
	attributes = 7                                      // non-volatile, for boot services and at run time
	active     = 1                                      // LOAD_OPTION_ACTIVE
	maxValue   = 64 << 10
	maxOrder   = 256
	immutable  = 0x10 // FS_IMMUTABLE_FL
)

// Vars are the variables of this box.
type Vars struct{ dir string }

// Open gives the variables in a folder, Dir on a box.
func Open(dir string) *Vars { return &Vars{dir} }

// Usable tells whether there are variables at all, and that they can be written: a firmware started the old way has
// none, and some kernels (PREEMPT_RT) and firmwares leave them read-only.
func (v *Vars) Usable() error {
	if _, err := os.ReadDir(v.dir); err != nil {
		return fmt.Errorf("the firmware shows no variables: %w", err)
	}
	if _, err := v.Order(); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(v.dir, &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return errors.New("the firmware's variables are read-only")
	}
	return nil
}

func (v *Vars) path(name string) string { return filepath.Join(v.dir, name+"-"+global) }

func (v *Vars) read(name string) ([]byte, error) {
	f, err := os.Open(v.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, maxValue+1)
	n, err := f.Read(b) // efivarfs gives a variable in one read
	if n < 4 || n > maxValue {
		return nil, fmt.Errorf("variable %s has %d bytes: %w", name, n, errors.Join(err, errors.ErrUnsupported))
	}
	return b[4:n], nil
}

func (v *Vars) write(name string, value []byte) error {
	if old, err := v.read(name); err == nil && bytes.Equal(old, value) {
		return nil // flash memory wears out
	}
	v.soften(name)
	f, err := os.OpenFile(v.path(name), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("variable %s: %w", name, err)
	}
	_, err = f.Write(append([]byte{attributes, 0, 0, 0}, value...)) // one write is one SetVariable
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("variable %s: %w", name, err)
	}
	back, err := v.read(name)
	if err != nil || !bytes.Equal(back, value) {
		return fmt.Errorf("variable %s does not keep what is written: %w", name, errors.Join(err, errors.ErrUnsupported))
	}
	return nil
}

func (v *Vars) remove(name string) error {
	v.soften(name)
	err := os.Remove(v.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// soften takes the immutable mark off. Where that fails, so does the writing, which tells.
func (v *Vars) soften(name string) {
	f, err := os.Open(v.path(name))
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&immutable != 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
	}
}

// Order is BootOrder, empty where there is none.
func (v *Vars) Order() ([]uint16, error) {
	b, err := v.read("BootOrder")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b)%2 != 0 || len(b) > 2*maxOrder {
		return nil, fmt.Errorf("BootOrder has %d bytes", len(b))
	}
	order := make([]uint16, len(b)/2)
	for i := range order {
		order[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return order, nil
}

// SetOrder puts these entries first, in this order, and leaves the others behind them as they were.
func (v *Vars) SetOrder(first ...uint16) error {
	old, err := v.Order()
	if err != nil {
		return err
	}
	order := slices.Clone(first)
	for _, n := range old {
		if !slices.Contains(order, n) {
			order = append(order, n)
		}
	}
	var b []byte
	for _, n := range order {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	return v.write("BootOrder", b)
}

// Next is what the firmware starts once, if it is set.
func (v *Vars) Next() (number uint16, set bool, err error) {
	b, err := v.read("BootNext")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil || len(b) != 2 {
		return 0, false, fmt.Errorf("BootNext: %d bytes: %w", len(b), err)
	}
	return binary.LittleEndian.Uint16(b), true, nil
}

// SetNext has the firmware start that entry once. It uses the order up before it enters (UEFI 2.10, 3.3).
func (v *Vars) SetNext(number uint16) error {
	return v.write("BootNext", binary.LittleEndian.AppendUint16(nil, number))
}

// ClearNext takes that back.
func (v *Vars) ClearNext() error { return v.remove("BootNext") }

// Entry is a boot option that starts a file of a GPT partition.
type Entry struct {
	Name         string
	Partition    uint32 // its number
	Start, Count uint64 // in sectors
	ID           gpt.GUID
	File         string // with backslashes
}

// Ensure gives the number of the boot option with that entry's name. It writes the option where it is missing or says
// something else; the order is left alone.
func (v *Vars) Ensure(e Entry) (uint16, error) {
	want := e.encode()
	free, taken := -1, map[int]bool{}
	list, err := os.ReadDir(v.dir)
	if err != nil {
		return 0, err
	}
	for _, d := range list {
		var n int
		name, ok := strings.CutSuffix(d.Name(), "-"+global)
		if !ok || len(name) != 8 || !strings.HasPrefix(name, "Boot") {
			continue
		}
		if _, err := fmt.Sscanf(name[4:], "%04X", &n); err != nil {
			continue
		}
		taken[n] = true
		if b, err := v.read(name); err == nil && description(b) == e.Name {
			if bytes.Equal(b, want) {
				return uint16(n), nil
			}
			return uint16(n), v.write(name, want)
		}
	}
	for n := 0; n < 0x1000 && free < 0; n++ {
		if !taken[n] {
			free = n
		}
	}
	if free < 0 {
		return 0, errors.New("the firmware has no room for another boot option")
	}
	return uint16(free), v.write(fmt.Sprintf("Boot%04X", free), want)
}

// encode is EFI_LOAD_OPTION (UEFI 2.10, 3.1.3) with a hard drive and a file path node (10.3.5.1, 10.3.5.4).
func (e Entry) encode() []byte {
	le := binary.LittleEndian
	path := []byte{4, 1, 42, 0}
	path = le.AppendUint32(path, e.Partition)
	path = le.AppendUint64(path, e.Start)
	path = le.AppendUint64(path, e.Count)
	path = append(append(path, e.ID[:]...), 2, 2) // GPT, known by its GUID
	file := text(e.File)
	path = append(le.AppendUint16(append(path, 4, 4), uint16(4+len(file))), file...)
	path = append(path, 0x7f, 0xff, 4, 0)
	b := le.AppendUint32(nil, active)
	b = le.AppendUint16(b, uint16(len(path)))
	return append(append(b, text(e.Name)...), path...)
}

func text(s string) (b []byte) {
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// description is a load option's name.
func description(b []byte) string {
	var units []uint16
	for i := 6; i+1 < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			return string(utf16.Decode(units))
		}
		units = append(units, u)
	}
	return ""
}
