// Package verity answers: is every block of this file system the one that was signed?
//
// The format is dm-verity's version 1 with its superblock, as veritysetup writes it: SHA-256, blocks of 4096 bytes, the
// salt before the data. The hash partition holds the superblock's block, then the levels of the tree from the root's
// own block down to the one that hashes the data.
package verity

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// BlockSize is that of data and of hashes, in bytes.
const BlockSize = 4096

const (
	perBlock  = BlockSize / sha256.Size // 128 digests in a block
	maxBlocks = 1 << 28                 // 1 TiB of data
	maxSalt   = 256
)

// ErrCorrupt: a block is not the one that the root hash stands for.
var ErrCorrupt = errors.New("the data does not match its root hash")

// Superblock is the first block of a hash partition.
type Superblock struct {
	UUID       [16]byte
	DataBlocks uint64
	Salt       []byte // at most 256 bytes
}

// Encode gives the block.
func (s Superblock) Encode() []byte {
	b := make([]byte, BlockSize)
	copy(b, "verity\x00\x00")
	le := binary.LittleEndian
	le.PutUint32(b[8:], 1)  // version of the superblock
	le.PutUint32(b[12:], 1) // hash type: salt first, digests padded to a power of two
	copy(b[16:], s.UUID[:])
	copy(b[32:64], "sha256")
	le.PutUint32(b[64:], BlockSize)
	le.PutUint32(b[68:], BlockSize)
	le.PutUint64(b[72:], s.DataBlocks)
	le.PutUint16(b[80:], uint16(len(s.Salt)))
	copy(b[88:88+maxSalt], s.Salt)
	return b
}

// DecodeSuperblock reads the first 512 bytes of a hash partition. It refuses every kind but the one of this package.
// The superblock is not signed: nothing follows from it but what then hashes to the root hash.
func DecodeSuperblock(b []byte) (Superblock, error) {
	var s Superblock
	if len(b) < 512 {
		return s, fmt.Errorf("a superblock of %d bytes: want 512", len(b))
	}
	le := binary.LittleEndian
	switch {
	case string(b[:8]) != "verity\x00\x00":
		return s, errors.New("no dm-verity superblock")
	case le.Uint32(b[8:]) != 1 || le.Uint32(b[12:]) != 1:
		return s, fmt.Errorf("superblock version %d, hash type %d: want 1 and 1", le.Uint32(b[8:]), le.Uint32(b[12:]))
	case string(bytes.TrimRight(b[32:64], "\x00")) != "sha256":
		return s, fmt.Errorf("hash %q: want sha256", bytes.TrimRight(b[32:64], "\x00"))
	case le.Uint32(b[64:]) != BlockSize || le.Uint32(b[68:]) != BlockSize:
		return s, fmt.Errorf("blocks of %d and %d bytes: want %d", le.Uint32(b[64:]), le.Uint32(b[68:]), BlockSize)
	}
	s.DataBlocks = le.Uint64(b[72:])
	n := int(le.Uint16(b[80:]))
	if s.DataBlocks == 0 || s.DataBlocks > maxBlocks || n > maxSalt {
		return s, fmt.Errorf("%d blocks of data, a salt of %d bytes: out of range", s.DataBlocks, n)
	}
	copy(s.UUID[:], b[16:])
	s.Salt = bytes.Clone(b[88 : 88+n])
	return s, nil
}

// levels gives the number of blocks of each level, the one over the data first. One block of data has one level.
func levels(data uint64) []uint64 {
	var out []uint64
	for n := data; ; {
		n = (n + perBlock - 1) / perBlock
		out = append(out, n)
		if n <= 1 {
			return out
		}
	}
}

// HashSize is how many bytes the superblock and the tree take for size bytes of data.
func HashSize(size int64) int64 {
	n := uint64(1)
	for _, l := range levels(uint64(size) / BlockSize) {
		n += l
	}
	return int64(n) * BlockSize
}

// Format hashes size bytes of data (whole blocks) and writes superblock and tree to w, HashSize bytes from offset 0.
// It answers the root hash. The same data, salt and UUID give the same bytes.
func Format(data io.ReaderAt, size int64, salt []byte, uuid [16]byte, w io.WriterAt) (root [32]byte, err error) {
	if size <= 0 || size%BlockSize != 0 || size/BlockSize > maxBlocks || len(salt) > maxSalt {
		return root, fmt.Errorf("%d bytes of data with a salt of %d: want whole blocks of %d, at most %d of them", size, len(salt), BlockSize, maxBlocks)
	}
	sb := Superblock{UUID: uuid, DataBlocks: uint64(size / BlockSize), Salt: salt}
	tree, root, err := build(data, size, salt)
	if err != nil {
		return root, err
	}
	if _, err := w.WriteAt(sb.Encode(), 0); err != nil {
		return root, err
	}
	at := int64(BlockSize)
	for i := len(tree) - 1; i >= 0; i-- {
		if _, err := w.WriteAt(tree[i], at); err != nil {
			return root, err
		}
		at += int64(len(tree[i]))
	}
	return root, nil
}

