package release

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/release/delta"
)

// Bundle is a release as a file: an OCI image layout in a tar archive (image-spec, image-layout.md), which oras, crane
// and skopeo push as it is.
type Bundle struct {
	Description []byte
	Roots       [][]byte          // release keys, in the order of their versions
	Targets     []byte            // who signs the description
	Plain       []byte            // the whole, zstd
	Deltas      map[string][]byte // by the identity of the content that they start from
}

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType,omitempty"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

// OnDemand tells what a relay does not bring ahead: the plain content, most of a release's bytes, which no child asks for
// that has a delta.
func OnDemand(mediaType string) bool { return mediaType == TypePlain }

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Manifest gives the OCI manifest and its digest, by which devices ask for the release.
func (b *Bundle) Manifest() (raw []byte, digest string, err error) {
	m := manifest{SchemaVersion: 2, MediaType: typeManifest, ArtifactType: ArtifactType,
		Config: &descriptor{MediaType: TypeConfig, Digest: digestOf(b.Description), Size: int64(len(b.Description))}}
	add := func(kind string, blob []byte, from string) {
		d := descriptor{MediaType: kind, Digest: digestOf(blob), Size: int64(len(blob))}
		if from != "" {
			d.Annotations = map[string]string{AnnotationOld: from}
		}
		m.Layers = append(m.Layers, d)
	}
	for _, r := range b.Roots {
		add(TypeRoot, r, "")
	}
	add(TypeTargets, b.Targets, "")
	add(TypePlain, b.Plain, "")
	for _, from := range slices.Sorted(maps.Keys(b.Deltas)) {
		add(TypeDelta, b.Deltas[from], from)
	}
	raw, err = json.Marshal(m)
	return raw, digestOf(raw), err
}

// Write writes the archive. The same bundle gives the same bytes.
func (b *Bundle) Write(w io.Writer) error {
	raw, digest, err := b.Manifest()
	if err != nil {
		return err
	}
	index, err := json.Marshal(manifest{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{{MediaType: typeManifest, Digest: digest, Size: int64(len(raw)), ArtifactType: ArtifactType}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	put := func(name string, body []byte) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := t.Write(body)
		return err
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := put("index.json", index); err != nil {
		return err
	}
	blobs := append([][]byte{raw, b.Description, b.Targets}, b.Roots...)
	blobs = append(blobs, b.Plain)
	for _, from := range slices.Sorted(maps.Keys(b.Deltas)) {
		blobs = append(blobs, b.Deltas[from])
	}
	seen := map[string]bool{}
	for _, blob := range blobs {
		name := "blobs/sha256/" + strings.TrimPrefix(digestOf(blob), "sha256:")
		if seen[name] {
			continue
		}
		seen[name] = true
		if err := put(name, blob); err != nil {
			return err
		}
	}
	return t.Close()
}

// ReadBundle reads an archive that Write wrote. Every blob is held against its digest; signatures are not looked at.
func ReadBundle(r io.Reader) (*Bundle, error) {
	files, err := readArchive(r)
	if err != nil {
		return nil, damaged("it is cut, or no archive: %v", err)
	}
	blob := func(d descriptor) ([]byte, error) {
		b, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !ok || digestOf(b) != d.Digest || int64(len(b)) != d.Size {
			return nil, damaged("blob %s is missing or not whole", d.Digest)
		}
		return b, nil
	}
	var index manifest
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		return nil, damaged("no index of one manifest")
	}
	raw, err := blob(index.Manifests[0])
	if err != nil {
		return nil, err
	}
	return assemble(raw, blob)
}

func damaged(format string, a ...any) error {
	return &api.Error{Code: api.Invalid, Message: "no whole bundle of a release: " + fmt.Sprintf(format, a...), Remedy: "give the update.tbu of a build; if it is one, copy it once more"}
}

// readArchive gives the files of a tar archive by their names.
func readArchive(r io.Reader) (map[string][]byte, error) {
	files := map[string][]byte{}
	t := tar.NewReader(io.LimitReader(r, 2*MaxContent))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if len(files) > 4096 || h.Size > MaxContent {
			return nil, errors.New("too many files, or too large a one")
		}
		var body bytes.Buffer // grows as it arrives: a size that is only said allocates nothing
		if _, err := io.Copy(&body, t); err != nil {
			return nil, err
		}
		files[strings.TrimPrefix(h.Name, "./")] = body.Bytes()
	}
}

// assemble takes a bundle's parts by its manifest.
func assemble(raw []byte, blob func(descriptor) ([]byte, error)) (*Bundle, error) {
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Deltas: map[string][]byte{}}
	if b.Description, err = blob(*m.Config); err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		body, err := blob(l)
		if err != nil {
			return nil, err
		}
		switch l.MediaType {
		case TypeRoot:
			b.Roots = append(b.Roots, body)
		case TypeTargets:
			b.Targets = body
		case TypePlain:
			b.Plain = body
		case TypeDelta:
			b.Deltas[l.Annotations[AnnotationOld]] = body
		}
	}
	return b, nil
}

