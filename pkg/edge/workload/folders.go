package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// folders knows where things lie:
//
//	<root>/apps/<app>/volumes/<name>   named volumes
//	<root>/apps/<app>/data             what bind mounts may name
//	<root>/apps/<app>/logs/<service>/<container>
//	<root>/apps/<app>/memory.json      what this package remembers of the app
//	<run>/apps/<app>/<container>       hosts, hostname, resolv.conf, config files
//	<run>/secrets/<app>/<container>    secret files; always a tmpfs
//	<run>/net                          network namespaces and leases
//	<run>/shim/<app>                   where the app's shim listens (cmd/edged-shim)
type folders struct{ root, run string }

func openFolders(root, run string) (folders, error) {
	f := folders{root, run}
	for _, dir := range []string{f.apps(), filepath.Join(run, "apps"), filepath.Join(run, "secrets"), filepath.Join(run, "fifo"), filepath.Join(run, "shim")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return f, err
		}
	}
	return f, memoryOnly(filepath.Join(run, "secrets"))
}

// memoryOnly makes sure that a folder never reaches a disk: it is on a tmpfs or
// becomes one, without swap where the kernel can (noswap, Linux 6.3).
func memoryOnly(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		return nil
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, "size=16m,mode=0711,noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, "size=16m,mode=0711")
	}
	if err != nil {
		return fmt.Errorf("workload: secrets need a tmpfs at %s: %w", dir, err)
	}
	return nil
}

func (f folders) apps() string                    { return filepath.Join(f.root, "apps") }
func (f folders) app(app string) string           { return filepath.Join(f.apps(), app) }
func (f folders) volume(app, name string) string  { return filepath.Join(f.app(app), "volumes", name) }
func (f folders) data(app string) string          { return filepath.Join(f.app(app), "data") }
func (f folders) logs(app, service string) string { return filepath.Join(f.app(app), "logs", service) }
func (f folders) files(app, id string) string     { return filepath.Join(f.run, "apps", app, id) }
func (f folders) shim(app string) string          { return filepath.Join(f.run, "shim", app) }
func (f folders) secrets(app, id string) string   { return filepath.Join(f.run, "secrets", app, id) }

// bind finds a bind mount's source within the app's data folder and makes it when
// it is missing. A path that leaves the folder, also by a link that a container
// left there, is refused.
func (f folders) bind(app, source string) (string, error) {
	base := f.data(app)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	rel := strings.TrimPrefix(filepath.Clean("/"+source), "/")
	if filepath.IsAbs(source) || !filepath.IsLocal(filepath.Clean(source)) {
		return "", api.Errorf(api.Invalid, "bind mount %q is outside the app's data folder", source)
	}
	dir, err := os.OpenRoot(base)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if rel != "" {
		if _, err := dir.Stat(rel); errors.Is(err, fs.ErrNotExist) {
			err = dir.MkdirAll(rel, 0o755)
			if err != nil {
				return "", err
			}
		} else if err != nil {
			return "", fmt.Errorf("bind mount %q: %w", source, err)
		}
	}
	path := filepath.Join(base, rel)
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if realBase, err := filepath.EvalSymlinks(base); err != nil || real != filepath.Join(realBase, rel) {
		return "", api.Errorf(api.Invalid, "bind mount %q goes through a symbolic link", source)
	}
	return path, nil
}

// appMemory is what must be remembered of an app for as long as it is here.
type appMemory struct {
	InForce  string               `json:"inForce,omitempty"`
	Rejected map[string]rejection `json:"rejected,omitempty"` // by service
}

func (f folders) loadApps() (map[string]appMemory, error) {
	entries, err := os.ReadDir(f.apps())
	if err != nil {
		return nil, err
	}
	out := map[string]appMemory{}
	for _, e := range entries {
		var mem appMemory
		// Memory that cannot be read costs one more attempt at an update; no more.
		if b, err := os.ReadFile(filepath.Join(f.app(e.Name()), "memory.json")); err == nil && len(b) < 1<<20 {
			_ = json.Unmarshal(b, &mem)
		}
		out[e.Name()] = mem
	}
	return out, nil
}

func (f folders) saveApp(app string, mem appMemory) error {
	b, err := json.Marshal(mem)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.app(app), 0o711); err != nil {
		return err
	}
	return writeAtomic(filepath.Join(f.app(app), "memory.json"), b, 0o600)
}

// dropApp deletes everything of an app, volumes included.
func (f folders) dropApp(app string) error {
	if !safeName.MatchString(app) {
		return api.Errorf(api.Invalid, "%q is not an app", app)
	}
	return errors.Join(
		os.RemoveAll(filepath.Join(f.run, "secrets", app)),
		os.RemoveAll(filepath.Join(f.run, "apps", app)),
		os.RemoveAll(f.shim(app)),
		os.RemoveAll(f.app(app)),
	)
}

// writeAtomic replaces a file as a whole: temporary file, sync, rename, sync of
// the folder.
func writeAtomic(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
