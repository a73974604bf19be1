//go:build linux

// Package newroot answers: how does a program that is all of a guest get a root from which
// containers can be made?
//
// The kernel lets nobody pivot away from its first root, the initramfs.
package newroot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Move copies what is there into memory of its own, makes that the root, and mounts cgroups there with some
// controllers ("+cpu +memory"). /modules stays behind.
func Move(controllers string) error {
	const to = "/newroot"
	if err := errors.Join(os.MkdirAll(to, 0o755), unix.Mount("tmpfs", to, "tmpfs", 0, "size=80%")); err != nil {
		return err
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := "/" + e.Name()
		switch e.Name() {
		case "newroot", "modules":
		case "proc", "sys", "dev", "run", "tmp":
			if err := errors.Join(os.Mkdir(to+name, 0o755), unix.Mount(name, to+name, "", unix.MS_BIND|unix.MS_REC, "")); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		default:
			if err := copyTree(name, to+name); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(os.Chdir(to), unix.Mount(to, "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll("/etc", 0o755), os.WriteFile("/etc/resolv.conf", nil, 0o644), unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""),
		os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte(controllers), 0))
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := to + strings.TrimPrefix(path, from)
		switch {
		case d.IsDir():
			return os.MkdirAll(at, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, at)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(at, data, info.Mode().Perm())
	})
}
