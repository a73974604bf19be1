package workload

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// This file makes what is mounted into a container, and changes it while the
// container runs:
//
//   - a whole Config or Secret is a mounted folder; its files are links through one
//     link, "..data", that is exchanged by a rename: readers see all old or all new;
//   - a single file of one is a mounted file. A mount holds the inode, so a rename
//     would never be seen; it is rewritten in place, by one write where it fits.

// hostMount is one bind mount of a container, by path on the host.
type hostMount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// content finds what a config or secret mount shows: one file, or a set of them.
func content(a *App, mt api.Mount) (one []byte, set map[string][]byte, err error) {
	if mt.Kind == api.MountConfig && mt.Source == "" {
		return []byte(mt.Inline), nil, nil
	}
	objects := a.Configs
	if mt.Kind == api.MountSecret {
		objects = a.Secrets
	}
	name, file, single := strings.Cut(mt.Source, "/")
	data, ok := objects[name]
	if !ok {
		return nil, nil, api.Errorf(api.NotFound, "%s %q is not on this device", mt.Kind, name)
	}
	if !single {
		if data.Files == nil { // all files went: an empty folder, which is still one
			return nil, map[string][]byte{}, nil
		}
		return nil, data.Files, nil
	}
	if b, ok := data.Files[file]; ok {
		return b, nil, nil
	}
	// A Secret's values may also be given as keys.
	if v, ok := data.Env[file]; ok {
		return []byte(v), nil, nil
	}
	return nil, nil, api.Errorf(api.NotFound, "%s %q has no file %q", mt.Kind, name, file)
}

// writeFiles brings the config and secret files of one container up to date and
// returns how they are mounted. It writes nothing where nothing changed, and one mount
// that fails keeps no other from its new content; the error names each that failed.
func (f folders) writeFiles(a *App, id string, s *api.Service) ([]hostMount, error) {
	var out []hostMount
	var errs []error
	for i, mt := range s.Mounts {
		if mt.Kind != api.MountConfig && mt.Kind != api.MountSecret {
			continue
		}
		path, err := f.writeMount(a, id, i, mt)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s at %s: %w", mt.Kind, firstOf(mt.Source, "of the file"), mt.Target, err))
			continue
		}
		out = append(out, hostMount{Source: path, Target: mt.Target, ReadOnly: true})
	}
	return out, errors.Join(errs...)
}

// writeMount writes the i-th mount of a service and tells where it lies.
func (f folders) writeMount(a *App, id string, i int, mt api.Mount) (string, error) {
	dir := f.files(a.Bundle.App, id)
	if mt.Kind == api.MountSecret {
		dir = f.secrets(a.Bundle.App, id)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "mount-"+strconv.Itoa(i))
	one, set, err := content(a, mt)
	if err != nil {
		if _, statErr := os.Stat(path); statErr == nil && api.CodeOf(err) == api.NotFound {
			return path, nil // the object is gone but a container still shows it: what it has stays
		}
		return "", err
	}
	if set != nil {
		return path, writeSet(path, set, mt)
	}
	return path, rewrite(path, one, mt)
}

func modeOf(mt api.Mount) os.FileMode {
	if mt.Mode != 0 {
		return os.FileMode(mt.Mode) & fs.ModePerm
	}
	return 0o444
}

// rewrite changes a file in place, keeping its inode.
func rewrite(path string, data []byte, mt api.Mount) error {
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, data) {
		return nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, 0)
	err = errors.Join(err, file.Truncate(int64(len(data))), file.Chown(mt.UID, mt.GID), file.Chmod(modeOf(mt)))
	return errors.Join(err, file.Close())
}

// checkNames refuses names that would leave the folder of a set, or hide what makes it
// one. The core refuses them too (pkg/api).
func checkNames(set map[string][]byte, mt api.Mount) error {
	for name := range set {
		if !filepath.IsLocal(name) || filepath.Clean(name) != name || name == "." || strings.HasPrefix(name, "..") {
			return api.Errorf(api.Invalid, "%q cannot be a file's name in a %s", name, mt.Kind)
		}
		for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
			if _, both := set[dir]; both {
				return api.Errorf(api.Invalid, "%q is a file and a folder in a %s", dir, mt.Kind)
			}
		}
	}
	return nil
}

// writeSet changes a folder of files, and of folders in it, all at one instant.
func writeSet(dir string, set map[string][]byte, mt api.Mount) error {
	if err := checkNames(set, mt); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(set))
	sum := sha256.New()
	for _, name := range names {
		fmt.Fprintf(sum, "%q %d\n", name, len(set[name]))
		sum.Write(set[name])
	}
	version := "..v" + hex.EncodeToString(sum.Sum(nil)[:8])
	was, _ := os.Readlink(filepath.Join(dir, "..data"))
	if was != version {
		if err := writeVersion(dir, version, names, set, mt); err != nil {
			return err
		}
	}
	return tidySet(dir, version, set)
}

func writeVersion(dir, version string, names []string, set map[string][]byte, mt api.Mount) error {
	if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, version, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := rewrite(path, set[name], mt); err != nil {
			return err
		}
	}
	next := filepath.Join(dir, "..next")
	_ = os.Remove(next)
	if err := os.Symlink(version, next); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(dir, "..data"))
}

// tidySet makes the links of new files and folders, and removes those that went.
func tidySet(dir, version string, set map[string][]byte) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	wanted, have := map[string]bool{}, map[string]bool{}
	for name := range set {
		top, _, _ := strings.Cut(name, "/")
		wanted[top] = true
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == "..data" || name == version:
		case wanted[name]:
			have[name] = true
		default:
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
		}
	}
	for name := range wanted {
		if !have[name] {
			err = errors.Join(err, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
		}
	}
	return err
}

// writeNames makes the files by which a container knows itself and its peers.
func (f folders) writeNames(app, id, hostname string, hosts, resolv []byte) ([]hostMount, error) {
	dir := f.files(app, id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	plain := api.Mount{Mode: 0o644}
	err := errors.Join(
		rewrite(filepath.Join(dir, "hosts"), hosts, plain),
		rewrite(filepath.Join(dir, "hostname"), []byte(hostname+"\n"), plain),
		rewrite(filepath.Join(dir, "resolv.conf"), resolv, plain),
	)
	return []hostMount{
		{Source: filepath.Join(dir, "hosts"), Target: "/etc/hosts"},
		{Source: filepath.Join(dir, "hostname"), Target: "/etc/hostname"},
		{Source: filepath.Join(dir, "resolv.conf"), Target: "/etc/resolv.conf"},
	}, err
}
