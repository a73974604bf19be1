// Package gpt answers: which partitions does this disk have, and how are they written so that a power cut leaves one good table?
//
// The format is the GUID Partition Table of UEFI 2.10, section 5.3: a header and an array of entries at the disk's
// start, and the same at its end. A reader takes the first copy whose checksums hold.
package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"
)

const (
	entries   = 128 // of 128 bytes each, as every tool writes
	entrySize = 128
	maxName   = 36 // UTF-16 units
)

var signature = []byte("EFI PART")

// ErrNone: neither copy of the table is whole.
var ErrNone = errors.New("no whole partition table on the disk")

// Partition is one entry. First and Last are sectors, both inside.
type Partition struct {
	Type, ID    GUID
	First, Last uint64
	Attributes  uint64
	Name        string // at most 36 UTF-16 units
}

// Empty says that the entry is not in use.
func (p Partition) Empty() bool { return p.Type == GUID{} }

// Table is the partition table of one disk. An entry's place in Partitions is its number less one.
type Table struct {
	Disk       GUID
	SectorSize int64  // bytes: 512 or 4096
	Sectors    uint64 // of the whole disk
	Partitions []Partition
}

// Copy names one of a disk's two tables.
type Copy string

const (
	Primary Copy = "primary"
	Backup  Copy = "backup"
)

// Find returns the number (from 1) and the entry with that label, or 0.
func (t *Table) Find(name string) (int, Partition) {
	for i, p := range t.Partitions {
		if !p.Empty() && p.Name == name {
			return i + 1, p
		}
	}
	return 0, Partition{}
}

// ByID returns the number (from 1) and the entry with that unique GUID, or 0.
func (t *Table) ByID(id GUID) (int, Partition) {
	for i, p := range t.Partitions {
		if !p.Empty() && p.ID == id {
			return i + 1, p
		}
	}
	return 0, Partition{}
}

// Offset is where the partition begins, in bytes.
func (t *Table) Offset(p Partition) int64 { return int64(p.First) * t.SectorSize }

// Size is how many bytes the partition has.
func (t *Table) Size(p Partition) int64 { return int64(p.Last-p.First+1) * t.SectorSize }

func (t *Table) arraySectors() uint64 { return uint64(entries * entrySize / t.SectorSize) }

// Usable is the first and the last sector that a partition may take.
func (t *Table) Usable() (first, last uint64) {
	n := t.arraySectors()
	return 2 + n, t.Sectors - n - 2
}

// Check says what is wrong with the table: entries outside the disk, over each other, without a name's room or an ID twice.
func (t *Table) Check() error {
	if t.SectorSize != 512 && t.SectorSize != 4096 {
		return fmt.Errorf("sectors of %d bytes: want 512 or 4096", t.SectorSize)
	}
	if t.Sectors < 2*t.arraySectors()+8 || t.Sectors > 1<<52 {
		return fmt.Errorf("a disk of %d sectors holds no table", t.Sectors)
	}
	if len(t.Partitions) > entries {
		return fmt.Errorf("%d partitions: at most %d", len(t.Partitions), entries)
	}
	first, last := t.Usable()
	for i, p := range t.Partitions {
		if p.Empty() {
			continue
		}
		if p.First < first || p.Last > last || p.First > p.Last {
			return fmt.Errorf("partition %d (%s) lies at %d to %d, outside %d to %d", i+1, p.Name, p.First, p.Last, first, last)
		}
		if len(utf16.Encode([]rune(p.Name))) > maxName {
			return fmt.Errorf("partition %d: name %q is longer than %d", i+1, p.Name, maxName)
		}
		for j, q := range t.Partitions[:i] {
			if q.Empty() {
				continue
			}
			if p.First <= q.Last && q.First <= p.Last {
				return fmt.Errorf("partitions %d and %d overlap", j+1, i+1)
			}
			if p.ID == q.ID {
				return fmt.Errorf("partitions %d and %d have the same GUID %s", j+1, i+1, p.ID)
			}
		}
	}
	return nil
}

