package owner

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/identity/unlock"
)

// File is a Store in a file.
type File string

// Read implements Store.
func (f File) Read() ([]byte, error) { return readSome(string(f)) }

// Write implements Store.
func (f File) Write(b []byte) error { return atomicfile.Write(string(f), b, 0o600) }

// Remove implements Store.
func (f File) Remove() error {
	if err := os.Remove(string(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, unlock.MaxKept+1))
	if err == nil && len(b) > unlock.MaxKept {
		err = fmt.Errorf("%s has more than %d bytes", path, unlock.MaxKept)
	}
	return b, err
}

// Variable is a Store in a variable of the firmware (UEFI 2.10, 8.2), a file below Dir of four
// bytes of attributes and then the value.
type Variable struct{ Dir, Name string }

const (
	// vendor is ours, random.
	vendor = "c1b7d5f4-6a0e-4a53-9f0a-8b6e5d2f7a11"
	// attributes: non-volatile, for boot services and at run time.
	attributes = 7
	immutable  = 0x10 // FS_IMMUTABLE_FL: the kernel's mark against accidents
)

func (v Variable) path() string { return filepath.Join(v.Dir, v.Name+"-"+vendor) }

// Read implements Store.
func (v Variable) Read() ([]byte, error) {
	b, err := os.ReadFile(v.path())
	if err != nil {
		return nil, err
	}
	if len(b) < 4 || len(b) > 4+64 {
		return nil, fmt.Errorf("variable %s has %d bytes", v.Name, len(b))
	}
	return b[4:], nil
}

// Write implements Store.
func (v Variable) Write(value []byte) error {
	v.soften()
	f, err := os.OpenFile(v.path(), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append([]byte{attributes, 0, 0, 0}, value...)) // one write sets the variable
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if back, err := v.Read(); err != nil || !bytes.Equal(back, value) {
		return fmt.Errorf("variable %s does not keep what is written: %w", v.Name, errors.Join(err, errors.ErrUnsupported))
	}
	return nil
}

// Remove implements Store.
func (v Variable) Remove() error {
	v.soften()
	return File(v.path()).Remove()
}

// soften takes the immutable mark off; where that fails, so does the writing, which tells.
func (v Variable) soften() {
	f, err := os.Open(v.path())
	if err != nil {
		return
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&immutable != 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
	}
}

// Config is a Store in a file on the partition CONFIG, which is mounted at a folder below
// Run for as long as that takes.
type Config struct{ Run, Name string }

func (c Config) in(flags uintptr, do func(File) error) error {
	node, err := configNode(c.Run)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.Run, "config-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := mountSoon(node, dir, flags|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "iocharset=ascii,fmask=177,dmask=077"); err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	err = do(File(filepath.Join(dir, c.Name)))
	return errors.Join(err, unix.Unmount(dir, 0))
}

// busyTime is for the other who has it mounted: the agent writes, or another console reads.
const busyTime = 5 * time.Second

func mountSoon(node, dir string, flags uintptr, options string) error {
	for until := time.Now().Add(busyTime); ; {
		err := unix.Mount(node, dir, "vfat", flags, options)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(until) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Read implements Store.
func (c Config) Read() (b []byte, err error) {
	err = c.in(unix.MS_RDONLY, func(f File) error { b, err = f.Read(); return err })
	return b, err
}

// Write implements Store.
func (c Config) Write(b []byte) error {
	return c.in(unix.MS_SYNCHRONOUS, func(f File) error { return f.Write(b) })
}

// Remove implements Store.
func (c Config) Remove() error {
	return c.in(unix.MS_SYNCHRONOUS, func(f File) error { return f.Remove() })
}

// configNode finds CONFIG on the disk that process 1 has named, by the kernel's own word for
// its partitions.
func configNode(run string) (string, error) {
	name, err := os.ReadFile(filepath.Join(run, "disk"))
	if err != nil {
		return "", fmt.Errorf("the disk of this box is not known: %w", err)
	}
	list, _ := filepath.Glob(filepath.Join("/sys/class/block", strings.TrimSpace(string(name)), "*/uevent")) // the pattern is well formed
	for _, path := range list {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains("\n"+string(text), "\nPARTNAME=config\n") {
			return "/dev/" + filepath.Base(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("the disk has no partition CONFIG: %w", fs.ErrNotExist)
}

// insideName is the file beside the identity.
const insideName = "owner.key"

// Appliance is a Box on the appliance: run is process 1's folder, id the agent's identity.
func Appliance(run, id string) Box {
	return Box{Outside: Config{run, "OWNER.KEY"}, Anchor: Variable{"/sys/firmware/efi/efivars", "TributaryOwner"}, Inside: File(filepath.Join(id, insideName)), Identity: IdentityIn(id)}
}

// IdentityIn reads who a box is from its identity folder.
func IdentityIn(dir string) func() (*identity.Trust, api.DeviceID, error) {
	return func() (*identity.Trust, api.DeviceID, error) {
		me, err := identity.Load(dir)
		if err != nil {
			return nil, api.DeviceID{}, err
		}
		return me.Trust, me.ID(), nil
	}
}
