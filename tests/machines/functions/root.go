//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// leaveInitramfs moves to a root that containers can be made from: the kernel lets nobody
// pivot away from its first one.
func leaveInitramfs() error {
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
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/resolv.conf", nil, 0o644); err != nil {
		return err
	}
	err = unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")
	return errors.Join(err, os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu +memory +pids +cpuset +hugetlb"), 0), os.MkdirAll(base, 0o755),
		os.MkdirAll("/run/box", 0o755), os.Setenv("PATH", "/tools:/usr/sbin:/usr/bin"))
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
