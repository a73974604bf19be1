// Package bundle answers: how does a system that was built become a release that boxes update to?
//
// It joins the parts of a build (root file system, kernel image, boot manager) into the content of pkg/release, makes
// deltas from earlier bundles, and writes one file. Signatures come afterwards, where the keys are.
package bundle

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/release"
	"tributary.dev/tributary/pkg/release/delta"
)

// Config is what a bundle is made of. Root and Verity are files; the same config gives the same bytes.
type Config struct {
	Version  string
	Arch     string // Go's name
	Profile  string
	Counter  uint64
	RootHash [32]byte
	PCR11    string // hex, what the kernel image makes of it
	Root     string // root.erofs
	Verity   string // its tree
	UKI      []byte // signed
	Manager  []byte // signed
	Expires  time.Time
	Previous []string // bundles that boxes run now: deltas are made from them
	Out      string   // the file
}

// Result is what was made. Sizes are bytes.
type Result struct {
	Digest      string // of the OCI manifest; signing changes it
	Plain       int64
	Content     int64
	Deltas      map[string]int64 // by the version that they start from
	Description release.Description
}

// Write makes the bundle.
func Write(c Config) (*Result, error) {
	root, err := os.ReadFile(c.Root)
	if err != nil {
		return nil, err
	}
	super, err := superblock(c.Verity)
	if err != nil {
		return nil, err
	}
	packed := release.FindPacked(c.UKI, true)
	var stream bytes.Buffer
	if err := release.Unfold(c.UKI, packed, &stream); err != nil {
		return nil, err
	}
	content := append(append(stream.Bytes(), c.Manager...), root...)
	d := release.Description{Format: release.Format, Version: c.Version, Arch: c.Arch, Profile: c.Profile, Counter: c.Counter, RootHash: hex.EncodeToString(c.RootHash[:]), PCR11: c.PCR11,
		Root: release.PartOf(root), UKI: release.PartOf(c.UKI), Manager: release.PartOf(c.Manager), Salt: hex.EncodeToString(super.Salt), UUID: hex.EncodeToString(super.UUID[:]),
		Packed: packed, Content: release.PartOf(content)}
	text := d.Encode()
	if _, err := release.ParseDescription(text); err != nil {
		return nil, err
	}
	b := &release.Bundle{Description: text, Deltas: map[string][]byte{}}
	if b.Targets, err = release.NewTargets(text, int64(max(1, c.Counter)), c.Expires); err != nil {
		return nil, err
	}
	if b.Plain, err = squeeze(slices.Concat(c.UKI, c.Manager, root)); err != nil {
		return nil, err
	}
	res := &Result{Plain: int64(len(b.Plain)), Content: int64(len(content)), Deltas: map[string]int64{}, Description: d}
	for _, file := range c.Previous {
		from, old, version, err := previous(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		patch, err := delta.Make(old, content, pointers(packed, content))
		if err != nil && !errors.Is(err, delta.ErrUnlike) {
			return nil, err
		}
		if err == nil && len(patch) < len(b.Plain) { // else the plain one travels
			b.Deltas[from], res.Deltas[version] = patch, int64(len(patch))
		}
	}
	if _, res.Digest, err = b.Manifest(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := b.Write(&out); err != nil {
		return nil, err
	}
	return res, atomicfile.Write(c.Out, out.Bytes(), 0o644)
}

func superblock(file string) (verity.Superblock, error) {
	f, err := os.Open(file)
	if err != nil {
		return verity.Superblock{}, err
	}
	defer f.Close()
	head := make([]byte, 512)
	if _, err := io.ReadFull(f, head); err != nil {
		return verity.Superblock{}, err
	}
	return verity.DecodeSuperblock(head)
}

func squeeze(whole []byte) ([]byte, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, err
	}
	return z.EncodeAll(whole, nil), nil
}

// CheckPrevious tells whether deltas can be made from a bundle.
func CheckPrevious(file string) error {
	_, _, _, err := previous(file)
	return err
}

// previous gives the content that a box with that bundle has, as it will see it itself.
func previous(file string) (identity string, content []byte, version string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", nil, "", err
	}
	defer f.Close()
	b, err := release.ReadBundle(f)
	if err != nil {
		return "", nil, "", err
	}
	d, err := release.ParseDescription(b.Description)
	if err != nil {
		return "", nil, "", err
	}
	uki, manager, root, err := release.Unpack(b.Plain, d)
	if err != nil {
		return "", nil, "", err
	}
	content, err = release.Content(uki, manager, root)
	return release.Identity(d.RootHash, uki, manager), content, d.Version, err
}

// pointers gives what addresses in an x86 kernel have more than the place in the content that they point to: its ELF
// header is the beginning of an unpacked stretch.
func pointers(packed []release.Packed, content []byte) uint32 {
	const linked = 0x81000000 - 0x200000 // the kernel is linked there, and its text lies 2 MiB into the file
	more := int64(0)                     // that what is before has, once it is unpacked
	for _, p := range packed {
		if at := p.Offset + more; bytes.HasPrefix(content[at:], []byte("\x7fELF")) {
			return linked - uint32(at)
		}
		more += p.Plain - p.Size
	}
	return 0
}