func parseManifest(raw []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil || m.ArtifactType != ArtifactType || m.Config == nil || len(m.Layers) > 256 {
		return nil, api.Errorf(api.Invalid, "not the manifest of a release")
	}
	return &m, nil
}

// travel says which blob a box fetches: a delta from the content it has, where it is smaller, else the plain content.
func (m *manifest) travel(identity string) (d descriptor, isDelta bool, ok bool) {
	for _, l := range m.Layers {
		switch {
		case l.MediaType == TypePlain && (!ok || l.Size < d.Size):
			d, isDelta, ok = l, false, true
		case l.MediaType == TypeDelta && identity != "" && l.Annotations[AnnotationOld] == identity && l.Size <= MaxDelta && (!ok || l.Size < d.Size):
			d, isDelta, ok = l, true, true
		}
	}
	return d, isDelta, ok
}

// Rehearse makes a bundle's content from that of an earlier one and the delta between them, and the kernel image from it,
// as a box that has the earlier one does, and compares digests. It needs memory for all of it.
func Rehearse(old, new *Bundle) error {
	from, err := ParseDescription(old.Description)
	if err != nil {
		return err
	}
	to, err := ParseDescription(new.Description)
	if err != nil {
		return err
	}
	uki, manager, root, err := Unpack(old.Plain, from)
	if err != nil {
		return err
	}
	patch, ok := new.Deltas[Identity(from.RootHash, uki, manager)]
	if !ok {
		return api.Errorf(api.NotFound, "the release has no delta from %s", from.Version)
	}
	content, err := Content(uki, manager, root)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := delta.Apply(bytes.NewReader(content), patch, &out); err != nil {
		return err
	}
	if err := to.Content.Check(out.Bytes()); err != nil {
		return err
	}
	folder := NewFolder(to, io.Discard)
	if _, err := io.CopyN(folder, &out, to.Content.Size-to.Manager.Size-to.Root.Size); err != nil {
		return err
	}
	return folder.Close()
}

// Content gives what a box that runs these parts sees as the old content of a delta. It does not ask whether it could pack
// them again.
func Content(uki, manager, root []byte) ([]byte, error) {
	var out bytes.Buffer
	if err := Unfold(uki, FindPacked(uki, false), &out); err != nil {
		return nil, err
	}
	out.Write(manager)
	out.Write(root)
	return out.Bytes(), nil
}

// Unpack takes the whole of a release apart, and holds its parts against their digests.
func Unpack(plain []byte, d Description) (uki, manager, root []byte, err error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(MaxContent))
	if err != nil {
		return nil, nil, nil, err
	}
	defer z.Close()
	whole, err := z.DecodeAll(plain, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	if want := d.Whole().Content.Size; int64(len(whole)) != want {
		return nil, nil, nil, fmt.Errorf("the whole has %d bytes, its parts %d", len(whole), want)
	}
	uki, whole = whole[:d.UKI.Size], whole[d.UKI.Size:]
	manager, root = whole[:d.Manager.Size], whole[d.Manager.Size:]
	return uki, manager, root, errors.Join(d.UKI.Check(uki), d.Manager.Check(manager), d.Root.Check(root))
}
