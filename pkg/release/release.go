// Package release answers: what is a release of the box's system, what of it must travel, and who vouches for it?
//
// A release is an OCI artifact: its config is the description (release.json), its layers are the metadata that the
// owners of the release keys signed offline (sign.go), the whole of it, and deltas from earlier releases. The whole is the
// unified kernel image, the boot manager, and the root file system. Deltas are made of, and lead to, its content
// (content.go): the same with the packed stretches of the kernel image unpacked, which the box packs again. A box that
// has not the encoder takes the whole. The verity tree is in neither: the box computes it, and the root hash says whether
// it is right.
package release

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/pattern"
)

// Media types of the artifact's parts.
const (
	ArtifactType  = "application/vnd.tributary.release.v1"
	TypeConfig    = "application/vnd.tributary.release.v1+json"
	TypeRoot      = "application/vnd.tributary.release.tuf-root.v1+json" // in the order of their versions
	TypeTargets   = "application/vnd.tributary.release.tuf-targets.v1+json"
	TypePlain     = "application/vnd.tributary.release.whole.v2+zstd"
	TypeDelta     = "application/vnd.tributary.release.delta.v2" // pkg/release/delta between contents; annotation AnnotationOld
	AnnotationOld = "tributary.dev/from"                         // identity of the content that a delta starts from
)

// Bounds.
const (
	MaxDescription = 64 << 10
	MaxMetadata    = 256 << 10
	MaxContent     = 2 << 30
	// MaxDelta bounds a delta that a box takes: it is in memory while it is applied, and nobody
	// signed its size. What is larger travels whole.
	MaxDelta = 64 << 20
)

// Description is release.json. It is what is signed: all else follows from its digests. Sizes are bytes.
type Description struct {
	Format  int    `json:"format"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	Profile string `json:"profile"`
	// Counter is the security counter: a box never goes below its floor.
	Counter  uint64 `json:"counter"`
	RootHash string `json:"roothash"` // 64 hex digits
	// PCR11 is what a TPM has in PCR 11 once this kernel image is loaded (SHA-256, 64 hex digits), as the build foretells:
	// the core knows by it what a box runs. Boxes do not read it.
	PCR11   string `json:"pcr11,omitempty"`
	Root    Part   `json:"root"`
	UKI     Part   `json:"uki"`
	Manager Part   `json:"manager"`
	// Salt and UUID are those of the verity tree's superblock, in hex.
	Salt string `json:"salt"`
	UUID string `json:"uuid"`
	// Packed are the stretches of the UKI that are unpacked in the content.
	Packed []Packed `json:"packed,omitempty"`
	// Content is the stream that deltas lead to.
	Content Part `json:"content"`
}

// Part is a piece of content.
type Part struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Packed is a stretch of the UKI of Size bytes that Plain bytes are compressed into.
type Packed struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Plain  int64  `json:"plain"`
	Form   string `json:"form"` // FormZstd, FormLZ4, or one that this box does not know
}

// Forms are encoders, to the bit: one that gives other bytes is another form.
const (
	FormZstd = "zstd2" // pkg/release/frame
	FormLZ4  = "lz4"   // pkg/release/lz4k
)

// Format is that of descriptions. Format 1 had no whole to take for a box that lacks the encoder.
const Format = 2

var (
	versionForm = pattern.New(`^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$`)
	wordForm    = pattern.New(`^[a-z0-9][a-z0-9-]{0,63}$`)
	hexForm     = pattern.New(`^[0-9a-f]*$`)
)

// CheckVersion finds out whether a release may be named so.
func CheckVersion(version string) error {
	if versionForm.MatchString(version) {
		return nil
	}
	return &api.Error{Code: api.Invalid, Field: "version", Message: fmt.Sprintf("%.80q names no release", version), Remedy: "write letters, digits and .+_-, 64 at most, a letter or digit first"}
}

// ParseDescription reads a release.json and refuses one that is not whole.
func ParseDescription(b []byte) (d Description, err error) {
	bad := func(format string, a ...any) (Description, error) {
		return Description{}, &api.Error{Code: api.Invalid, Message: "the release's description: " + fmt.Sprintf(format, a...)}
	}
	if len(b) > MaxDescription {
		return bad("%d bytes; at most %d are read", len(b), MaxDescription)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&d); err != nil {
		return bad("%v", err)
	}
	isHex := func(s string, n int) bool { return len(s) == n && hexForm.MatchString(s) }
	switch {
	case d.Format != Format: // check: format
		return bad("format %d; this box knows %d", d.Format, Format)
	case CheckVersion(d.Version) != nil || !wordForm.MatchString(d.Arch) || !wordForm.MatchString(d.Profile):
		return bad("version %q, arch %q, profile %q", d.Version, d.Arch, d.Profile)
	case !isHex(d.RootHash, 64) || len(d.Salt) > 512 || !hexForm.MatchString(d.Salt) || len(d.Salt)%2 != 0 || !isHex(d.UUID, 32):
		return bad("the root hash, salt or UUID is not hexadecimal of the right length")
	case d.PCR11 != "" && !isHex(d.PCR11, 64):
		return bad("PCR 11 is not 64 hexadecimal digits")
	case len(d.Packed) > 16:
		return bad("%d packed stretches", len(d.Packed))
	case d.Root.Size%4096 != 0:
		return bad("a root of %d bytes is not one of whole blocks", d.Root.Size)
	}
	for _, p := range []Part{d.Root, d.UKI, d.Manager, d.Content} {
		if p.Size <= 0 || p.Size > MaxContent || !isHex(p.SHA256, 64) {
			return bad("a part of %d bytes with digest %q", p.Size, p.SHA256)
		}
	}
	size, at := d.Root.Size+d.Manager.Size, int64(0)
	for _, p := range d.Packed {
		if !wordForm.MatchString(p.Form) {
			return bad("a stretch packed as %q", p.Form)
		}
		if p.Offset < at || p.Size <= 0 || p.Plain <= 0 || p.Plain > MaxContent || p.Size > d.UKI.Size-p.Offset {
			return bad("a packed stretch outside of the kernel image")
		}
		at = p.Offset + p.Size
		size += p.Plain - p.Size
	}
	if size+d.UKI.Size != d.Content.Size {
		return bad("content of %d bytes, but its parts have %d", d.Content.Size, size+d.UKI.Size)
	}
	return d, nil
}

// Whole describes the release as a stream whose kernel image is not unpacked.
func (d Description) Whole() Description {
	d.Packed, d.Content = nil, Part{Size: d.UKI.Size + d.Manager.Size + d.Root.Size}
	return d
}

// Encode gives release.json. The same description gives the same bytes.
func (d Description) Encode() []byte {
	b, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		return nil // cannot happen: text and numbers only
	}
	return append(b, '\n')
}

// Hash is the root hash.
func (d Description) Hash() (h [32]byte) {
	b, _ := hex.DecodeString(d.RootHash) // was checked
	copy(h[:], b)
	return h
}
