//go:build linux

// Command inside answers: does this test pass under a kernel that this machine does not run?
//
// It is the first process of a guest with Debian's full kernel: it loads the modules it
// finds, in the order of /modules/order, runs the program that /run.txt names with its
// arguments, a line each, says "inside: ended N" and switches the guest off.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "inside: runs as the first process of a test's machine only")
		os.Exit(2)
	}
	code := 125
	if err := prepare(); err != nil {
		fmt.Println("inside:", err)
	} else {
		code = program()
	}
	fmt.Printf("inside: ended %d\n", code)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // there is nobody to tell
}

func prepare() error {
	var errs []error
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"devpts", "/dev/pts"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}} {
		errs = append(errs, os.MkdirAll(m[1], 0o755), unix.Mount(m[0], m[1], m[0], 0, ""))
	}
	order, err := os.ReadFile("/modules/order")
	errs = append(errs, err)
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			_ = f.Close()
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Printf("inside: module %s: %v\n", name, err) // one that this machine has no use for
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	return errors.Join(append(errs, err)...)
}

func program() int {
	text, err := os.ReadFile("/run.txt")
	if err != nil {
		fmt.Println("inside:", err)
		return 125
	}
	argv := strings.Split(strings.TrimSpace(string(text)), "\n")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "HOME=/tmp", "INSIDE_GUEST=1"}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Println("inside:", err)
		return 125
	}
	return cmd.ProcessState.ExitCode()
}