// build gives the levels, the one over the data first, and the root hash.
func build(data io.ReaderAt, size int64, salt []byte) (tree [][]byte, root [32]byte, err error) {
	below, n := data, uint64(size/BlockSize)
	for _, blocks := range levels(n) {
		level := make([]byte, blocks*BlockSize)
		if err := digests(below, n, salt, level); err != nil {
			return nil, root, err
		}
		tree = append(tree, level)
		below, n = bytes.NewReader(level), blocks
	}
	return tree, digest(salt, tree[len(tree)-1]), nil
}

func digest(salt, block []byte) (d [32]byte) {
	h := sha256.New()
	h.Write(salt)
	h.Write(block)
	h.Sum(d[:0])
	return d
}

// digests writes the digest of each of n blocks to out, a stretch per processor.
func digests(data io.ReaderAt, n uint64, salt, out []byte) error {
	const stretch = 256 // blocks, 1 MiB
	jobs := make(chan uint64)
	faults := make(chan error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, stretch*BlockSize)
			var fault error
			for from := range jobs {
				if fault != nil {
					continue
				}
				k := min(stretch, n-from)
				if _, fault = data.ReadAt(buf[:k*BlockSize], int64(from)*BlockSize); errors.Is(fault, io.EOF) {
					fault = io.ErrUnexpectedEOF
				}
				if fault != nil && readAll(data, buf[:k*BlockSize], int64(from)*BlockSize) == nil {
					fault = nil // io.ReaderAt may say EOF with the last bytes
				}
				for i := range k {
					if fault != nil {
						break
					}
					d := digest(salt, buf[i*BlockSize:(i+1)*BlockSize])
					copy(out[(from+i)*sha256.Size:], d[:])
				}
			}
			faults <- fault
		})
	}
	for from := uint64(0); from < n; from += stretch {
		jobs <- from
	}
	close(jobs)
	wg.Wait()
	close(faults)
	for f := range faults {
		if f != nil {
			return f
		}
	}
	return nil
}

// Verify reads all data and the whole hash partition and compares them with the root hash: ErrCorrupt names the first
// block that differs. The size of the data is the superblock's.
func Verify(data, hash io.ReaderAt, root [32]byte) error {
	b := make([]byte, BlockSize)
	if _, err := hash.ReadAt(b, 0); err != nil {
		return err
	}
	sb, err := DecodeSuperblock(b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	ls := levels(sb.DataBlocks)
	at := make([]int64, len(ls))
	next := int64(BlockSize)
	for i := len(ls) - 1; i >= 0; i-- {
		at[i] = next
		next += int64(ls[i]) * BlockSize
	}
	// From the root down: a level is trusted before anything is compared with it.
	want := root[:]
	for i := len(ls) - 1; i >= 0; i-- {
		level := make([]byte, ls[i]*BlockSize)
		if err := readAll(hash, level, at[i]); err != nil {
			return fmt.Errorf("%w: the tree is cut short: %w", ErrCorrupt, err)
		}
		if err := compare(bytes.NewReader(level), ls[i], sb.Salt, want, "block of level "+fmt.Sprint(i)); err != nil {
			return err
		}
		want = level
	}
	return compare(data, sb.DataBlocks, sb.Salt, want, "block")
}

func compare(data io.ReaderAt, n uint64, salt, want []byte, what string) error {
	got := make([]byte, n*sha256.Size)
	if err := digests(data, n, salt, got); err != nil {
		return err
	}
	for i := range n {
		if !bytes.Equal(got[i*sha256.Size:(i+1)*sha256.Size], want[i*sha256.Size:(i+1)*sha256.Size]) {
			return fmt.Errorf("%w: %s %d", ErrCorrupt, what, i)
		}
	}
	// The superblock's count is not hashed: a smaller one would leave digests over.
	if len(bytes.TrimLeft(want[n*sha256.Size:], "\x00")) > 0 {
		return fmt.Errorf("%w: the tree is for more data than the superblock says", ErrCorrupt)
	}
	return nil
}

func readAll(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}
