// Package disk answers: what lies where on a box's disk as it is flashed?
//
// One raw image: a GUID partition table, two ESPs with the same content (a firmware that finds the first one torn goes
// to the second), slot A with its verity tree, an empty slot B, CONFIG, and room for STATE and DATA, which the box
// itself encrypts on its first boot. Nothing here needs root or loop devices.
package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/disk/bmap"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
)

const (
	sector = 512
	mib    = 1 << 20
)

// Layout is what goes on the disk.
type Layout struct {
	Profile     string // its name; GUIDs are derived from it
	Arch        string // Go's name
	Sizes       hwprofiles.Partitions
	Time        time.Time // of files in FAT volumes
	Root        *os.File  // the root file system, whole blocks of 4096
	Verity      *os.File  // its tree
	RootHash    [32]byte
	UKI         []byte // signed
	BootManager []byte // systemd-boot, signed
	Install     uint64 // the install counter that names the UKI, 1 for a flashed disk
	ESP         []fat.File
	Config      []fat.File
}

// BootFile is the removable-media path of that architecture (UEFI 2.10, 3.5.1.1).
func BootFile(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "EFI/BOOT/BOOTX64.EFI", nil
	case "arm64":
		return "EFI/BOOT/BOOTAA64.EFI", nil
	}
	return "", fmt.Errorf("no boot file is known here for %q", arch)
}

// loaderConf: no menu unless a key is held, no editing of the command line, keys enrolled only by the installer.
const loaderConf = "timeout 0\neditor no\nauto-entries no\nauto-firmware no\nsecure-boot-enroll off\n"

// Files are what an ESP holds.
func (l Layout) Files() ([]fat.File, error) {
	boot, err := BootFile(l.Arch)
	if err != nil {
		return nil, err
	}
	return append([]fat.File{
		{Path: boot, Content: bytes.NewReader(l.BootManager)},
		{Path: fmt.Sprintf("EFI/Linux/tributary-%d.efi", l.Install), Content: bytes.NewReader(l.UKI)},
		{Path: "loader/loader.conf", Content: bytes.NewReader([]byte(loaderConf))},
	}, l.ESP...), nil
}

// Table is the partition table, without a file being written.
func (l Layout) Table() (*gpt.Table, error) {
	root, tree, err := gpt.RootTypes(l.Arch)
	if err != nil {
		return nil, err
	}
	rootID, treeID := gpt.RootIDs(l.RootHash)
	named := func(label string) gpt.GUID { return gpt.Named(l.Profile, l.Arch, label) }
	t := &gpt.Table{Disk: named("disk"), SectorSize: sector, Sectors: uint64(l.Sizes.Total()) * mib / sector}
	at := uint64(mib / sector)
	add := func(label string, kind, id gpt.GUID, size int64, attrs uint64) {
		n := uint64(size) * mib / sector
		t.Partitions = append(t.Partitions, gpt.Partition{Type: kind, ID: id, First: at, Last: at + n - 1, Attributes: attrs, Name: label})
		at += n
	}
	add("esp-a", gpt.ESP, named("esp-a"), l.Sizes.ESP, 0)
	add("esp-b", gpt.ESP, named("esp-b"), l.Sizes.ESP, 0)
	add("root-a", root, rootID, l.Sizes.Root, gpt.ReadOnly)
	add("root-a-verity", tree, treeID, l.Sizes.Verity, gpt.ReadOnly)
	add("root-b", root, named("root-b"), l.Sizes.Root, gpt.ReadOnly)
	add("root-b-verity", tree, named("root-b-verity"), l.Sizes.Verity, gpt.ReadOnly)
	add("config", gpt.BasicData, named("config"), l.Sizes.Config, 0)
	add("state", gpt.LinuxGeneric, named("state"), l.Sizes.State, 0)
	add("data", gpt.LinuxGeneric, named("data"), l.Sizes.Data, 0)
	return t, t.Check()
}

// Image is a raw image that was written.
type Image struct {
	Path  string
	Size  int64
	Table *gpt.Table
	Map   bmap.Map
}

// Write makes the raw image, a sparse file. The same layout gives the same bytes.
func Write(path string, l Layout) (*Image, error) {
	t, err := l.Table()
	if err != nil {
		return nil, err
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int64(t.Sectors) * sector
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	s := &sparse{f: f, written: map[int64]bool{}, mapped: map[int64]bool{}}
	if err := l.write(s, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m, err := bmap.Make(f, size, s.blocks())
	if err != nil {
		return nil, err
	}
	return &Image{Path: path, Size: size, Table: t, Map: m}, f.Close()
}

func (l Layout) write(s *sparse, t *gpt.Table) error {
	files, err := l.Files()
	if err != nil {
		return err
	}
	id := func(label string) uint32 {
		_, p := t.Find(label)
		return uint32(p.ID[0])<<24 | uint32(p.ID[1])<<16 | uint32(p.ID[2])<<8 | uint32(p.ID[3])
	}
	steps := []struct {
		label string
		do    func(w part) error
	}{
		// The first ESP's files at its end and the second's at its start: a compressor sees that they are the same.
		{"esp-a", func(w part) error {
			return fat.Write(w, w.size, fat.Options{Label: "ESP-A", VolumeID: id("esp-a"), Time: l.Time, AtEnd: true}, files)
		}},
		{"esp-b", func(w part) error {
			return fat.Write(w, w.size, fat.Options{Label: "ESP-B", VolumeID: id("esp-b"), Time: l.Time}, files)
		}},
		{"root-a", func(w part) error { return w.copy(l.Root) }},
		{"root-a-verity", func(w part) error { return w.copy(l.Verity) }},
		{"config", func(w part) error {
			return fat.Write(w, w.size, fat.Options{Label: "CONFIG", VolumeID: id("config"), Time: l.Time}, l.Config)
		}},
		// A box that was flashed anew must not find the keys of its former life.
		{"state", part.blank},
		{"data", part.blank},
	}
	for _, step := range steps {
		_, p := t.Find(step.label)
		if err := step.do(part{s, t.Offset(p), t.Size(p)}); err != nil {
			return fmt.Errorf("%s: %w", step.label, err)
		}
	}
	return t.Write(s)
}

// ErrTooSmall: a partition of the profile cannot hold what was built.
var ErrTooSmall = errors.New("the partition is too small for what was built; give the profile more room")

// part is one partition of the image being written.
type part struct {
	s      *sparse
	offset int64
	size   int64
}

func (p part) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > p.size {
		return 0, ErrTooSmall
	}
	return p.s.WriteAt(b, p.offset+off)
}

// keyArea is where LUKS2 keeps its headers and keys (LUKS2 On-Disk Format 1.1.4, table 1: at most 4 MiB of header twice,
// and key slots up to the data, which cryptsetup begins at 16 MiB).
const keyArea = 16 * mib

// blank writes zeros where a former volume has its keys.
func (p part) blank() error {
	_, err := p.WriteAt(make([]byte, min(keyArea, p.size)), 0)
	return err
}

func (p part) copy(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > p.size || info.Size()%verity.BlockSize != 0 {
		return fmt.Errorf("%w: %d bytes for %d", ErrTooSmall, info.Size(), p.size)
	}
	buf := make([]byte, mib)
	for at := int64(0); at < info.Size(); at += int64(len(buf)) {
		n, err := f.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := p.WriteAt(buf[:n], at); err != nil {
			return err
		}
	}
	return nil
}
