package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// shellTime bounds a shell; then it is locked again.
const shellTime = time.Hour

// shell runs a root shell between the line and a terminal of its own, in a session of its
// own, until it ends, the line does, or the time is up. What was started in it ends with it.
func shell(ctx context.Context, l line, argv []string, most time.Duration) error {
	master, slave, err := newPTY()
	if err != nil {
		return err
	}
	defer master.Close()
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	width, height := l.size()
	if width == 0 || height == 0 {
		width, height = 80, 24
	}
	setSize(master, width, height)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TERM=linux", "PS1=\\w # ", "HISTFILE=/dev/null"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	room, err := newRoom()
	if err != nil {
		slave.Close()
		return fmt.Errorf("no shell: %w", err)
	}
	defer room.end()
	room.take(cmd.SysProcAttr)
	fmt.Fprintf(l.out, "\r\nRoot shell, for %v at most. It is noted. \"exit\" locks it again.\r\n", most)
	err = cmd.Start()
	slave.Close()
	if err != nil {
		return fmt.Errorf("no shell: %w", err)
	}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		_, _ = io.Copy(l.out, master) // ends when nobody has the terminal open
	}()
	go func() {
		_, _ = io.Copy(master, l.in.reader(ctx))
		cancel() // the person has gone, or the shell has
	}()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-l.resize:
				if !ok {
					return
				}
				setSize(master, s[0], s[1])
			}
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
		room.kill(cmd.Process.Pid)
	case <-ctx.Done():
		err = ctx.Err()
		room.kill(cmd.Process.Pid)
		<-ended
	}
	cancel()
	select {
	case <-shown:
	case <-time.After(time.Second):
	}
	if errors.Is(err, context.DeadlineExceeded) {
		fmt.Fprintf(l.out, "\r\nThe time is up.")
	}
	fmt.Fprint(l.out, "\r\nLocked.\r\n")
	if exit := new(exec.ExitError); errors.As(err, &exit) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil // how a person leaves is no fault
	}
	return err
}

// newPTY opens a pseudo terminal. The master can be read with a deadline, so that closing it
// ends a read.
func newPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/ptmx: %w", err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "ptmx"), slave, nil
}

func setSize(master *os.File, width, height int) {
	raw, err := master.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // a terminal that is gone has no size
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)})
	})
}
