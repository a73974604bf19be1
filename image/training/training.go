// Package training answers: what is the image made of in which the core trains models?
//
// It is an OCI image of one layer: Debian's PyTorch with what it needs, by the lock of the project, and the trainers that
// stand in trainer/. The same lock and trainers give the same digest.
package training

import (
	"archive/tar"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/workshop"
)

// Set is the set of packages in rootfs/packages.yaml.
const Set = "training"

// Folder is where the trainers lie in the image.
const Folder = "/usr/lib/tributary"

//go:embed trainer/*.py
var trainers embed.FS

//go:embed recipe.sh
var recipe string

// Config says what to make of what.
type Config struct {
	Cache    *deb.Cache    // holds the packages
	Packages []deb.Package // of Set
	Out      string        // folder that becomes an OCI image layout; must not be there
	Work     string        // folder for what lies about meanwhile; made if needed
	Log      *slog.Logger
}

// epoch is the time of every file in the image.
var epoch = time.Unix(946684800, 0).UTC()

// Build makes the image and returns the digest of its manifest.
func Build(ctx context.Context, c Config) (string, error) {
	if err := os.MkdirAll(c.Work, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(c.Work, ".training-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	c.Log.Info("laying out", "packages", len(c.Packages))
	if err := workshop.Furnish(c.Cache, c.Packages, root, recipe, "etc", "data", "work", "job", "proc", "sys"); err != nil {
		return "", err
	}
	if err := putTrainers(root); err != nil {
		return "", err
	}
	c.Log.Info("setting up")
	const random = "/dev/urandom" // without which torch does not load
	if err := os.WriteFile(filepath.Join(root, random), nil, 0o644); err != nil {
		return "", err
	}
	if err := workshop.Enter(ctx, root, "the trainer's image", [][2]string{{random, random}}); err != nil {
		return "", err
	}
	version, err := os.ReadFile(filepath.Join(root, "build", "torch-version"))
	if err != nil {
		return "", err
	}
	layer := filepath.Join(dir, "layer.tar")
	if err := pack(root, layer); err != nil {
		return "", err
	}
	return assemble(c, layer, strings.TrimSpace(string(version)))
}

func putTrainers(root string) error {
	dir := filepath.Join(root, Folder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	list, err := fs.Glob(trainers, "trainer/*.py")
	if err != nil {
		return err
	}
	for _, name := range list {
		b, err := trainers.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// pack writes a folder as a layer: in the order of names, owned by root, all of one time, without what the making needed.
func pack(root, file string) (err error) {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	defer func() { err = errors.Join(err, w.Close(), out.Close()) }()
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		switch {
		case err != nil:
			return err
		case rel == "build" || rel == "dev" || rel == "tmp":
			return fs.SkipDir
		case rel == ".":
			return nil
		}
		return put(w, p, rel, d)
	})
}

func put(w *tar.Writer, p, rel string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	name := rel
	if info.IsDir() {
		name += "/"
	}
	*h = tar.Header{Typeflag: h.Typeflag, Name: name, Linkname: link, Size: h.Size, Mode: h.Mode & 0o755, ModTime: epoch, Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}

func assemble(c Config, file, torch string) (string, error) {
	layer, err := tarball.LayerFromFile(file)
	if err != nil {
		return "", err
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "image training"}})
	if err != nil {
		return "", err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Created = "linux", "amd64", v1.Time{Time: epoch}
	cfg.Config.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/work", "PYTHONPATH=" + Folder}
	cfg.Config.WorkingDir = "/work"
	cfg.Config.Labels = map[string]string{"org.opencontainers.image.title": "Tributary's trainer", "dev.tributary.torch": torch}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return "", err
	}
	path, err := layout.Write(c.Out, empty.Index)
	if err != nil {
		return "", err
	}
	if err := path.AppendImage(img); err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	size, err := layer.Size()
	c.Log.Info("the trainer's image", "torch", torch, "digest", digest.String(), "megabytes", fmt.Sprintf("%.0f", float64(size)/1e6))
	return digest.String(), err
}
