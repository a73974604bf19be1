// Package debimage answers: how does a server program of Debian become a small,
// reproducible OCI image without docker?
//
// The named packages are unpacked as they are, less documentation; of the libraries
// only those that an ELF file in the image asks for are taken. Layers hold sorted
// files with fixed times, so the same packages give the same digests.
package debimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of a file system; the path is its key in a Tree.
type File struct {
	Mode    int64 // permission bits, setuid and such included
	Type    byte  // tar.TypeReg, TypeDir or TypeSymlink
	Link    string
	Content []byte
	Package string // where it came from; "" for our own
}

// Tree maps clean paths without a leading slash to files.
type Tree map[string]File

// Text adds a regular file, Dir a folder, Symlink a symbolic link.
func (t Tree) Text(name, content string) {
	t[name] = File{Mode: 0o644, Type: tar.TypeReg, Content: []byte(content)}
}

// Dir adds a folder.
func (t Tree) Dir(name string, mode int64) { t[name] = File{Mode: mode, Type: tar.TypeDir} }

// Symlink adds a symbolic link.
func (t Tree) Symlink(name, to string) {
	t[name] = File{Mode: 0o777, Type: tar.TypeSymlink, Link: to}
}

// Clone copies the tree; contents are shared.
func (t Tree) Clone() Tree {
	out := make(Tree, len(t))
	for k, v := range t {
		out[k] = v
	}
	return out
}

// epoch is the time of every file and image.
var epoch = time.Unix(1700000000, 0).UTC()

// Layer packs a tree: parents before children, root-owned, fixed times.
func Layer(t Tree) (v1.Layer, error) {
	all := t.Clone()
	for name := range t { // every parent exists
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all.Dir(dir, 0o755)
			}
		}
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	sort.Strings(names)
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, name := range names {
		f := all[name]
		h := &tar.Header{Name: name, Typeflag: f.Type, Mode: f.Mode, Linkname: f.Link, Size: int64(len(f.Content)), ModTime: epoch, Format: tar.FormatPAX}
		if f.Type == tar.TypeDir {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(f.Content); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return compressed(plain.Bytes(), gzip.BestCompression)
}

func compressed(plain []byte, level int) (v1.Layer, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	b := out.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, tarball.WithMediaType(types.OCILayer))
}

// Image stacks layers under a run configuration.
func Image(arch string, conf v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: epoch}}, MediaType: types.OCILayer}); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", arch, conf
	file.Created = v1.Time{Time: epoch}
	return mutate.ConfigFile(img, file)
}

// Random makes an image of n incompressible layers of about size/n bytes each; the
// same arguments give the same image. It holds no program.
func Random(arch string, size int64, n int, seed uint64) (v1.Image, error) {
	var layers []v1.Layer
	for i := range n {
		b := make([]byte, size/int64(n))
		fill(b, seed+uint64(i))
		var plain bytes.Buffer
		w := tar.NewWriter(&plain)
		err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("data-%d", i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b)), ModTime: epoch, Format: tar.FormatPAX})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		layers = append(layers, static.NewLayer(plain.Bytes(), "application/vnd.oci.image.layer.v1.tar"))
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", arch
	return mutate.ConfigFile(img, file)
}

func fill(b []byte, seed uint64) {
	src := rand.NewPCG(seed, 0x7472696275746172)
	for len(b) > 0 {
		v := src.Uint64()
		for i := 0; i < 8 && len(b) > 0; i++ {
			b[0] = byte(v)
			v >>= 8
			b = b[1:]
		}
	}
}

// clean makes a path of a package or link a key: merged-usr, no leading slash.
func clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return "usr/" + name
		}
	}
	return name
}
