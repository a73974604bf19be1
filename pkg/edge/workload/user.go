package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	cfs "github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"tributary.dev/tributary/pkg/api"
)

// userInfo is a resolved user of an image.
type userInfo struct{ User specs.User }

// resolveUser turns "name", "name:group", "1000:1000" into numbers by the image's
// own passwd and group files. Root needs no look into the image.
func (m *Manager) resolveUser(ctx context.Context, s *api.Service, info *imageInfo) (userInfo, error) {
	name := firstOf(s.User, info.config.User)
	if name == "" || name == "0" || name == "root" || name == "0:0" || name == "root:root" {
		return userInfo{}, nil
	}
	key := info.chain + " " + name
	m.mu.Lock()
	known, ok := m.users[key]
	m.mu.Unlock()
	if ok {
		return known, nil
	}
	var out userInfo
	err := m.withRootFS(ctx, info, func(root string) error {
		var err error
		out, err = lookUser(root, name)
		return err
	})
	if err != nil {
		return out, err
	}
	m.mu.Lock()
	m.users[key] = out
	m.mu.Unlock()
	return out, nil
}

func lookUser(root, name string) (userInfo, error) {
	passwd, err := openInside(root, "/etc/passwd")
	if err != nil {
		return userInfo{}, err
	}
	defer passwd.Close()
	group, err := openInside(root, "/etc/group")
	if err != nil {
		return userInfo{}, err
	}
	defer group.Close()
	u, err := user.GetExecUser(name, nil, passwd, group)
	if err != nil {
		return userInfo{}, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("user %q is not in the image", name), Remedy: "use a number, or a name from the image's /etc/passwd", Err: err}
	}
	out := userInfo{User: specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}}
	for _, g := range u.Sgids {
		out.User.AdditionalGids = append(out.User.AdditionalGids, uint32(g))
	}
	return out, nil
}

// openInside opens a file of an image without following links out of it. A missing
// file reads as empty.
func openInside(root, path string) (*os.File, error) {
	real, err := cfs.RootPath(root, path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(real)
	if errors.Is(err, fs.ErrNotExist) {
		return os.Open(os.DevNull)
	}
	return f, err
}

// fillVolume gives a new volume what the image has at its place, owner and mode
// included, as Compose users expect. A volume that exists is left alone.
func (m *Manager) fillVolume(ctx context.Context, dir, target string, info *imageInfo) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	// Made aside and renamed, so that half a copy is never taken for a volume.
	tmp := dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	err := m.withRootFS(ctx, info, func(root string) error {
		src, err := cfs.RootPath(root, target)
		if err != nil {
			return err
		}
		st, err := os.Stat(src)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		return cfs.CopyDir(tmp, src)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("fill volume for %s: %w", target, err), os.RemoveAll(tmp))
	}
	if err := errors.Join(syncFS(tmp), os.Rename(tmp, dir)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
