package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/extension"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/edge/boot/dm"
	"tributary.dev/tributary/pkg/edge/boot/kmod"
)

// extensionsDir is where the extensions of the running release are mounted.
const extensionsDir = "/run/extensions"

// extend mounts the extensions that the signed root names, and loads the drivers that the profile wants of them. It
// reads each as a whole first, so it runs beside the rest of boot: what waits for an accelerator can wait for that too.
func (b *booter) extend(ctx context.Context) error {
	list, err := extension.Read(os.DirFS("/"))
	if err != nil || len(list) == 0 {
		return err
	}
	go func() {
		err := guarded(ctx, func(ctx context.Context) error {
			if b.modules != nil {
				_ = b.modules.Load("loop") // the first extension says what is missing
			}
			for _, e := range list {
				if err := b.mountExtension(e); err != nil {
					b.warn(api.Warning{Name: "extension-refused", Severity: api.Degraded, Message: "the extension " + e.Name + " is not used: " + err.Error(),
						Remedy: "install the release anew; apps that need its drivers do not find their devices until then"})
				}
			}
			return b.loadGPU(list)
		})
		if err != nil {
			b.say("extensions: %v", err)
		}
	}()
	return nil
}

// mountExtension checks an extension, in DATA or in the root, and mounts it.
func (b *booter) mountExtension(e extension.Entry) error {
	var errs []error
	for _, file := range []string{e.DataFile(), e.File()} {
		err := openExtension(file, e)
		if err == nil {
			b.say("extension %s: %d MB from %s", e.Name, e.Size/1e6, file)
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
	}
	if len(errs) == 0 {
		return errors.New("it is not there")
	}
	return errors.Join(errs...)
}

func openExtension(file string, e extension.Entry) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := extension.Check(f, info.Size(), e); err != nil {
		return err
	}
	super, err := extension.Tree(f, e)
	if err != nil {
		return err
	}
	hash, err := e.Hash()
	if err != nil {
		return err
	}
	// The kernel checks again what it reads: the file lies on a disk that may change under it.
	data, err := loop(f, 0, e.Size)
	if err != nil {
		return err
	}
	tree, err := loop(f, e.Size, info.Size()-e.Size)
	if err != nil {
		return err
	}
	return mountVerity(e.Name, super, data, tree, hash)
}

func mountVerity(name string, super verity.Superblock, data, tree string, hash [32]byte) error {
	table := dm.Verity(super, data, tree, hash)
	// A damaged extension is an error to who reads it, not the end of the box.
	table.Params = strings.TrimSuffix(table.Params, " 1 panic_on_corruption")
	node, err := dm.Create("extension-"+name, "TRIBUTARY-VERITY-extension-"+name, table, true)
	if err != nil {
		return err
	}
	at := filepath.Join(extensionsDir, name)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return unix.Mount(node, at, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, "")
}

// loopConfig is struct loop_config of linux/loop.h.
type loopConfig struct {
	fd, blockSize                              uint32
	device, inode, rdevice, offset, sizeLimit  uint64
	number, encryptType, encryptKeySize, flags uint32
	fileName, cryptName                        [64]byte
	encryptKey                                 [32]byte
	init                                       [2]uint64
	reserved                                   [8]uint64
}

const (
	loopConfigure = 0x4c0a // LOOP_CONFIGURE
	loopGetFree   = 0x4c82 // LOOP_CTL_GET_FREE
	loopReadOnly  = 1      // LO_FLAGS_READ_ONLY
)

// loop shows a part of a file as a block device, for as long as the box runs.
func loop(f *os.File, offset, size int64) (node string, err error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	for range 16 {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), loopGetFree, 0)
		if errno != 0 {
			return "", errno
		}
		node = fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(node, os.O_RDONLY, 0)
		if err != nil {
			return "", err
		}
		conf := loopConfig{fd: uint32(f.Fd()), offset: uint64(offset), sizeLimit: uint64(size), flags: loopReadOnly}
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, dev.Fd(), loopConfigure, uintptr(unsafe.Pointer(&conf)))
		dev.Close()
		if errno == 0 {
			return node, nil
		}
		if errno != unix.EBUSY { // somebody took it first
			return "", errno
		}
	}
	return "", errors.New("no loop device is free")
}

// firmwarePath is where the kernel is told of one more folder of firmware.
const firmwarePath = "/sys/module/firmware_class/parameters/path"

// loadGPU gives accelerators their drivers, from the first extension that has each.
func (b *booter) loadGPU(list []extension.Entry) error {
	var errs []error
	for _, driver := range b.facts.Profile.GPU.Drivers {
		err := fmt.Errorf("no extension has the driver %s", driver)
		for _, e := range list {
			root := filepath.Join(extensionsDir, e.Name, "usr/lib")
			dirs, _ := filepath.Glob(filepath.Join(root, "modules/*/modules.dep")) // a pattern of ours has no fault
			if len(dirs) != 1 {
				continue
			}
			tree, openErr := kmod.Open(filepath.Dir(dirs[0]))
			if openErr != nil || !tree.Holds(driver) {
				continue
			}
			before, _ := os.ReadFile(firmwarePath)
			_ = os.WriteFile(firmwarePath, []byte(filepath.Join(root, "firmware")), 0) // the driver says what it misses
			switch err = tree.Load(driver); {
			case err == nil:
				b.say("extension %s: driver %s", e.Name, driver)
			case errors.Is(err, unix.ENODEV): // NVIDIA's does not stay where there is no card
				b.say("extension %s: no device for the driver %s", e.Name, driver)
				err = os.WriteFile(firmwarePath, bytes.TrimSpace(before), 0)
			default:
				b.warn(api.Warning{Name: "extension-refused", Severity: api.Degraded, Message: "the driver " + driver + " of the extension " + e.Name + " is not loaded: " + err.Error(),
					Remedy: "where the kernel refuses its signature, the firmware lacks the release's key: enrol it, as the installer does"})
			}
			break
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
