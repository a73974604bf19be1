// Package extension answers: is this file the extension that the running release was built with?
//
// An extension is what some boxes need besides the root, such as the drivers and firmware of accelerators: one file, an
// EROFS image with its dm-verity tree behind it. The release's root, which is signed, names the hash of each. So an
// extension may lie anywhere, and only the one that belongs to the running release is taken: not an altered one, and
// not another release's.
package extension

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/pattern"
)

// IndexFile is where the root names its extensions; Dir is where it may carry them, and DataDir where a box may keep
// those that the root does not.
const (
	IndexFile = "/usr/lib/tributary/extensions.json"
	Dir       = "/usr/lib/tributary/extensions"
	DataDir   = "/data/extensions"
)

// Index lists the extensions of a release.
type Index struct {
	Extensions []Entry `json:"extensions"`
}

// Entry is one of them.
type Entry struct {
	Name     string `json:"name"`
	Size     int64  `json:"size"` // of the EROFS image; the tree follows
	RootHash string `json:"roothash"`
}

// Bounds of an index.
const (
	maxIndex   = 64 << 10
	maxEntries = 8
	maxSize    = 4 << 30
)

var shape = pattern.New(`^[a-z0-9][a-z0-9-]{0,31}$`)

// File is where the root carries it.
func (e Entry) File() string { return Dir + "/" + e.Name + ".img" }

// DataFile is where DATA may hold it: the hash keeps releases apart.
func (e Entry) DataFile() string {
	return DataDir + "/" + e.Name + "-" + e.RootHash[:min(16, len(e.RootHash))] + ".img"
}

// Hash is RootHash as bytes.
func (e Entry) Hash() (h [32]byte, err error) {
	b, err := hex.DecodeString(e.RootHash)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("extension %.40q: %.80q is no SHA-256", e.Name, e.RootHash)
	}
	return [32]byte(b), nil
}

// Read gives the extensions that a root names, from a file system rooted at "/"; none where it names none.
func Read(root fs.FS) ([]Entry, error) {
	f, err := root.Open(IndexFile[1:])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, err
	}
	return Parse(b)
}

// Parse reads an index of at most 64 KiB and eight extensions.
func Parse(b []byte) ([]Entry, error) {
	if len(b) > maxIndex {
		return nil, fmt.Errorf("an index of extensions of more than %d bytes", maxIndex)
	}
	var i Index
	if err := json.Unmarshal(b, &i); err != nil {
		return nil, fmt.Errorf("the index of extensions: %w", err)
	}
	if len(i.Extensions) > maxEntries {
		return nil, fmt.Errorf("%d extensions: at most %d", len(i.Extensions), maxEntries)
	}
	for _, e := range i.Extensions {
		if !shape.MatchString(e.Name) || e.Size <= 0 || e.Size > maxSize || e.Size%verity.BlockSize != 0 {
			return nil, fmt.Errorf("extension %.40q of %d bytes: malformed", e.Name, e.Size)
		}
		if _, err := e.Hash(); err != nil {
			return nil, err
		}
	}
	return i.Extensions, nil
}

// salt is the same for every release, so that blocks that did not change keep their digests.
var salt = sha256.Sum256([]byte("tributary.dev/extension"))

// Seal puts the tree behind an EROFS image of whole blocks. The same image gives the same bytes.
func Seal(data []byte) (image []byte, hash [32]byte, err error) {
	var tree memory
	id := sha256.Sum256(data)
	if hash, err = verity.Format(bytes.NewReader(data), int64(len(data)), salt[:], [16]byte(id[:16]), &tree); err != nil {
		return nil, hash, err
	}
	return append(data[:len(data):len(data)], tree...), hash, nil
}

// ErrRefused: the file is not the extension that the release names.
var ErrRefused = errors.New("not the extension of this release")

// Check reads a whole file and compares it with its entry. The kernel checks each block again when it is read.
func Check(f io.ReaderAt, size int64, e Entry) error {
	hash, err := e.Hash()
	if err != nil {
		return err
	}
	if size <= e.Size {
		return fmt.Errorf("%w: %d bytes, with its tree it has more than %d", ErrRefused, size, e.Size)
	}
	if err := verity.Verify(io.NewSectionReader(f, 0, e.Size), io.NewSectionReader(f, e.Size, size-e.Size), hash); err != nil { // check: content
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil
}

// Tree reads the superblock of the tree behind the image.
func Tree(f io.ReaderAt, e Entry) (verity.Superblock, error) {
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, e.Size); err != nil {
		return verity.Superblock{}, err
	}
	s, err := verity.DecodeSuperblock(b)
	if err == nil && s.DataBlocks != uint64(e.Size/verity.BlockSize) {
		err = fmt.Errorf("%w: the tree is for %d blocks, the image has %d", ErrRefused, s.DataBlocks, e.Size/verity.BlockSize)
	}
	return s, err
}

// memory is a file in memory.
type memory []byte

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(*m) {
		*m = append(*m, make([]byte, need-len(*m))...)
	}
	return copy((*m)[off:], p), nil
}
