// Package tree answers: what is in the root file system of an image, and in the initramfs before it?
//
// The root is put together in memory from Debian's packages (only files that rootfs/keep.list names), the kernel's
// modules of the profile's classes, the firmware that those modules ask for, our own programs and a few made files;
// it is checked to be closed (every library that a program names is there) and written as one EROFS image. No step
// needs root, a loop device or the target's architecture, and the same inputs give the same bits.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// File is one entry of the root. All belongs to root:root.
type File struct {
	Mode fs.FileMode // permissions, set-id bits and type: regular, directory or symlink
	Data []byte      // of a regular file
	Link string      // target of a symlink
	From string      // where it comes from: a package, a program, "made"
}

// Tree is a root file system in the making, by clean relative path.
type Tree struct{ files map[string]File }

// Epoch is the time of every file: a fixed one, so that a release changes no file that has the same content.
var Epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// ErrTree says that files don't fit together.
var ErrTree = errors.New("the root does not fit together")

// New makes an empty root with the folders of a merged /usr.
func New() *Tree {
	t := &Tree{files: map[string]File{}}
	for _, dir := range []string{"bin", "sbin", "lib"} {
		t.files["usr/"+dir] = File{Mode: fs.ModeDir | 0o755, From: made}
		t.files[dir] = File{Mode: fs.ModeSymlink | 0o777, Link: "usr/" + dir, From: made}
	}
	t.files["usr"] = File{Mode: fs.ModeDir | 0o755, From: made}
	return t
}

const made = "made"

// merged gives the place of a path in a merged /usr: /bin, /sbin and /lib* are links into it.
func merged(p string) string {
	top, _, _ := strings.Cut(p, "/")
	if top == "bin" || top == "sbin" || top == "lib" || top == "lib64" {
		return "usr/" + p
	}
	return p
}

// Put adds a file and the folders above it. Another file in its place is an error, the same file is not.
func (t *Tree) Put(p string, f File) error {
	p = merged(p)
	if !fs.ValidPath(p) || p == "." {
		return fmt.Errorf("%w: %q is no path", ErrTree, p)
	}
	if old, ok := t.files[p]; ok && !(old.Mode == f.Mode && old.Link == f.Link && slices.Equal(old.Data, f.Data)) {
		return fmt.Errorf("%w: both %s and %s bring %s", ErrTree, old.From, f.From, p)
	} else if ok {
		return nil
	}
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		up, ok := t.files[dir]
		if ok && !up.Mode.IsDir() {
			return fmt.Errorf("%w: %s lies below %s, which is no folder", ErrTree, p, dir)
		}
		if !ok {
			t.files[dir] = File{Mode: fs.ModeDir | 0o755, From: f.From}
		}
	}
	t.files[p] = f
	return nil
}

// Text adds a made file.
func (t *Tree) Text(p, text string, mode fs.FileMode) error {
	return t.Put(p, File{Mode: mode, Data: []byte(text), From: made})
}

// Link adds a made symlink.
func (t *Tree) Link(p, to string) error {
	return t.Put(p, File{Mode: fs.ModeSymlink | 0o777, Link: to, From: made})
}

// Dir adds a made folder, such as a mount point.
func (t *Tree) Dir(p string, mode fs.FileMode) error {
	return t.Put(p, File{Mode: fs.ModeDir | mode, From: made})
}

// Get returns the entry at a path, without following links.
func (t *Tree) Get(p string) (File, bool) {
	f, ok := t.files[merged(p)]
	return f, ok
}

// Paths lists all entries, sorted.
func (t *Tree) Paths() []string {
	out := make([]string, 0, len(t.files))
	for p := range t.files {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// Resolve follows symlinks inside the root and gives the entry that a path leads to.
func (t *Tree) Resolve(p string) (string, File, bool) {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	for range 40 {
		p = merged(p)
		f, ok := t.files[p]
		if ok && f.Mode&fs.ModeSymlink == 0 {
			return p, f, true
		}
		next, moved := t.step(p)
		if !moved {
			return "", File{}, false
		}
		p = next
	}
	return "", File{}, false
}

// step replaces the first component of p that is a symlink.
func (t *Tree) step(p string) (string, bool) {
	parts := strings.Split(p, "/")
	for i := range parts {
		at := strings.Join(parts[:i+1], "/")
		f, ok := t.files[at]
		if !ok {
			return "", false
		}
		if f.Mode&fs.ModeSymlink != 0 {
			to := f.Link
			if !strings.HasPrefix(to, "/") {
				to = path.Join("/", path.Dir(at), to)
			}
			return strings.TrimPrefix(path.Join("/", to, strings.Join(parts[i+1:], "/")), "/"), true
		}
	}
	return "", false
}
