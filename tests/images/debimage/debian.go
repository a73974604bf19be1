package debimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Debs finds, downloads and unpacks packages with the machine's own apt.
type Debs struct {
	// Dir keeps downloaded packages.
	Dir string
	// Arch is another architecture than the machine's own; empty: the machine's own. Its
	// indexes are kept in Dir, where Update fetches them: apt's own know the machine's alone.
	Arch string
}

// options have apt work for the architecture.
func (d Debs) options() []string {
	if d.Arch == "" {
		return nil
	}
	state := d.state()
	return []string{"-o", "APT::Architecture=" + d.Arch, "-o", "APT::Architectures=" + d.Arch, "-o", "Dir::State=" + state, "-o", "Dir::Cache=" + state,
		"-o", "Dir::State::status=" + filepath.Join(state, "status"), "-o", "APT::Sandbox::User=root"}
}

// state is where apt keeps what it knows of the architecture; apt takes other than whole
// paths to begin at the root.
func (d Debs) state() string {
	dir, err := filepath.Abs(filepath.Join(d.Dir, "apt-"+d.Arch))
	if err != nil {
		return filepath.Join(d.Dir, "apt-"+d.Arch)
	}
	return dir
}

// Update fetches the indexes of another architecture, unless they were fetched within a day.
// For the machine's own it does nothing: that is the machine's business.
func (d Debs) Update(ctx context.Context) error {
	if d.Arch == "" {
		return nil
	}
	state := d.state()
	status := filepath.Join(state, "status")
	if info, err := os.Stat(status); err == nil && time.Since(info.ModTime()) < 24*time.Hour {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(state, "lists", "partial"), 0o755); err != nil {
		return err
	}
	// apt wants its list of what is installed: nothing. Written empty, it is also the mark of
	// a fetch that went well.
	if err := os.WriteFile(status+".new", nil, 0o644); err != nil {
		return err
	}
	args := append(d.options(), "-o", "Dir::State::status="+status+".new", "update", "-qq")
	if _, err := run(ctx, "", "apt-get", args...); err != nil {
		return err
	}
	return os.Rename(status+".new", status)
}

// Closure is the named packages and, of what they depend on, the libraries: the rest
// (debconf, init scripts, …) serves installing, not running.
func (d Debs) Closure(ctx context.Context, names []string) ([]string, error) {
	seen := map[string]bool{}
	todo := append([]string(nil), names...)
	for _, n := range names {
		seen[n] = true
	}
	for len(todo) > 0 {
		args := append(d.options(), "depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances")
		args = append(args, todo...)
		out, err := run(ctx, "", "apt-cache", args...)
		if err != nil {
			return nil, err
		}
		todo = nil
		for _, dep := range libraries(out) {
			if !seen[dep] {
				seen[dep] = true
				todo = append(todo, dep)
			}
		}
	}
	all := make([]string, 0, len(seen))
	for n := range seen {
		all = append(all, n)
	}
	sort.Strings(all)
	return all, nil
}

// libraries reads `apt-cache depends`: of alternatives ("|Depends:") the first.
func libraries(out string) (list []string) {
	chosen := false
	for line := range strings.Lines(out) {
		text := strings.TrimSpace(line)
		alternative := strings.HasPrefix(text, "|")
		kind, name, ok := strings.Cut(strings.TrimPrefix(text, "|"), ": ")
		if !ok || kind != "Depends" && kind != "PreDepends" {
			continue
		}
		if !chosen && (strings.HasPrefix(name, "lib") || strings.HasPrefix(name, "zlib")) {
			list = append(list, name)
		}
		chosen = alternative // the next line is another way to satisfy the same need
	}
	return list
}

// Deb is one package file that a mirror offers.
type Deb struct{ Package, File, SHA256 string }

// Offered lists what apt would download for the packages, sorted. It needs no network.
func (d Debs) Offered(ctx context.Context, names []string) ([]Deb, error) {
	args := append(d.options(), "download", "--print-uris", "-qq")
	out, err := run(ctx, "", "apt-get", append(args, names...)...)
	if err != nil {
		return nil, err
	}
	var list []Deb
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.HasPrefix(f[3], "SHA256:") || strings.ContainsAny(f[1], "/\\") {
			continue
		}
		name, _, _ := strings.Cut(f[1], "_")
		list = append(list, Deb{Package: name, File: f[1], SHA256: strings.TrimPrefix(f[3], "SHA256:")})
	}
	if len(list) != len(names) {
		return nil, fmt.Errorf("apt offers %d of %d packages; run `apt-get update`", len(list), len(names))
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Package < list[j].Package })
	return list, nil
}

// Fetch downloads what is not in the folder yet and verifies all.
func (d Debs) Fetch(ctx context.Context, list []Deb) error {
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return err
	}
	var missing []string
	for _, deb := range list {
		if d.verify(deb) != nil {
			missing = append(missing, deb.Package)
		}
	}
	if len(missing) > 0 {
		args := append(d.options(), "download", "-qq", "-o", "APT::Sandbox::User=root")
		args = append(args, missing...)
		if _, err := run(ctx, d.Dir, "apt-get", args...); err != nil {
			return err
		}
	}
	for _, deb := range list {
		if err := d.verify(deb); err != nil {
			return err
		}
	}
	return nil
}

func (d Debs) verify(deb Deb) error {
	b, err := os.ReadFile(filepath.Join(d.Dir, deb.File))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != deb.SHA256 {
		return fmt.Errorf("%s is not what the mirror's index names", deb.File)
	}
	return nil
}

// Unpack reads packages into one tree.
func (d Debs) Unpack(ctx context.Context, list []Deb) (Tree, error) {
	t := Tree{}
	for _, deb := range list {
		out, err := run(ctx, "", "dpkg-deb", "--fsys-tarfile", filepath.Join(d.Dir, deb.File))
		if err != nil {
			return nil, err
		}
		if err := t.untar(strings.NewReader(out), deb.Package); err != nil {
			return nil, fmt.Errorf("%s: %w", deb.File, err)
		}
	}
	return t, nil
}

func (t Tree) untar(r io.Reader, pkg string) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := clean(h.Name)
		if name == "" || strings.HasPrefix(name, "..") {
			continue
		}
		f := File{Mode: h.Mode & 0o7777, Type: h.Typeflag, Link: h.Linkname, Package: pkg}
		switch h.Typeflag {
		case tar.TypeReg:
			if f.Content, err = io.ReadAll(tr); err != nil {
				return err
			}
		case tar.TypeLink: // a hard link is a copy here
			target, ok := t[clean(h.Linkname)]
			if !ok {
				return fmt.Errorf("hard link to %s, which is not there", h.Linkname)
			}
			f.Type, f.Content, f.Link = tar.TypeReg, target.Content, ""
		case tar.TypeDir, tar.TypeSymlink:
		default:
			continue
		}
		t[name] = f
	}
}

// resolve follows symbolic links to a regular file, and lists every path on the way.
func (t Tree) resolve(name string) (trail []string, ok bool) {
	for range 8 {
		f, here := t[name]
		if !here {
			return nil, false
		}
		trail = append(trail, name)
		switch {
		case f.Type == tar.TypeReg:
			return trail, true
		case f.Type != tar.TypeSymlink:
			return nil, false
		case path.IsAbs(f.Link):
			name = clean(f.Link)
		default:
			name = clean(path.Join(path.Dir(name), f.Link))
		}
	}
	return nil, false
}

func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args[:min(3, len(args))], " "), err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}
