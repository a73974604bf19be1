// Package fat answers: how does a FAT32 volume come to be the same to the bit each time, and what lies in one that nobody vouches for?
//
// The format is that of Microsoft's FAT specification (fatgen103) with long names. Firmware reads ESPs of this form;
// a person's computer reads and writes CONFIG.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

const (
	sector      = 512
	minClusters = 65525 // fewer make it FAT16 (fatgen103, page 14)
	maxClusters = 1 << 24
	reserved    = 32 // sectors before the first FAT, at least
	endOfChain  = 0x0fffffff
	attrDir     = 0x10
	attrLabel   = 0x08
	attrLong    = 0x0f
)

// Content is a file's bytes. *bytes.Reader, *strings.Reader and *io.SectionReader are such.
type Content interface {
	io.ReaderAt
	Size() int64
}

// File is a file of the volume. Folders on its way are made.
type File struct {
	Path    string // with slashes, at most 8 deep; names as on a PC: no \ : * ? " < > |
	Content Content
}

// Options of a new volume.
type Options struct {
	Label    string    // at most 11 capitals and digits
	VolumeID uint32    //
	Time     time.Time // of all files; before 1980 counts as 1980
	AtEnd    bool      // files' data at the volume's end: two such volumes side by side lie near each other for a compressor
}

// ErrFull: the files need more room than the volume has.
var ErrFull = errors.New("the volume is too small for its files")

// MinSize is the smallest volume that is FAT32, in bytes.
const MinSize = 34 << 20

type geometry struct {
	sectors, perCluster, reserved, fat, clusters int64
}

// shape decides the layout of a volume of that size. Clusters of 4 KiB where there are enough of them, data at a
// multiple of 4 KiB from the start.
func shape(size int64) (geometry, error) {
	for _, per := range []int64{8, 4, 2, 1} {
		g := geometry{sectors: size / sector, perCluster: per, reserved: reserved}
		for { // the FAT only gets longer, the clusters fewer: it ends
			g.reserved = reserved + (8-(reserved+2*g.fat)%8)%8
			g.clusters = (g.sectors - g.reserved - 2*g.fat) / per
			need := ((g.clusters+2)*4 + sector - 1) / sector
			if need <= g.fat {
				break
			}
			g.fat = need
		}
		if g.clusters >= minClusters+16 && g.clusters <= maxClusters {
			return g, nil
		}
	}
	return geometry{}, fmt.Errorf("a volume of %d bytes is no FAT32: at least %d, at most %d", size, MinSize, maxClusters*8*sector)
}

func (g geometry) cluster() int64            { return g.perCluster * sector }
func (g geometry) offset(c uint32) int64     { return (g.reserved+2*g.fat)*sector + int64(c-2)*g.cluster() }
func (g geometry) clustersOf(n int64) uint32 { return uint32((n + g.cluster() - 1) / g.cluster()) }

// node is a file or a folder on its way to the disk.
type node struct {
	name     string
	content  Content // nil for a folder
	children []*node
	parent   *node
	first    uint32
	clusters uint32
}

// Write makes a volume of size bytes with those files. What lies in the volume's unused part stays as it was.
// The same options and files, in any order, give the same bytes.
func Write(w io.WriterAt, size int64, o Options, files []File) error {
	g, err := shape(size)
	if err != nil {
		return err
	}
	root, err := grow(files)
	if err != nil {
		return err
	}
	v := &volume{geometry: g, w: w, o: o, fat: make([]uint32, g.clusters+2)}
	v.fat[0], v.fat[1] = 0x0ffffff8, endOfChain
	if err := v.place(root); err != nil {
		return err
	}
	if err := v.writeNode(root); err != nil {
		return err
	}
	return v.writeTables()
}

// grow makes the tree of folders, sorted, and refuses what a volume cannot hold.
func grow(files []File) (*node, error) {
	root := &node{}
	for _, f := range files {
		parts := strings.Split(f.Path, "/")
		if len(parts) > maxDepth {
			return nil, fmt.Errorf("%s: more than %d deep", f.Path, maxDepth)
		}
		at := root
		for i, name := range parts {
			if err := checkName(name); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Path, err)
			}
			k := slices.IndexFunc(at.children, func(n *node) bool { return strings.EqualFold(n.name, name) })
			last := i == len(parts)-1
			switch {
			case k < 0:
				n := &node{name: name, parent: at}
				if last {
					n.content = f.Content
				}
				at.children = append(at.children, n)
				at = n
			case last || at.children[k].content != nil || at.children[k].name != name:
				return nil, fmt.Errorf("%s: the name is taken", f.Path)
			default:
				at = at.children[k]
			}
		}
		if at.content == nil || at.content.Size() > 0xffffffff {
			return nil, fmt.Errorf("%s: a file needs content, of less than 4 GiB", f.Path)
		}
	}
	var sort func(n *node)
	sort = func(n *node) {
		slices.SortFunc(n.children, func(a, b *node) int { return strings.Compare(a.name, b.name) })
		for _, c := range n.children {
			sort(c)
		}
	}
	sort(root)
	return root, nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(utf16.Encode([]rune(name))) > 255 {
		return fmt.Errorf("name %q: want 1 to 255 characters", name)
	}
	if strings.ContainsAny(name, `\/:*?"<>|`) || strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f }) ||
		strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") || strings.HasPrefix(name, " ") {
		return fmt.Errorf("name %q holds what FAT cannot", name)
	}
	return nil
}

