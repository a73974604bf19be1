package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isNamespace tells whether a path holds a namespace (nsfs), not the plain file
// that a reboot leaves under it.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// makeNamespace makes a network namespace, loopback up, that lives as long as the
// file that it is mounted on. made is false when it was there already.
func makeNamespace(path string) (made bool, err error) {
	if isNamespace(path) {
		return false, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return false, err
	}
	f.Close()
	return true, aside(func() error { return enterNew(path) })
}

// aside runs f on a thread of its own, which ends with it, and with the thread its view of the
// network. It is never the first one of the process: that Go cannot end, and parks for good
// (runtime, mexit), wherever it is. A namespace that it is in lives as long as the process, and
// the kernel gives no interface in it back.
func aside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := aside(f) // on another one: this goroutine keeps the first
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func enterNew(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network: new namespace: %w", err)
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("network: keep namespace at %s: %w", path, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // by default also XFRM, which not every kernel has at hand
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

func removeNamespace(path string) error {
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("network: drop namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Enter runs f on a thread inside the namespace at path. What f opens stays there.
func Enter(path string, f func() error) error {
	return aside(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		return f()
	})
}