// Grow takes a larger disk's size into account: the backup moves to the new end, and the partition with that number
// takes all that is free behind it. The number 0 grows none. It answers whether anything changed. Pure: Write writes.
func (t *Table) Grow(size int64, number int) (changed bool, err error) {
	sectors := uint64(size / t.SectorSize)
	if sectors < t.Sectors {
		return false, fmt.Errorf("the disk has %d sectors, its table was made for %d", sectors, t.Sectors)
	}
	changed = sectors != t.Sectors
	t.Sectors = sectors
	if number == 0 {
		return changed, nil
	}
	if number < 0 || number > len(t.Partitions) || t.Partitions[number-1].Empty() {
		return false, fmt.Errorf("there is no partition %d to grow", number)
	}
	p := &t.Partitions[number-1]
	_, end := t.Usable()
	for i, q := range t.Partitions {
		if i != number-1 && !q.Empty() && q.First > p.First && q.First-1 < end {
			end = q.First - 1
		}
	}
	// Whole MiB, so that file systems and flash agree on the end.
	mib := uint64(1<<20) / uint64(t.SectorSize)
	if whole := (end + 1) / mib * mib; whole > p.Last+1 {
		p.Last, changed = whole-1, true
	}
	return changed, nil
}

// Read reads the table of a disk of size bytes: the primary where it is whole, else the backup at the disk's end.
// It reads at most 40 KiB and allocates no more. The answer satisfies Check.
func Read(r io.ReaderAt, size int64) (*Table, Copy, error) {
	var faults []error
	for _, sector := range []int64{512, 4096} {
		if size < 96*sector {
			continue
		}
		t, err := readAt(r, sector, 1, size)
		if err == nil {
			return t, Primary, nil
		}
		faults = append(faults, fmt.Errorf("primary, sectors of %d: %w", sector, err))
	}
	for _, sector := range []int64{512, 4096} {
		if size < 96*sector {
			continue
		}
		t, err := readAt(r, sector, uint64(size/sector)-1, size)
		if err == nil {
			return t, Backup, nil
		}
		faults = append(faults, fmt.Errorf("backup, sectors of %d: %w", sector, err))
	}
	return nil, "", fmt.Errorf("%w: %w", ErrNone, errors.Join(faults...))
}

func readAt(r io.ReaderAt, sector int64, lba uint64, size int64) (*Table, error) {
	h := make([]byte, 92)
	if _, err := r.ReadAt(h, int64(lba)*sector); err != nil {
		return nil, err
	}
	if !bytes.Equal(h[:8], signature) {
		return nil, errors.New("no signature")
	}
	le := binary.LittleEndian
	if n := le.Uint32(h[12:]); n != 92 {
		return nil, fmt.Errorf("header of %d bytes: want 92", n)
	}
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h) != sum {
		return nil, errors.New("the header's checksum is wrong")
	}
	if le.Uint64(h[24:]) != lba {
		return nil, errors.New("the header belongs to another sector")
	}
	if n, each := le.Uint32(h[80:]), le.Uint32(h[84:]); n != entries || each != entrySize {
		return nil, fmt.Errorf("%d entries of %d bytes: want %d of %d", n, each, entries, entrySize)
	}
	at := le.Uint64(h[72:])
	if at > uint64(size/sector) {
		return nil, errors.New("the entries lie outside the disk")
	}
	array := make([]byte, entries*entrySize)
	if _, err := r.ReadAt(array, int64(at)*sector); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(array) != le.Uint32(h[88:]) {
		return nil, errors.New("the entries' checksum is wrong")
	}
	t := &Table{SectorSize: sector, Sectors: max(lba, le.Uint64(h[32:])) + 1}
	copy(t.Disk[:], h[56:])
	if int64(t.Sectors) > size/sector || t.Sectors == 0 {
		return nil, fmt.Errorf("the table is for %d sectors, the disk has %d", t.Sectors, size/sector)
	}
	last := 0
	for i := range entries {
		p := decode(array[i*entrySize:])
		t.Partitions = append(t.Partitions, p)
		if !p.Empty() {
			last = i + 1
		}
	}
	t.Partitions = t.Partitions[:last]
	return t, t.Check()
}