type volume struct {
	geometry
	w    io.WriterAt
	o    Options
	fat  []uint32
	free uint32 // clusters left
	next uint32 // first free one
}

// place gives folders their clusters from the front, and files theirs behind or at the end.
func (v *volume) place(root *node) error {
	next, total := uint32(2), uint32(len(v.fat))
	var files []*node
	var folders func(n *node)
	folders = func(n *node) {
		n.clusters = max(1, v.clustersOf(int64(len(v.entries(n)))))
		n.first, next = next, next+n.clusters
		for _, c := range n.children {
			if c.content == nil {
				folders(c)
			} else {
				c.clusters = v.clustersOf(c.content.Size())
				files = append(files, c)
			}
		}
	}
	folders(root)
	var need uint32
	for _, f := range files {
		if need += f.clusters; need > total {
			return ErrFull
		}
	}
	if next+need > total {
		return fmt.Errorf("%w: %d clusters of %d bytes, %d wanted", ErrFull, total-2, v.cluster(), next-2+need)
	}
	v.free, v.next = total-next-need, next
	if v.o.AtEnd {
		next = total - need
	} else {
		v.next += need
	}
	for _, f := range files {
		if f.clusters > 0 {
			f.first, next = next, next+f.clusters
		}
	}
	return nil
}

func (v *volume) writeNode(n *node) error {
	for i := range n.clusters {
		v.fat[n.first+i] = n.first + i + 1
		if i == n.clusters-1 {
			v.fat[n.first+i] = endOfChain
		}
	}
	if n.content != nil {
		return v.writeFile(n)
	}
	b := make([]byte, int64(n.clusters)*v.cluster())
	copy(b, v.entries(n))
	if _, err := v.w.WriteAt(b, v.offset(n.first)); err != nil {
		return err
	}
	for _, c := range n.children {
		if err := v.writeNode(c); err != nil {
			return err
		}
	}
	return nil
}

func (v *volume) writeFile(n *node) error {
	if n.clusters == 0 {
		return nil
	}
	buf := make([]byte, 1<<20)
	size, end := n.content.Size(), int64(n.clusters)*v.cluster()
	for at := int64(0); at < end; {
		k := min(int64(len(buf)), end-at)
		clear(buf[:k])
		if m := min(k, size-at); m > 0 {
			if got, err := n.content.ReadAt(buf[:m], at); int64(got) < m {
				return fmt.Errorf("%s: %w", n.name, err)
			}
		}
		if _, err := v.w.WriteAt(buf[:k], v.offset(n.first)+at); err != nil {
			return err
		}
		at += k
	}
	return nil
}

// stamp is a time as a directory entry has it (fatgen103, page 25), in UTC.
func stamp(t time.Time) (date, clock uint16) {
	t = t.UTC()
	if t.Year() < 1980 {
		return 1<<5 | 1, 0
	}
	return uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day()), uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
}

// entries is a folder's content.
func (v *volume) entries(n *node) []byte {
	var out []byte
	entry := func(short [11]byte, attr byte, first, size uint32) {
		e := make([]byte, 32)
		copy(e, short[:])
		e[11] = attr
		date, clock := stamp(v.o.Time)
		le := binary.LittleEndian
		for _, at := range []int{14, 22} {
			le.PutUint16(e[at:], clock)
			le.PutUint16(e[at+2:], date)
		}
		le.PutUint16(e[18:], date)
		le.PutUint16(e[20:], uint16(first>>16))
		le.PutUint16(e[26:], uint16(first))
		le.PutUint32(e[28:], size)
		out = append(out, e...)
	}
	if n.parent == nil {
		if v.o.Label != "" {
			entry(padded(v.o.Label), attrLabel, 0, 0)
		}
	} else {
		up := n.parent.first
		if n.parent.parent == nil {
			up = 0 // the root is cluster 0 for its children
		}
		entry(padded("."), attrDir, n.first, 0)
		entry(padded(".."), attrDir, up, 0)
	}
	taken := map[[11]byte]bool{}
	for _, c := range n.children {
		short, long := shortName(c.name, taken)
		taken[short] = true
		if long {
			out = append(out, longEntries(c.name, short)...)
		}
		if c.content == nil {
			entry(short, attrDir, c.first, 0)
		} else {
			entry(short, 0x20, c.first, uint32(c.content.Size()))
		}
	}
	return out
}

