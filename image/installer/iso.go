// Package installer answers: what does a person put on a stick, or burn, to get the system onto a box?
//
// One file serves as disk and as disc: a GUID partition table with one FAT32 volume, and beside it the few sectors of
// ISO 9660 (ECMA-119) with an El Torito catalog that leads firmware to the same volume. It holds the installer's
// signed UKI at the removable-media path, the compressed image and its block map.
package installer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
)

// Label is the partition's name in the table, by which the installer finds its medium.
const Label = "tributary-install"

// Names of the files on the medium.
const (
	ImageFile = "tributary/disk.raw.zst"
	MapFile   = "tributary/disk.raw.bmap"
)

const (
	block = 2048 // of ISO 9660
	mib   = 1 << 20
)

// Medium is what the installer image is made of.
type Medium struct {
	Arch  string
	Title string // for people, at most 32 of A-Z, 0-9 and _
	UKI   []byte // signed, with the installer's command line
	Image fat.Content
	Map   []byte
	Files []fat.File // more, such as key variables
	Time  time.Time
}

// Write makes the image. The same medium gives the same bytes.
func Write(path string, m Medium) error {
	boot, err := disk.BootFile(m.Arch)
	if err != nil {
		return err
	}
	files := append([]fat.File{
		{Path: boot, Content: bytes.NewReader(m.UKI)},
		{Path: ImageFile, Content: m.Image},
		{Path: MapFile, Content: bytes.NewReader(m.Map)},
	}, m.Files...)
	var need int64
	for _, f := range files {
		need += f.Content.Size() + 64<<10
	}
	volume := (max(need+need/512+2*mib, fat.MinSize) + mib - 1) / mib * mib
	size := volume + 2*mib
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	id := gpt.Named("installer", m.Title, m.Arch)
	t := &gpt.Table{Disk: gpt.Named("installer disk", m.Title, m.Arch), SectorSize: 512, Sectors: uint64(size / 512), Partitions: []gpt.Partition{
		{Type: gpt.ESP, ID: id, First: mib / 512, Last: uint64(mib+volume)/512 - 1, Name: Label},
	}}
	o := fat.Options{Label: "TRIBUTARY", VolumeID: binary.BigEndian.Uint32(id[:]), Time: m.Time}
	if err := fat.Write(offset{f, mib}, volume, o, files); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := t.Write(f); err != nil {
		return err
	}
	if _, err := f.WriteAt(isoSectors(m.Title, size/block, mib/block), 16*block); err != nil {
		return err
	}
	return f.Close()
}

// offset writes into a part of a file.
type offset struct {
	f  *os.File
	at int64
}

func (o offset) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("before the start")
	}
	return o.f.WriteAt(b, o.at+off)
}

const readme = "This disc installs Tributary on the computer that starts from it.\r\nCopied to a USB stick as it is, byte by byte, it does the same.\r\n"

// isoSectors are the sectors from the sixteenth on (ECMA-119, 6.2.1 leaves those before to the system): primary volume
// descriptor, boot record, terminator, boot catalog, two path tables, the root folder, and a file for people.
func isoSectors(title string, blocks, esp int64) []byte {
	b := make([]byte, 8*block)
	sector := func(n int) []byte { return b[(n-16)*block : (n-15)*block] }
	le, be := binary.LittleEndian, binary.BigEndian
	both32 := func(p []byte, v uint32) { le.PutUint32(p, v); be.PutUint32(p[4:], v) }
	both16 := func(p []byte, v uint16) { le.PutUint16(p, v); be.PutUint16(p[2:], v) }
	record := func(name string, at, size uint32, flags byte) []byte {
		r := make([]byte, (33+len(name)+1)&^1)
		r[0] = byte(len(r))
		both32(r[2:], at)
		both32(r[10:], size)
		copy(r[18:], []byte{100, 1, 1, 0, 0, 0, 0}) // 2000-01-01
		r[25] = flags
		both16(r[28:], 1)
		r[32] = byte(len(name))
		copy(r[33:], name)
		return r
	}
	pvd := sector(16)
	copy(pvd, "\x01CD001\x01")
	for _, r := range [][2]int{{8, 72}, {190, 813}} {
		for i := r[0]; i < r[1]; i++ {
			pvd[i] = ' '
		}
	}
	copy(pvd[40:72], title)
	both32(pvd[80:], uint32(blocks))
	both16(pvd[120:], 1)
	both16(pvd[124:], 1)
	both16(pvd[128:], block)
	both32(pvd[132:], 10)
	le.PutUint32(pvd[140:], 20)
	be.PutUint32(pvd[148:], 21)
	copy(pvd[156:], record("\x00", 22, block, 2))
	for i := range 4 { // dates: created, changed, expires, effective; zeros in digits mean unknown
		copy(pvd[813+17*i:], "0000000000000000\x00")
	}
	pvd[881] = 1

	copy(sector(17), "\x00CD001\x01EL TORITO SPECIFICATION")
	le.PutUint32(sector(17)[71:], 19)
	copy(sector(18), "\xffCD001\x01")

	catalog := sector(19)
	copy(catalog, []byte{1, 0xef}) // for EFI
	copy(catalog[30:], []byte{0x55, 0xaa})
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += le.Uint16(catalog[i:])
	}
	le.PutUint16(catalog[28:], -sum)
	// No emulation. The count of sectors has 16 bits; 1 makes firmware take the volume to the disc's end.
	catalog[32] = 0x88
	le.PutUint16(catalog[38:], 1)
	le.PutUint32(catalog[40:], uint32(esp))

	copy(sector(20), []byte{1, 0, 22, 0, 0, 0, 1, 0})
	copy(sector(21), []byte{1, 0, 0, 0, 0, 22, 0, 1})
	root := sector(22)
	n := copy(root, record("\x00", 22, block, 2))
	n += copy(root[n:], record("\x01", 22, block, 2))
	copy(root[n:], record("README.TXT;1", 23, uint32(len(readme)), 0))
	copy(sector(23), readme)
	return b
}