func decode(b []byte) (p Partition) {
	copy(p.Type[:], b)
	copy(p.ID[:], b[16:])
	le := binary.LittleEndian
	p.First, p.Last, p.Attributes = le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:])
	units := make([]uint16, 0, maxName)
	for i := range maxName {
		u := le.Uint16(b[56+2*i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	p.Name = strings.ToValidUTF8(string(utf16.Decode(units)), "?")
	return p
}

// Piece is bytes for one place of a disk.
type Piece struct {
	Offset int64
	Data   []byte
}

// Encode gives both copies: first the backup (entries and header), then the primary, which begins with the protective
// master boot record. The same table gives the same bytes.
func (t *Table) Encode() (backup, primary Piece, err error) {
	if err := t.Check(); err != nil {
		return Piece{}, Piece{}, err
	}
	array := make([]byte, entries*entrySize)
	for i, p := range t.Partitions {
		encode(array[i*entrySize:], p)
	}
	n := t.arraySectors()
	primary = Piece{Data: make([]byte, int64(2+n)*t.SectorSize)}
	t.protective(primary.Data)
	t.header(primary.Data[t.SectorSize:], array, 1, t.Sectors-1, 2)
	copy(primary.Data[2*t.SectorSize:], array)

	backup = Piece{Offset: int64(t.Sectors-1-n) * t.SectorSize, Data: make([]byte, int64(1+n)*t.SectorSize)}
	copy(backup.Data, array)
	t.header(backup.Data[int64(n)*t.SectorSize:], array, t.Sectors-1, 1, t.Sectors-1-n)
	return backup, primary, nil
}

func encode(b []byte, p Partition) {
	if p.Empty() {
		return
	}
	copy(b, p.Type[:])
	copy(b[16:], p.ID[:])
	le := binary.LittleEndian
	le.PutUint64(b[32:], p.First)
	le.PutUint64(b[40:], p.Last)
	le.PutUint64(b[48:], p.Attributes)
	for i, u := range utf16.Encode([]rune(p.Name)) {
		le.PutUint16(b[56+2*i:], u)
	}
}

// protective is the master boot record that tells old tools the disk is taken (UEFI 2.10, 5.2.3).
func (t *Table) protective(b []byte) {
	e := b[446:]
	copy(e, []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	binary.LittleEndian.PutUint32(e[12:], uint32(min(t.Sectors-1, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
}

func (t *Table) header(b, array []byte, self, other, at uint64) {
	le := binary.LittleEndian
	copy(b, signature)
	le.PutUint32(b[8:], 0x00010000)
	le.PutUint32(b[12:], 92)
	le.PutUint64(b[24:], self)
	le.PutUint64(b[32:], other)
	first, last := t.Usable()
	le.PutUint64(b[40:], first)
	le.PutUint64(b[48:], last)
	copy(b[56:], t.Disk[:])
	le.PutUint64(b[72:], at)
	le.PutUint32(b[80:], entries)
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(array))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
}

// Disk is what Write needs. An *os.File of a disk or an image is one.
type Disk interface {
	io.WriterAt
	Sync() error
}

// Write writes the backup, waits until it is on the disk, then writes the primary and waits again. A power cut at any
// point leaves at least one whole table, the old or the new one. It may be repeated.
func (t *Table) Write(d Disk) error {
	backup, primary, err := t.Encode()
	if err != nil {
		return err
	}
	for _, p := range []Piece{backup, primary} {
		if _, err := d.WriteAt(p.Data, p.Offset); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return nil
}
