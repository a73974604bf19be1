// Package initramfs answers: what does the kernel start from before it has a disk?
//
// It writes the two archives that a UKI carries, both in the newc form of cpio (Linux: Documentation/driver-api/
// early-userspace/buffer-format.rst): the CPU's microcode, which the kernel reads before it can unpack anything and
// which therefore stands first and plain; and the initramfs proper, packed by zstd. The same input gives the same bytes.
package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/release/frame"
)

// File is one entry; folders above it are made as needed, with mode 0755. All belongs to root.
type File struct {
	Path string      // relative, clean, slash-separated
	Mode fs.FileMode // permissions; with ModeDir a folder, with ModeSymlink a link to Data
	Data []byte
}

// ErrPath says that a path cannot stand in an archive.
var ErrPath = errors.New("not a relative, clean path")

// maxFile is the most that the header's eight hex digits hold.
const maxFile = 1<<32 - 1

// cpio types, of stat(2).
const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

// Write writes a newc archive: sorted by path, without times, inode numbers counted from 1.
func Write(w io.Writer, files []File) error {
	all, err := withFolders(files)
	if err != nil {
		return err
	}
	out := &writer{w: w}
	for i, f := range all {
		mode := uint32(f.Mode.Perm())
		links := 1
		switch {
		case f.Mode.IsDir():
			mode, links = mode|typeDir, 2
		case f.Mode&fs.ModeSymlink != 0:
			mode |= typeLink | 0o777
		default:
			mode |= typeFile
		}
		out.entry(f.Path, i+1, mode, links, f.Data)
	}
	out.entry("TRAILER!!!", 0, 0, 1, nil)
	return out.err
}

type writer struct {
	w   io.Writer
	n   int64
	err error
}

func (o *writer) write(b []byte) {
	if o.err == nil {
		var n int
		n, o.err = o.w.Write(b)
		o.n += int64(n)
	}
}

func (o *writer) pad() { o.write(make([]byte, (4-o.n%4)%4)) }

func (o *writer) entry(name string, ino int, mode uint32, links int, data []byte) {
	if o.err == nil && uint64(len(data)) > maxFile {
		o.err = fmt.Errorf("%s has %d bytes; cpio holds %d", name, len(data), uint64(maxFile))
	}
	// magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
	o.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	o.write(append([]byte(name), 0))
	o.pad()
	o.write(data)
	o.pad()
}

// withFolders sorts, adds the folders above each file and refuses doubles.
func withFolders(files []File) ([]File, error) {
	byPath := map[string]File{}
	for _, f := range files {
		if !fs.ValidPath(f.Path) || f.Path == "." {
			return nil, fmt.Errorf("%w: %q", ErrPath, f.Path)
		}
		if _, twice := byPath[f.Path]; twice {
			return nil, fmt.Errorf("%s stands twice", f.Path)
		}
		byPath[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if up, ok := byPath[dir]; ok && !up.Mode.IsDir() {
				return nil, fmt.Errorf("%s lies below %s, which is no folder", f.Path, dir)
			} else if !ok {
				byPath[dir] = File{Path: dir, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	all := make([]File, 0, len(byPath))
	for _, f := range byPath {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// Pack is Write packed by pkg/release/frame, so that a box can take it apart and pack it again. Every kernel that reads
// zstd accepts its window.
func Pack(files []File) ([]byte, error) {
	var out bytes.Buffer
	z, err := frame.NewEncoder(&out)
	if err != nil {
		return nil, err
	}
	if err := Write(z, files); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Microcode is the early archive: each vendor's blobs, joined under the name that the kernel looks for
// (Documentation/arch/x86/microcode.rst). It is nil when there are none; it must stand before the packed archive,
// and its length is a multiple of 4, so that the two can be joined.
func Microcode(intel, amd []byte) ([]byte, error) {
	var files []File
	if len(intel) > 0 {
		files = append(files, File{Path: "kernel/x86/microcode/GenuineIntel.bin", Mode: 0o644, Data: intel})
	}
	if len(amd) > 0 {
		files = append(files, File{Path: "kernel/x86/microcode/AuthenticAMD.bin", Mode: 0o644, Data: amd})
	}
	if len(files) == 0 {
		return nil, nil
	}
	var out bytes.Buffer
	err := Write(&out, files)
	return out.Bytes(), err
}
