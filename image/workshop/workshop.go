// Package workshop answers: how does a recipe run with nothing around it but locked packages?
//
// What has to be compiled or set up by programs of Debian's is made in a folder into which locked packages were laid out,
// in namespaces of its own: the same lock gives the same bits, whatever is installed on the machine that builds.
package workshop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"tributary.dev/tributary/image/deb"
)

// Furnish lays packages out as on a machine of their own, with a recipe and places for more.
func Furnish(cache *deb.Cache, packages []deb.Package, dir, recipe string, more ...string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range append([]string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "tmp", "build"}, more...) {
		if err := root.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := root.Symlink("usr/"+d, d); err != nil {
			return err
		}
	}
	for _, p := range packages {
		if strings.HasPrefix(p.Name, "linux-image-") {
			continue // the headers depend on it; nothing of it is needed to compile
		}
		if err := cache.Walk(p, func(e deb.Entry, body io.Reader) error { return lay(root, e, body) }); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	// Debian links this on the machine: update-alternatives(1).
	if slices.ContainsFunc(packages, func(p deb.Package) bool { return p.Name == "mawk" }) {
		if err := root.Symlink("mawk", "usr/bin/awk"); err != nil {
			return err
		}
	}
	return errors.Join(root.WriteFile("dev/null", nil, 0o644), root.WriteFile("build/recipe.sh", []byte(recipe), 0o644))
}

// merged gives the place of a path in a merged /usr.
func merged(p string) string {
	switch top, _, _ := strings.Cut(p, "/"); top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + p
	}
	return p
}

func lay(root *os.Root, e deb.Entry, body io.Reader) error {
	at := merged(e.Path)
	if strings.HasPrefix(at, "usr/share/") || e.Mode.IsDir() || at == "." {
		return nil // documentation; folders come with what is in them
	}
	if err := root.MkdirAll(path.Dir(at), 0o755); err != nil {
		return err
	}
	switch {
	case e.Hard:
		return root.Link(merged(e.Link), at)
	case e.Mode&fs.ModeSymlink != 0:
		return root.Symlink(e.Link, at)
	case body == nil:
		return nil
	}
	f, err := root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.Mode.Perm()&0o755|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// Enter runs a folder's recipe as on a machine of its own: no other file, process or network is there, but for folders
// of this machine that are bound into it. It takes no rights but those to make such a namespace.
func Enter(ctx context.Context, dir, what string, binds [][2]string, env ...string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return fmt.Errorf("unshare of the package util-linux is needed: run tests/install-deps: %w", err)
	}
	args := []string{"--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"}
	if os.Getuid() != 0 {
		args = append([]string{"--user", "--map-root-user"}, args...)
	}
	const enter = `dir=$1 && shift && mount --bind /dev/null "$dir/dev/null" || exit 1
while [ "$1" != -- ]; do mount --rbind "$1" "$dir$2" && shift 2 || exit 1; done
shift && cd / && exec chroot "$dir" /usr/bin/env -i PATH=/usr/sbin:/usr/bin "$@" /bin/sh /build/recipe.sh`
	args = append(args, "sh", "-c", enter, "sh", dir)
	for _, b := range binds {
		from, err := filepath.Abs(b[0])
		if err != nil {
			return err
		}
		args = append(args, from, b[1])
	}
	cmd := exec.CommandContext(ctx, unshare, append(append(args, "--"), env...)...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case bytes.HasPrefix(out, []byte("unshare:")):
		return fmt.Errorf("%s: made in namespaces of their own; allow them (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces) or build as root: %w: %s", what, err, bytes.TrimSpace(out))
	}
	return fmt.Errorf("making %s: %w\n%s", what, err, out[max(0, len(out)-4000):])
}
