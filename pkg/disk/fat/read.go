package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	maxDepth   = 8
	maxEntries = 4096    // files and folders of a whole volume
	maxFolder  = 2 << 20 // bytes, as the specification has it
)

// ErrDamaged: the volume is not what a FAT32 volume should be.
var ErrDamaged = errors.New("the FAT volume is damaged")

// Entry is a file or a folder found in a volume.
type Entry struct {
	Path  string // with slashes
	Dir   bool
	Size  int64
	first uint32
}

// Volume is an opened FAT32 volume. It trusts nothing that it reads; its memory is bounded by one FAT.
type Volume struct {
	geometry
	Label   string
	ID      uint32
	r       io.ReaderAt
	fat     []byte
	mirror  int64 // offset of the second FAT
	entries []Entry
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// Open reads the tables and all folders of a volume of size bytes.
func Open(r io.ReaderAt, size int64) (*Volume, error) {
	boot := make([]byte, sector)
	if err := readAll(r, boot, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	v := &Volume{r: r, ID: le.Uint32(boot[67:]), Label: strings.TrimRight(string(boot[71:82]), " ")}
	v.sectors, v.perCluster, v.reserved, v.geometry.fat = int64(le.Uint32(boot[32:])), int64(boot[13]), int64(le.Uint16(boot[14:])), int64(le.Uint32(boot[36:]))
	switch {
	case boot[510] != 0x55 || boot[511] != 0xaa || string(boot[82:87]) != "FAT32":
		return nil, damaged("no FAT32 boot sector")
	case le.Uint16(boot[11:]) != sector || boot[16] != 2 || v.perCluster == 0 || v.perCluster&(v.perCluster-1) != 0:
		return nil, damaged("sectors of %d, %d tables, clusters of %d sectors", le.Uint16(boot[11:]), boot[16], v.perCluster)
	case v.sectors > size/sector || v.reserved == 0 || v.geometry.fat == 0 || v.reserved+2*v.geometry.fat >= v.sectors:
		return nil, damaged("its parts do not fit in %d bytes", size)
	}
	v.clusters = (v.sectors - v.reserved - 2*v.geometry.fat) / v.perCluster
	if v.clusters > maxClusters || v.geometry.fat*sector/4 < v.clusters+2 {
		return nil, damaged("%d clusters, a table of %d sectors", v.clusters, v.geometry.fat)
	}
	v.fat = make([]byte, (v.clusters+2)*4)
	if err := readAll(r, v.fat, v.reserved*sector); err != nil {
		return nil, err
	}
	v.mirror = (v.reserved + v.geometry.fat) * sector
	return v, v.walk("", le.Uint32(boot[44:]), 0, map[uint32]bool{})
}

func readAll(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}

func (v *Volume) next(c uint32) uint32 { return binary.LittleEndian.Uint32(v.fat[4*c:]) & 0x0fffffff }

// chain gives the clusters from first on. A chain longer than most, or one that leaves the volume, is damage.
func (v *Volume) chain(first uint32, most int64) ([]uint32, error) {
	var out []uint32
	for c := first; ; c = v.next(c) {
		if c >= 0x0ffffff8 {
			return out, nil
		}
		if c < 2 || int64(c) >= v.clusters+2 {
			return nil, damaged("a chain from cluster %d leads to %d", first, c)
		}
		if int64(len(out)) >= most {
			return nil, damaged("the chain from cluster %d is longer than %d", first, most)
		}
		out = append(out, c)
	}
}

func (v *Volume) walk(dir string, first uint32, depth int, seen map[uint32]bool) error {
	if depth > maxDepth || seen[first] {
		return damaged("%s: folders in a ring or too deep", dir)
	}
	seen[first] = true
	clusters, err := v.chain(first, maxFolder/v.cluster()+1)
	if err != nil {
		return err
	}
	var long []uint16
	var sum byte
	for _, c := range clusters {
		b := make([]byte, v.cluster())
		if err := readAll(v.r, b, v.offset(c)); err != nil {
			return err
		}
		for ; len(b) >= 32; b = b[32:] {
			e := b[:32]
			switch {
			case e[0] == 0:
				return nil
			case e[0] == 0xe5:
				long = nil
			case e[11]&0x3f == attrLong:
				long, sum = gather(long, e), e[13]
			case e[11]&attrLabel != 0:
				long = nil
			default:
				name := entryName(e, long, sum)
				long = nil
				if name == "." || name == ".." {
					continue
				}
				if err := v.entry(dir, name, e, depth, seen); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (v *Volume) entry(dir, name string, e []byte, depth int, seen map[uint32]bool) error {
	le := binary.LittleEndian
	f := Entry{Path: dir + name, Dir: e[11]&attrDir != 0, Size: int64(le.Uint32(e[28:])), first: uint32(le.Uint16(e[20:]))<<16 | uint32(le.Uint16(e[26:]))}
	if len(v.entries) >= maxEntries {
		return damaged("more than %d files", maxEntries)
	}
	if checkName(name) != nil {
		return damaged("%s: name %q", dir, name)
	}
	if f.Dir {
		f.Size = 0
	}
	v.entries = append(v.entries, f)
	if f.Dir {
		return v.walk(f.Path+"/", f.first, depth+1, seen)
	}
	return nil
}

// gather puts a long entry's thirteen units before those of the entries after it in the name.
func gather(long []uint16, e []byte) []uint16 {
	if e[0]&0x40 != 0 {
		long = nil
	}
	if len(long) > 255 {
		return nil
	}
	part := make([]uint16, 0, 13)
	for _, at := range units {
		c := binary.LittleEndian.Uint16(e[at:])
		if c == 0 || c == 0xffff {
			break
		}
		part = append(part, c)
	}
	return append(part, long...)
}

func entryName(e []byte, long []uint16, sum byte) string {
	short := [11]byte(e[:11])
	if len(long) > 0 && checksum(short) == sum {
		return string(utf16.Decode(long))
	}
	base, ext := strings.TrimRight(string(short[:8]), " "), strings.TrimRight(string(short[8:]), " ")
	if e[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return base
}

// Entries lists files and folders in the order of the disk.
func (v *Volume) Entries() []Entry { return slices.Clone(v.entries) }

func (v *Volume) find(path string) (Entry, error) {
	for _, e := range v.entries {
		if !e.Dir && strings.EqualFold(e.Path, path) {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("no file %s in the volume", path)
}

// ReadFile gives a file's bytes, at most limit of them; capitals do not matter.
func (v *Volume) ReadFile(path string, limit int64) ([]byte, error) {
	f, err := v.OpenFile(path)
	if err != nil {
		return nil, err
	}
	if f.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes: at most %d are read", path, f.Size(), limit)
	}
	out := make([]byte, f.Size())
	return out, readAll(f, out, 0)
}

// OpenFile opens a file for reading here and there; capitals do not matter.
func (v *Volume) OpenFile(path string) (Content, error) {
	e, err := v.find(path)
	if err != nil {
		return nil, err
	}
	f := &file{v: v, size: e.Size}
	if e.Size == 0 {
		return f, nil
	}
	if f.clusters, err = v.chain(e.first, int64(v.clustersOf(e.Size))); err != nil {
		return nil, err
	}
	if int64(len(f.clusters))*v.cluster() < e.Size {
		return nil, damaged("%s: its chain is too short", e.Path)
	}
	return f, nil
}

// file is an opened file of a volume.
type file struct {
	v        *Volume
	size     int64
	clusters []uint32
}

func (f *file) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt. Clusters that lie side by side are read at once.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("before the file's start")
	}
	if off >= f.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), f.size-off)]
	for n := 0; n < len(want); {
		at := off + int64(n)
		i, within := int(at/f.v.cluster()), at%f.v.cluster()
		run := i + 1
		for run < len(f.clusters) && f.clusters[run] == f.clusters[run-1]+1 {
			run++
		}
		k := min(int64(len(want)-n), int64(run-i)*f.v.cluster()-within)
		if err := readAll(f.v.r, want[n:n+int(k)], f.v.offset(f.clusters[i])+within); err != nil {
			return n, err
		}
		n += int(k)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// Check says whether the volume is consistent: both tables equal, every chain as long as its file, no cluster in two.
func (v *Volume) Check() error {
	second := make([]byte, len(v.fat))
	if err := readAll(v.r, second, v.mirror); err != nil {
		return err
	}
	if !slices.Equal(second[8:], v.fat[8:]) {
		return damaged("the two tables differ")
	}
	owner := map[uint32]string{}
	for _, e := range v.entries {
		if !e.Dir && e.Size == 0 {
			if e.first != 0 {
				return damaged("%s is empty and has clusters", e.Path)
			}
			continue
		}
		most := maxFolder/v.cluster() + 1
		if !e.Dir {
			most = int64(v.clustersOf(e.Size))
		}
		clusters, err := v.chain(e.first, most)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		if !e.Dir && int64(len(clusters)) != most {
			return damaged("%s: %d clusters for %d bytes", e.Path, len(clusters), e.Size)
		}
		for _, c := range clusters {
			if other, ok := owner[c]; ok {
				return damaged("%s and %s share cluster %d", other, e.Path, c)
			}
			owner[c] = e.Path
		}
	}
	return nil
}
