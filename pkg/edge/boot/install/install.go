// Package install answers: how does the system come onto this box's own disk, without writing over what someone needs?
//
// It is what the installer's initramfs runs instead of looking for a root. Nothing here trusts the medium: the signed
// command line names the block map's sum, and the map has the sum of every block that is written.
package install

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/disk/bmap"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/flash"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/efi"
)

// Label is the medium's partition; the files on it, and below Config.Payload without their folder.
const (
	Label     = "tributary-install"
	imageFile = "tributary/disk.raw.zst"
	mapFile   = "tributary/disk.raw.bmap"
)

const (
	maxMap     = 4 << 20
	maxWindow  = 128 << 20 // of zstd: the builder takes 64 MiB
	mediumWait = time.Minute
	answerWait = 10 * time.Minute
)

// Person is whoever stands before the box.
type Person interface {
	// Printf shows text on every console.
	Printf(format string, args ...any)
	// Key waits so long for a key.
	Key(most time.Duration) (byte, bool)
}

// Config is what Run needs to know.
type Config struct {
	MapSum  [32]byte // of the block map, from the signed command line
	Wish    string   // the kernel's name of the disk to take without asking; "" asks where there is a doubt
	Version string
	Arch    string // Go's name
	Dev     string // "/dev"
	Sys     string // "/sys"
	Payload string // folder in the initramfs that may hold the image and the keys: "/install"
	Person  Person
	EFI     efi.Variables // nil: boot entries are left alone
	Pet     func()        // tells the watchdog that all is well
	Stay    time.Duration // how long a system that is there waits for a person to replace it; a minute if zero
}

var (
	// ErrNoMedium: neither the initramfs nor a disk holds the image.
	ErrNoMedium = errors.New("no medium with the image that this installer was signed with")
	// ErrNoDisk: there is nothing to install onto.
	ErrNoDisk = errors.New("no disk to install onto")
	// ErrDeclined: nobody allowed it.
	ErrDeclined = errors.New("nothing was written")
	// ErrInstalled: the disk holds a system already, and nobody asked to replace it.
	ErrInstalled = errors.New("a system is installed already; nothing was written")
)

// Run installs. When it answers nil the box may be restarted; the disk's entries come first in the firmware's order.
func Run(ctx context.Context, c Config) error {
	c.Person.Printf("\nTributary %s: installing onto this box\n", c.Version)
	src, err := c.findSource(ctx)
	if err != nil {
		return err
	}
	defer src.close()
	disks, err := c.candidates(src)
	if err != nil {
		return err
	}
	target, err := c.choose(disks)
	if errors.Is(err, ErrNoDisk) && c.Wish == "" {
		err = fmt.Errorf("%w: it takes one of %.1f GB or more", err, float64(src.m.ImageSize)/1e9)
	}
	if errors.Is(err, ErrInstalled) {
		return errors.Join(err, c.entries(target.Name))
	}
	if err != nil {
		return err
	}
	if err := c.write(ctx, src, target); err != nil {
		return err
	}
	if err := c.entries(target.Name); err != nil {
		c.Person.Printf("The firmware took no boot entries (%v): it will find the disk by itself, or has to be told.\n", err)
	}
	c.enrol()
	c.Person.Printf("\nInstalled on %s. Take the medium out.\n", target.Name)
	return nil
}

// source is the image and where it lies.
type source struct {
	disk  string // the medium's, "" for the initramfs
	image fat.Content
	m     bmap.Map
	files []*os.File
}

func (s *source) close() {
	for _, f := range s.files {
		_ = f.Close()
	}
}

func (c Config) checkMap(text []byte) (bmap.Map, error) {
	if sha256.Sum256(text) != c.MapSum {
		return bmap.Map{}, errors.New("its block map is not the signed one")
	}
	return bmap.Decode(text)
}

// findSource looks into the initramfs, then at every disk and disc, until one fits; buses take their time.
func (c Config) findSource(ctx context.Context) (*source, error) {
	if s, err := c.payload(); err == nil {
		return s, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var last error
	for until := time.Now().Add(mediumWait); ; {
		for _, name := range allDisks(c.Sys) {
			s, err := c.medium(name)
			if err == nil {
				c.Person.Printf("The image lies on %s.\n", name)
				return s, nil
			}
			if !errors.Is(err, errOther) {
				last = err
			}
		}
		if time.Now().After(until) {
			return nil, errors.Join(ErrNoMedium, last)
		}
		c.Pet()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c Config) payload() (*source, error) {
	text, err := os.ReadFile(filepath.Join(c.Payload, "disk.raw.bmap"))
	if err != nil {
		return nil, err
	}
	m, err := c.checkMap(text)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(c.Payload, "disk.raw.zst"))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &source{image: io.NewSectionReader(f, 0, info.Size()), m: m, files: []*os.File{f}}, nil
}

// errOther: a disk that is not our medium.
var errOther = errors.New("another disk")

func (c Config) medium(name string) (_ *source, err error) {
	f, err := os.Open(filepath.Join(c.Dev, name))
	if err != nil {
		return nil, errOther
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errOther
	}
	t, _, err := gpt.Read(f, size)
	if err != nil {
		return nil, errOther
	}
	n, p := t.Find(Label)
	if n == 0 {
		return nil, errOther
	}
	v, err := fat.Open(io.NewSectionReader(f, t.Offset(p), t.Size(p)), t.Size(p))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	text, err := v.ReadFile(mapFile, maxMap)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s := &source{disk: name, files: []*os.File{f}}
	if s.m, err = c.checkMap(text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if s.image, err = v.OpenFile(imageFile); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// allDisks are the box's disks and its optical drives.
func allDisks(sys string) []string {
	out := blk.Disks(sys)
	list, err := filepath.Glob(filepath.Join(sys, "block", "sr*"))
	if err != nil {
		return out
	}
	for _, p := range list {
		out = append(out, filepath.Base(p))
	}
	return out
}

func (c Config) write(ctx context.Context, src *source, d Disk) error {
	dev, err := openDevice(filepath.Join(c.Dev, d.Name))
	if err != nil {
		return err
	}
	z, err := zstd.NewReader(bufio.NewReaderSize(io.NewSectionReader(src.image, 0, src.image.Size()), 1<<20), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	defer z.Close()
	bar := &progress{person: c.Person, pet: c.Pet}
	err = flash.Write(ctx, dev, dev.size, z, src.m, "data", bar.show)
	if err == nil {
		dev.reread()
	}
	return errors.Join(err, dev.Close())
}

// entries makes the disk's two ESPs the first that the firmware tries.
func (c Config) entries(name string) error {
	if c.EFI == nil {
		return nil
	}
	f, err := os.Open(filepath.Join(c.Dev, name))
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	t, _, err := gpt.Read(f, size)
	if err != nil {
		return err
	}
	file := map[string]string{"amd64": "EFI/BOOT/BOOTX64.EFI", "arm64": "EFI/BOOT/BOOTAA64.EFI"}[c.Arch]
	var want []efi.Option
	for _, slot := range []string{"a", "b"} {
		n, p := t.Find("esp-" + slot)
		if n == 0 {
			return fmt.Errorf("%s has no esp-%s", name, slot)
		}
		want = append(want, efi.Option{Active: true, Name: "Tributary " + strings.ToUpper(slot), Path: efi.HardDrive(n, p, file)})
	}
	numbers, err := efi.Ensure(c.EFI, want...)
	if err != nil {
		return err
	}
	err = efi.First(c.EFI, numbers...)
	return err
}
