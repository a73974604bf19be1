// Package nvidia answers: how do NVIDIA's modules come to fit the kernel of an image?
//
// Debian's package nvidia-open-kernel-dkms has the open kernel modules in two parts: what touches the kernel, as
// source, and the rest as Debian compiled it from its source. Here the first part is compiled against the headers of the
// very kernel that the image has, by the very compiler that the kernel was made with. All of it, compiler, make and shell
// too, comes out of locked packages, into a folder that nothing else is in: the same lock gives the same bits, whatever
// is installed on the machine that builds. It takes minutes once and is then kept, by the digest of all that went in.
package nvidia

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/image/workshop"
)

// Extension is the name of the extension that the modules go into.
const Extension = "nvidia"

// SourcePackage has the modules' source.
const SourcePackage = "nvidia-open-kernel-dkms"

// Files are the modules that are made.
var Files = []string{"nvidia.ko", "nvidia-uvm.ko"}

// recipe is what runs inside the folder.
//
//go:embed compile.sh
var recipe string

// Config says what to compile with what.
type Config struct {
	Cache   *deb.Cache    // holds the packages
	Source  deb.Package   // SourcePackage
	With    []deb.Package // the compiler and the kernel's headers, with all they need
	Release string        // of the kernel: uname -r
	Arch    string
	Keep    string // folder where compiled modules are kept; made if needed
	Log     *slog.Logger
}

// ErrVersions says that packages are not of one driver version.
var ErrVersions = errors.New("NVIDIA's modules, libraries and firmware must be of one version")

// Source picks the source among the extension's packages, which must all be of its version.
func Source(list []deb.Package) (deb.Package, error) {
	i := slices.IndexFunc(list, func(p deb.Package) bool { return p.Name == SourcePackage })
	if i < 0 {
		return deb.Package{}, fmt.Errorf("the set extension-%s lacks %s", Extension, SourcePackage)
	}
	for _, p := range list {
		if upstream(p.Version) != upstream(list[i].Version) { // check: version
			return deb.Package{}, fmt.Errorf("%w: the lock has %s and %s", ErrVersions, list[i], p)
		}
	}
	return list[i], nil
}

func upstream(version string) string {
	if i := strings.LastIndexByte(version, '-'); i > 0 {
		return version[:i]
	}
	return version
}

// Digest names the result by all that makes it.
func (c Config) Digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n", recipe, c.Release, c.Arch, c.Source.SHA256)
	var with []string
	for _, p := range c.With {
		with = append(with, p.SHA256)
	}
	slices.Sort(with)
	fmt.Fprintln(h, slices.Compact(with))
	return hex.EncodeToString(h.Sum(nil))
}

// Kept gives modules that were compiled before of the same inputs; false when there are none.
func (c Config) Kept() (map[string][]byte, bool) {
	dir := filepath.Join(c.Keep, c.Digest())
	sums, err := os.ReadFile(filepath.Join(dir, sumsFile))
	if err != nil {
		return nil, false
	}
	out := map[string][]byte{}
	for _, name := range Files {
		if out[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, false
		}
	}
	if !bytes.Equal(sums, sumsOf(out)) { // check: whole
		return nil, false // they are made anew
	}
	return out, true
}

const sumsFile = "SHA256SUMS"

func sumsOf(files map[string][]byte) []byte {
	var b bytes.Buffer
	for _, name := range Files {
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(files[name]), name)
	}
	return b.Bytes()
}

// Compile makes the modules, unsigned and without debugging symbols, by file name. The packages must be in the cache.
func Compile(ctx context.Context, c Config) (map[string][]byte, error) {
	if out, ok := c.Kept(); ok {
		return out, nil
	}
	if only := "amd64"; c.Arch != only || runtime.GOARCH != only {
		return nil, fmt.Errorf("NVIDIA's modules are compiled on amd64 for amd64 alone, not on %s for %s", runtime.GOARCH, c.Arch)
	}
	if err := os.MkdirAll(c.Keep, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(c.Keep, ".compile-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	at := time.Now()
	c.Log.Info("compiling NVIDIA's modules; minutes, and once for this kernel", "kernel", c.Release, "source", c.Source.Version)
	if err := c.unpack(dir); err != nil {
		return nil, err
	}
	if err := c.run(ctx, dir); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, name := range Files {
		if out[name], err = os.ReadFile(filepath.Join(dir, "build", name)); err != nil {
			return nil, err
		}
		if err := fits(out[name], c.Release); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	c.Log.Info("compiled", "seconds", fmt.Sprintf("%.0f", time.Since(at).Seconds()))
	return out, c.Put(out)
}

// fits compares a module's version magic with a kernel.
func fits(object []byte, release string) error {
	magic, err := modules.Field(object, "vermagic")
	if err != nil {
		return err
	}
	if have, _, _ := strings.Cut(magic, " "); have != release { // check: kernel
		return fmt.Errorf("it is for the kernel %q, not for %q", have, release)
	}
	return nil
}

// Put keeps the result. Whoever was first with the same has made the same.
func (c Config) Put(files map[string][]byte) error {
	tmp, err := os.MkdirTemp(c.Keep, ".put-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, name := range Files {
		if err := os.WriteFile(filepath.Join(tmp, name), files[name], 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(tmp, sumsFile), sumsOf(files), 0o644), os.Chmod(tmp, 0o755)); err != nil {
		return err
	}
	to := filepath.Join(c.Keep, c.Digest())
	if _, ok := c.Kept(); ok {
		return nil
	}
	if err := os.RemoveAll(to); err != nil { // damaged, or another's
		return err
	}
	return os.Rename(tmp, to)
}

// unpack lays the packages out as on a machine of their own.
func (c Config) unpack(dir string) error {
	return workshop.Furnish(c.Cache, append(slices.Clone(c.With), c.Source), dir, recipe)
}

// run compiles in the folder.
func (c Config) run(ctx context.Context, dir string) error {
	return workshop.Enter(ctx, dir, "NVIDIA's modules", nil, "RELEASE="+c.Release, fmt.Sprintf("JOBS=%d", runtime.GOMAXPROCS(0)))
}
