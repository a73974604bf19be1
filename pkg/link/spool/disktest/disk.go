// Package disktest answers: what would be left of these files if the power went now?
//
// Disk is a file system in memory that knows which writes were synced. A cut keeps
// those, and of the others any sector may be there, or not, or half of it; of the
// changes to names any first part may have happened.
package disktest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"tributary.dev/tributary/pkg/link/spool"
)

// ErrCut is what everything returns once the power is gone.
var ErrCut = errors.New("the power is gone")

const sector = 512

// Disk implements spool.FS.
type Disk struct {
	mu       sync.Mutex
	rnd      *rand.Rand
	names    map[string]*inode // as programs see them
	durable  map[string]*inode // as after a cut
	journal  []change          // of names, not yet durable
	capacity int64             // bytes; 0 is no limit
	left     int               // changes until the cut; negative is never
	off      bool
	inodes   int
	// Syncs counts syncs of files.
	Syncs int
}

type change struct {
	from, to string // to empty: removed; from empty: made
	node     *inode
}

type inode struct {
	number int
	data   []byte // as programs see it
	synced []byte // as after a cut
	dirty  map[int]bool
}

// New makes an empty disk.
func New(seed int64) *Disk {
	return &Disk{rnd: rand.New(rand.NewSource(seed)), names: make(map[string]*inode), durable: make(map[string]*inode), left: -1}
}

// CutAfter lets the power go after n more changes (writes, syncs, changes of names).
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

// Limit bounds the bytes of all files; 0 is no limit.
func (d *Disk) Limit(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
}

// Used is the bytes of all files.
func (d *Disk) Used() (n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used()
}

func (d *Disk) used() (n int64) {
	for _, i := range d.names {
		n += int64(len(i.data))
	}
	return n
}

// Cut takes the power away and gives it back: what it returns is the disk as the next
// boot finds it.
func (d *Disk) Cut() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	n := New(d.rnd.Int63())
	n.capacity, n.inodes = d.capacity, d.inodes
	keep := 0
	if len(d.journal) > 0 {
		keep = d.rnd.Intn(len(d.journal) + 1)
	}
	for _, c := range d.journal[:keep] {
		c.apply(d.durable)
	}
	for name, i := range d.durable {
		after := &inode{number: i.number, data: d.torn(i)}
		after.synced = slices.Clone(after.data)
		n.names[name], n.durable[name] = after, after
	}
	return n
}

// Copy is another disk with the same files, as a backup restored elsewhere.
func (d *Disk) Copy(seed int64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := New(seed)
	n.inodes = 1000 + d.inodes
	for name, i := range d.names {
		n.inodes++
		c := &inode{number: n.inodes, data: slices.Clone(i.data), synced: slices.Clone(i.data)}
		n.names[name], n.durable[name] = c, c
	}
	return n
}

// torn is what a cut leaves of a file.
func (d *Disk) torn(i *inode) []byte {
	if len(i.dirty) == 0 && len(i.data) == len(i.synced) {
		return slices.Clone(i.synced)
	}
	size := len(i.synced)
	if d.rnd.Intn(2) == 0 {
		size = len(i.data)
	}
	out := make([]byte, size)
	copy(out, i.synced)
	all := d.rnd.Intn(3) // 0: nothing unsynced is there, otherwise any sector may be
	sectors := make([]int, 0, len(i.dirty))
	for s := range i.dirty {
		sectors = append(sectors, s)
	}
	slices.Sort(sectors) // for the same outcome of the same seed
	for _, s := range sectors {
		if all == 0 || d.rnd.Intn(2) == 0 {
			continue
		}
		lo, hi := s*sector, min((s+1)*sector, len(i.data))
		if hi <= lo {
			continue // cut off again since
		}
		if d.rnd.Intn(4) == 0 {
			hi = lo + d.rnd.Intn(hi-lo)
		}
		if lo < size {
			copy(out[lo:], i.data[lo:hi])
		}
	}
	return out
}

