package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errUnconfined says that the kernel has no Landlock.
var errUnconfined = errors.New("this kernel has no Landlock: inferd runs as it was started")

// inside is set in the environment of a process that is confined.
const inside = "INFERD_CONFINED"

// readable is what a program and ONNX Runtime need of a system beside what they are given; what is not
// there is not needed.
var readable = []string{"/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/proc/cpuinfo", "/sys/devices/system/cpu", "/dev/null", "/dev/urandom"}

const readOnly = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE

// onFile are the rights that a rule about a file may give; others are about folders.
const onFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

// confine has this program start over as one that reads the system's libraries and what is named, writes
// where it is named, and speaks no TCP (landlock(7)): a model is data of strangers, and what reads it is
// a million lines. It returns in the process that is confined. A thread confines itself alone, which is
// why there is a start between.
func confine(read, write []string) error {
	if os.Getenv(inside) != "" {
		return os.Unsetenv(inside)
	}
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errUnconfined
	}
	rules := ruleset(int(abi))
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return fmt.Errorf("make a ruleset of Landlock: %w", errno)
	}
	defer unix.Close(int(fd))
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, path := range append(append([]string{self}, readable...), read...) {
		if err := allow(int(fd), path, rules.Handled_access_fs&readOnly); err != nil {
			return err
		}
	}
	for _, path := range write {
		if err := allow(int(fd), path, rules.Handled_access_fs); err != nil {
			return err
		}
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("confine inferd: %w", errno)
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), inside+"=1"))
}

// ruleset is all that a version of Landlock can forbid.
func ruleset(abi int) (r unix.LandlockRulesetAttr) {
	r.Handled_access_fs = 1<<13 - 1
	for version, right := range map[int]uint64{2: unix.LANDLOCK_ACCESS_FS_REFER, 3: unix.LANDLOCK_ACCESS_FS_TRUNCATE, 5: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV} {
		if abi >= version {
			r.Handled_access_fs |= right
		}
	}
	if abi >= 4 {
		r.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	return r
}

func allow(ruleset int, path string, rights uint64) error {
	path, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unix.Close(f)
	var s unix.Stat_t
	if err := unix.Fstat(f, &s); err != nil {
		return err
	}
	if s.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= onFile
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(f)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("allow %s: %w", path, errno)
	}
	return nil
}
