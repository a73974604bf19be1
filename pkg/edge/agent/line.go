package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/stream"
)

// line carries the console of a card: a DPU's, that the driver of RShim shows as a terminal. It ends with the person's input,
// since whoever is at the other end never hangs up.
func (a *Agent) line(ctx context.Context, name string, conn *stream.Conn, in stream.Input) error {
	tty, err := openLine(filepath.Join(cmp.Or(a.cfg.Lines, "/dev"), name, "console"))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { tty.Close() }) // which ends the reading
	defer stop()
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn.Writer(stream.Stdout), tty)
		read <- err
	}()
	typed := make(chan error, 1)
	go func() {
		_, err := io.Copy(tty, in.Stdin)
		typed <- err
	}()
	select {
	case err = <-typed:
		tty.Close()
		<-read
	case err = <-read:
		tty.Close() // in.Stdin ends with the connection
		if err == nil {
			err = &api.Error{Code: api.Unavailable, Message: "the console of " + name + " is gone", Remedy: "see that the card is there, and its driver"}
		}
	}
	if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// openLine opens a terminal for one person, and has it pass each byte as it is.
func openLine(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("there is no console at %s", path), Remedy: "it comes with a DPU and the driver of RShim on this box", Err: err}
	}
	fail := func(code api.Code, message, remedy string, err error) (*os.File, error) {
		unix.Close(fd)
		return nil, &api.Error{Code: code, Message: path + message, Remedy: remedy, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil { // check: one person
		return fail(api.Conflict, " is in use by somebody else", "wait until they leave; the box's records name them", err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fail(api.Unavailable, " is no terminal", "see which driver made it", err)
	}
	// cfmakeraw(3)
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fail(api.Unavailable, " cannot be set", "see which driver made it", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
