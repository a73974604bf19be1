package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// room holds a shell and all that is started in it: a control group of its own, which ends as a
// whole (cgroup.kill, Linux 5.14), so that what left the session ends too. On a machine without
// the second version of control groups it is the session alone.
type room struct {
	dir  string
	open *os.File
}

// cgroups is where the second version is mounted on an appliance.
const cgroups = "/sys/fs/cgroup"

// newRoom makes a group beside the console's own.
func newRoom() (room, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return room{}, err
	}
	own, two := strings.CutPrefix(strings.TrimSpace(string(text)), "0::")
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); !two || strings.Contains(own, "\n") || err != nil {
		return room{}, nil // there is another version, or both
	}
	dir, err := os.MkdirTemp(filepath.Join(cgroups, filepath.Dir(own)), "shell-")
	if err != nil {
		return room{}, err
	}
	open, err := os.Open(dir)
	if err != nil {
		return room{}, errors.Join(err, os.Remove(dir))
	}
	return room{dir: dir, open: open}, nil
}

// take has a process begin in the room.
func (r room) take(attr *syscall.SysProcAttr) {
	if r.open != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(r.open.Fd())
	}
}

// kill ends all that is in the room, and returns when it is empty; sid is the shell's session.
func (r room) kill(sid int) {
	endSession(sid)
	if r.dir == "" {
		return
	}
	_ = os.WriteFile(filepath.Join(r.dir, "cgroup.kill"), []byte("1"), 0) // an old kernel: the session has ended at least
	for range 500 {
		if left, err := os.ReadFile(filepath.Join(r.dir, "cgroup.procs")); err != nil || len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// end removes the room, which is empty.
func (r room) end() {
	if r.dir != "" {
		r.open.Close()
		_ = os.Remove(r.dir) // one that stays is empty, and goes when the box starts anew
	}
}

// endSession kills what is left of a session: what a person started in the background shall
// not outlive the lock. It looks again until nobody is left, since what forks may be missed.
func endSession(sid int) {
	for range 50 {
		list := members(sid)
		if len(list) == 0 {
			return
		}
		for _, pid := range list {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// members are the processes of a session that live (proc_pid_stat(5): the state is the first
// field behind the name, the session the fourth).
func members(sid int) (out []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), ") ")
		f := strings.Fields(rest)
		if len(f) < 4 || f[0] == "Z" || f[3] != strconv.Itoa(sid) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
