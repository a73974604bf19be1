package pool

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// sharedSize bounds the memory by which a card's clients and its daemon meet: it is the box's.
const sharedSize = "size=1g"

// shareMemory makes a card's own shared memory; it stays while the daemon does. The box's own
// /dev/shm would show each client what all others, and the box's programs, have there.
func shareMemory(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if own, err := mountpoint(dir); own || err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,"+sharedSize); err != nil {
		return fmt.Errorf("shared memory at %s: %w", dir, err)
	}
	return nil
}

// unshareMemory takes it away again; what still runs with it keeps it to itself.
func unshareMemory(dir string) error {
	own, err := mountpoint(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && own {
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

func mountpoint(dir string) (bool, error) {
	var at, above unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &at), unix.Stat(filepath.Dir(dir), &above)); err != nil {
		return false, err
	}
	return at.Dev != above.Dev, nil
}

// startWith starts a program that finds a folder at /dev/shm, and nobody else does.
func startWith(cmd *exec.Cmd, memories string) error {
	started := make(chan error, 1)
	go func() {
		// The thread's mounts are its own from here on, so it is never let go and ends with
		// this goroutine.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // by the first thread's mounts the whole process is known
			started <- startWith(cmd, memories)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
		}
		if err == nil {
			err = os.MkdirAll("/dev/shm", 0o1777)
		}
		if err == nil {
			err = unix.Mount(memories, "/dev/shm", "", unix.MS_BIND, "")
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}
