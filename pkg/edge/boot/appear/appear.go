//go:build linux

// Package appear answers: when is a file there? The kernel tells (inotify), so that whoever
// waits takes no processor time from who is to make it.
package appear

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// pause is between looks where the kernel does not tell, as in a folder that is not there.
const pause = 100 * time.Millisecond

// Wait returns nil when there is something at path, and otherwise ctx's error when that ends.
func Wait(ctx context.Context, path string) error {
	there := func() bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	for !there() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		told, err := folder(filepath.Dir(path))
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		if there() { // it came before the kernel was asked
			return told.Close()
		}
		err = next(ctx, told)
		if err = errors.Join(err, told.Close()); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// folder is what the kernel says of a folder's new names.
func folder(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_ONLYDIR); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// next waits for one word of the kernel, or the end of ctx.
func next(ctx context.Context, told *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = told.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := told.Read(make([]byte, 4<<10))
	return err
}