func padded(s string) (b [11]byte) {
	copy(b[:], "           ")
	copy(b[:], s)
	return b
}

// shortName gives the 8.3 form, and whether the name needs long entries beside it.
func shortName(name string, taken map[[11]byte]bool) (short [11]byte, long bool) {
	ext := strings.TrimPrefix(path.Ext(name), ".")
	base := strings.TrimSuffix(name, path.Ext(name))
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			switch {
			case r >= 'a' && r <= 'z':
				return r - 'a' + 'A'
			case r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("$%'-_@~`!(){}^#&", r):
				return r
			case r == '.' || r == ' ':
				return -1
			}
			return '_'
		}, s)
	}
	b, e := clean(base), clean(ext)
	join := func(b, e string) (s [11]byte) {
		s = padded(b)
		copy(s[8:], "   ")
		copy(s[8:], e)
		return s
	}
	if b == base && e == ext && len(b) > 0 && len(b) <= 8 && len(e) <= 3 && !taken[join(b, e)] {
		return join(b, e), false
	}
	e = e[:min(3, len(e))]
	for i := 1; ; i++ {
		tail := fmt.Sprintf("~%d", i)
		if s := join(b[:min(len(b), 8-len(tail))]+tail, e); !taken[s] {
			return s, true
		}
	}
}

func checksum(short [11]byte) (sum byte) {
	for _, c := range short {
		sum = sum<<7 | sum>>1
		sum += c
	}
	return sum
}

// places of the thirteen UTF-16 units in a long entry.
var units = [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

func longEntries(name string, short [11]byte) []byte {
	u := utf16.Encode([]rune(name))
	n := (len(u) + 12) / 13
	var out []byte
	for i := n; i > 0; i-- {
		e := make([]byte, 32)
		e[0], e[11], e[13] = byte(i), attrLong, checksum(short)
		if i == n {
			e[0] |= 0x40
		}
		for k, at := range units {
			c := uint16(0xffff)
			if j := (i-1)*13 + k; j < len(u) {
				c = u[j]
			} else if j == len(u) {
				c = 0
			}
			binary.LittleEndian.PutUint16(e[at:], c)
		}
		out = append(out, e...)
	}
	return out
}

// writeTables writes the two FATs and the boot sectors, these last: a volume half written is none.
func (v *volume) writeTables() error {
	le := binary.LittleEndian
	table := make([]byte, v.geometry.fat*sector)
	for i, next := range v.fat {
		le.PutUint32(table[4*i:], next)
	}
	for i := range int64(2) {
		if _, err := v.w.WriteAt(table, (v.reserved+i*v.geometry.fat)*sector); err != nil {
			return err
		}
	}
	b := make([]byte, v.reserved*sector)
	boot, info := b[:sector], b[sector:2*sector]
	copy(boot, "\xeb\x58\x90TRIBUTRY")
	le.PutUint16(boot[11:], sector)
	boot[13] = byte(v.perCluster)
	le.PutUint16(boot[14:], uint16(v.reserved))
	boot[16], boot[21] = 2, 0xf8
	le.PutUint16(boot[24:], 63)
	le.PutUint16(boot[26:], 255)
	le.PutUint32(boot[32:], uint32(v.sectors))
	le.PutUint32(boot[36:], uint32(v.geometry.fat))
	le.PutUint32(boot[44:], 2)
	le.PutUint16(boot[48:], 1)
	le.PutUint16(boot[50:], 6)
	boot[64], boot[66] = 0x80, 0x29
	le.PutUint32(boot[67:], v.o.VolumeID)
	label := v.o.Label
	if label == "" {
		label = "NO NAME"
	}
	name := padded(label)
	copy(boot[71:], name[:])
	copy(boot[82:], "FAT32   ")
	boot[510], boot[511] = 0x55, 0xaa
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	le.PutUint32(info[488:], v.free)
	le.PutUint32(info[492:], v.next)
	info[510], info[511] = 0x55, 0xaa
	copy(b[6*sector:], b[:2*sector])
	_, err := v.w.WriteAt(b, 0)
	return err
}
