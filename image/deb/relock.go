package deb

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Arches are the architectures that images are built for.
var Arches = []string{"amd64", "arm64"}

// Relock resolves rootfs/packages.yaml of the checkout root afresh, from the mirror of this machine's apt sources, and
// writes the lock to file ("" = rootfs/packages.lock). It returns the lock.
func Relock(ctx context.Context, root, file string, log *slog.Logger) (*Lock, error) {
	m, err := MachineMirror(os.DirFS("/"))
	if err != nil {
		return nil, err
	}
	d, err := ReadDeclared(filepath.Join(root, "rootfs/packages.yaml"))
	if err != nil {
		return nil, err
	}
	l, err := MakeLock(ctx, &Apt{Dir: filepath.Join(root, ".cache/apt"), Mirror: m, Log: log}, d, Arches)
	if err != nil {
		return nil, err
	}
	if file == "" {
		file = filepath.Join(root, "rootfs/packages.lock")
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, l.Encode(), 0o644); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, file); err != nil {
		return nil, err
	}
	total := 0
	for _, list := range l.Sets {
		total += len(list)
	}
	log.Info("locked", "file", file, "sets", len(l.Sets), "packages", total)
	return l, nil
}

// String is arch/set.
func (k Key) String() string { return fmt.Sprintf("%s/%s", k.Arch, k.Set) }
