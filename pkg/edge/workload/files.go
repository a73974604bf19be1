package workload

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
// returns how they are mounted. It writes nothing where nothing changed.
func (f folders) writeFiles(a *App, id string, s *api.Service) ([]hostMount, error) {
	var out []hostMount
	for i, mt := range s.Mounts {
		if mt.Kind != api.MountConfig && mt.Kind != api.MountSecret {
			continue
		}
		dir := f.files(a.Bundle.App, id)
		if mt.Kind == api.MountSecret {
			dir = f.secrets(a.Bundle.App, id)
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
		path := filepath.Join(dir, "mount-"+strconv.Itoa(i))
		one, set, err := content(a, mt)
		switch {
		case err != nil:
			if _, statErr := os.Stat(path); statErr != nil {
				return nil, err
			}
			// The object is gone but a container still shows it: what it has stays.
		case set != nil:
			err = writeSet(path, set, mt)
		default:
			err = rewrite(path, one, mt)
		}
		if err != nil && api.CodeOf(err) != api.NotFound {
			return nil, err
		}
		out = append(out, hostMount{Source: path, Target: mt.Target, ReadOnly: true})
	}
	return out, nil
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

// writeSet changes a folder of files, all at one instant.
func writeSet(dir string, set map[string][]byte, mt api.Mount) error {
	names := slices.Sorted(maps.Keys(set))
	sum := sha256.New()
	for _, name := range names {
		if !filepath.IsLocal(name) || strings.ContainsRune(name, '/') || strings.HasPrefix(name, "..") {
			return api.Errorf(api.Invalid, "%q cannot be a file's name in a %s", name, mt.Kind)
		}
		fmt.Fprintf(sum, "%q %d\n", name, len(set[name]))
		sum.Write(set[name])
	}
	version := "..v" + hex.EncodeToString(sum.Sum(nil)[:8])
	was, _ := os.Readlink(filepath.Join(dir, "..data"))
	if was == version {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
		return err
	}
	for _, name := range names {
		if err := rewrite(filepath.Join(dir, version, name), set[name], mt); err != nil {
			return err
		}
	}
	next := filepath.Join(dir, "..next")
	_ = os.Remove(next)
	if err := os.Symlink(version, next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
		return err
	}
	return tidySet(dir, version, set)
}

// tidySet makes the links of new files and removes those of files that went.
func tidySet(dir, version string, set map[string][]byte) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		_, wanted := set[name]
		switch {
		case name == "..data" || name == version:
		case wanted:
			have[name] = true
		default:
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
		}
	}
	for name := range set {
		if !have[name] {
			err = errors.Join(err, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
		}
	}
	return err
}

// writeNames makes the files by which a container knows itself and its peers.
func (f folders) writeNames(app, id, hostname string, hosts []byte) ([]hostMount, error) {
	dir := f.files(app, id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	plain := api.Mount{Mode: 0o644}
	resolv, err := readBounded("/etc/resolv.conf", 64<<10)
	if err != nil {
		resolv = nil // a device without a resolver: names of the app still resolve
	}
	err = errors.Join(
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

func readBounded(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}
