package deb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// Cache keeps packages by digest, since mirrors drop versions. Any number of builds may share one.
type Cache struct {
	Dir string // <Dir>/<sha256>.deb
	Log *slog.Logger
}

// ErrDropped says that the mirror no longer has a locked version.
var ErrDropped = errors.New("the mirror no longer has a locked package")

// Path is where a package lies once it is fetched.
func (c *Cache) Path(p Package) string { return filepath.Join(c.Dir, p.SHA256+".deb") }

// Missing lists the packages that are not in the cache, or lie there with the wrong size.
func (c *Cache) Missing(list []Package) []Package {
	var out []Package
	for _, p := range list {
		if st, err := os.Stat(c.Path(p)); err != nil || st.Size() != p.Size {
			out = append(out, p)
		}
	}
	return out
}

// Fetch brings what is missing into the cache; each file is checked against its locked digest before it gets its
// name there. find tells where the mirror is, and is called only if something is missing: a filled cache needs no
// network and no apt. A package that the mirror refuses gives ErrDropped.
func (c *Cache) Fetch(ctx context.Context, list []Package, find func() (Mirror, error)) error {
	missing := c.Missing(list)
	if len(missing) == 0 {
		return nil
	}
	m, err := find()
	if err != nil {
		return fmt.Errorf("%d packages are not in %s: %w", len(missing), c.Dir, err)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(c.Dir, ".fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var size int64
	for _, p := range missing {
		size += p.Size
	}
	c.Log.Info("fetching Debian packages", "packages", len(missing), "bytes", size)
	apt := &Apt{Mirror: m, Log: c.Log}
	fetched := apt.download(ctx, tmp, missing)
	var first error
	for _, p := range missing { // what came is kept, whatever happened to the rest
		err := c.admit(filepath.Join(tmp, p.SHA256), p)
		if errors.Is(err, os.ErrNotExist) && fetched != nil {
			err = dropped(p, fetched)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// dropped tells a version that is gone from a network that is not there.
func dropped(p Package, cause error) error {
	if strings.Contains(cause.Error(), "404") || strings.Contains(cause.Error(), "not found") || strings.Contains(cause.Error(), "No such file") {
		return fmt.Errorf("%w: %s; run `go run ./image lock` to lock what it has now, look at the change, and build again: %w", ErrDropped, p, cause)
	}
	return fmt.Errorf("fetching %s: %w", p, cause)
}

// download fetches by address and digest with apt's own helper, which goes on after a refused file.
func (a *Apt) download(ctx context.Context, dir string, list []Package) error {
	args := []string{"-o", "Acquire::Retries=3", "download-file"}
	for _, p := range list {
		base := a.address(p.Archive)
		if base == "" {
			return fmt.Errorf("%s is of the security archive, which the apt sources of this machine do not name: add it to /etc/apt/sources.list.d", p)
		}
		args = append(args, base+"/"+p.Path, filepath.Join(dir, p.SHA256), "SHA256:"+p.SHA256)
	}
	return a.run(ctx, "/usr/lib/apt/apt-helper", args...)
}

// admit checks a fetched file and gives it its name in the cache.
func (c *Cache) admit(file string, p Package) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxPackage+1))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 || n != p.Size {
		return fmt.Errorf("%s: the mirror sent %d bytes with SHA-256 %s, the lock says %d bytes with %s", p, n, got, p.Size, p.SHA256)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		return err
	}
	return os.Rename(file, c.Path(p))
}