func (c change) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.node
	}
}

// step counts a change; the power may go with it.
func (d *Disk) step() error {
	if d.left == 0 {
		d.off = true
	}
	if d.off {
		return ErrCut
	}
	if d.left > 0 {
		d.left--
	}
	return nil
}

func (d *Disk) rename(c change) error {
	if err := d.step(); err != nil {
		return err
	}
	c.apply(d.names)
	d.journal = append(d.journal, c)
	return nil
}

// MkdirAll implements spool.FS; folders are there always.
func (d *Disk) MkdirAll(string) error { return nil }

// Create implements spool.FS.
func (d *Disk) Create(name string) (spool.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inodes++
	i := &inode{number: d.inodes, dirty: make(map[int]bool)}
	if err := d.rename(change{to: name, node: i}); err != nil {
		return nil, err
	}
	return &file{d, i}, nil
}

// Open implements spool.FS.
func (d *Disk) Open(name string) (spool.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, ErrCut
	}
	i, ok := d.names[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &file{d, i}, nil
}

// Rename implements spool.FS.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := d.names[from]
	if !ok {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	return d.rename(change{from: from, to: to, node: i})
}

// Remove implements spool.FS.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.names[name]; !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	return d.rename(change{from: name})
}

// List implements spool.FS.
func (d *Disk) List(dir string) (names []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, ErrCut
	}
	for name := range d.names {
		if filepath.Dir(name) == filepath.Clean(dir) {
			names = append(names, filepath.Base(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

// SyncDir implements spool.FS.
func (d *Disk) SyncDir(string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	for _, c := range d.journal {
		c.apply(d.durable)
	}
	d.journal = nil
	return nil
}

// Mark implements spool.FS.
func (d *Disk) Mark(name string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := d.names[name]
	if !ok {
		return "", &fs.PathError{Op: "mark", Path: name, Err: fs.ErrNotExist}
	}
	return fmt.Sprintf("i%d", i.number), nil
}

type file struct {
	d *Disk
	i *inode
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.off {
		return 0, ErrCut
	}
	if off >= int64(len(f.i.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.i.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return 0, err
	}
	if err := f.grow(off + int64(len(b))); err != nil {
		return 0, err
	}
	copy(f.i.data[off:], b)
	f.touch(off, off+int64(len(b)))
	return len(b), nil
}

func (f *file) touch(from, to int64) {
	if f.i.dirty == nil {
		f.i.dirty = make(map[int]bool)
	}
	for s := from / sector; s*sector < to; s++ {
		f.i.dirty[int(s)] = true
	}
}

func (f *file) grow(size int64) error {
	more := size - int64(len(f.i.data))
	if more <= 0 {
		return nil
	}
	if f.d.capacity > 0 && f.d.used()+more > f.d.capacity {
		return &fs.PathError{Op: "write", Path: "disk", Err: syscall.ENOSPC}
	}
	f.touch(int64(len(f.i.data)), size)
	f.i.data = append(f.i.data, make([]byte, more)...)
	return nil
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.i.data)), nil
}

func (f *file) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return err
	}
	if err := f.grow(size); err != nil {
		return err
	}
	f.touch(size, int64(len(f.i.data)))
	f.i.data = f.i.data[:size]
	return nil
}

func (f *file) Allocate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return err
	}
	return f.grow(size)
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return err
	}
	f.d.Syncs++
	for s := range f.i.dirty {
		lo, hi := s*sector, min((s+1)*sector, len(f.i.data))
		if need := hi - len(f.i.synced); need > 0 {
			f.i.synced = append(f.i.synced, make([]byte, need)...)
		}
		if lo < hi {
			copy(f.i.synced[lo:hi], f.i.data[lo:hi])
		}
	}
	if len(f.i.synced) > len(f.i.data) {
		f.i.synced = f.i.synced[:len(f.i.data)]
	}
	clear(f.i.dirty)
	return nil
}

func (f *file) Close() error { return nil }
