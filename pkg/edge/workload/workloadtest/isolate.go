// Package workloadtest answers: how does a test get a containerd, images and a
// network of its own, and leave nothing behind?
//
// Isolate runs the calling program again in new PID, mount and network namespaces:
// whatever it starts there (daemons, shims, containers) ends with it, its mounts and
// bridges with it. Daemon is a private containerd, Registry an OCI registry in
// memory, Tools the helper programs built from this module.
package workloadtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const stageVariable = "TRIBUTARY_TEST_STAGE"

// Missing says what a test of real containers needs and this machine lacks; "" when
// it has all.
func Missing() string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	for _, name := range []string{"containerd", "runc", "containerd-shim-runc-v2"} {
		if _, err := exec.LookPath(name); err != nil {
			return "needs " + name + " (Debian: apt-get install containerd runc)"
		}
	}
	return ""
}

// Isolate calls run inside new namespaces and returns its exit code. It must be
// called first in main or TestMain. Where namespaces cannot be had (see Missing) it
// calls run as it is.
func Isolate(run func() int) int {
	switch os.Getenv(stageVariable) {
	case "":
		if Missing() != "" {
			return run()
		}
		return again("init", &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
			Pdeathsig:  unix.SIGKILL,
		})
	case "init":
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "workloadtest:", err)
			return 1
		}
		return reap()
	}
	return run()
}

func again(stage string, attr *syscall.SysProcAttr) int {
	cmd := command(stage, attr)
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "workloadtest:", err)
		return 1
	}
	return 0
}

func command(stage string, attr *syscall.SysProcAttr) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	return cmd
}

// settle makes the new namespaces usable.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// reap is process 1 of the namespace: it starts the program proper and collects
// every orphan until that one ends.
func reap() int {
	cmd := command("run", &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL})
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "workloadtest:", err)
		return 1
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 1
		}
		if pid == cmd.Process.Pid && (status.Exited() || status.Signaled()) {
			if status.Signaled() {
				return 128 + int(status.Signal())
			}
			return status.ExitStatus()
		}
	}
}
