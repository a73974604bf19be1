package rise

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// terminals are all consoles of the box at once: what is said is said on each, and a key
// may come from any.
type terminals struct{ open []*os.File }

func openConsoles() *terminals {
	t := &terminals{}
	for _, name := range consoles() {
		f, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			say("console %s: %v", name, err)
			continue
		}
		raw(f)
		t.open = append(t.open, f)
	}
	return t
}

// raw gives single keys without waiting for a line, and without echo.
func raw(f *os.File) {
	s, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return // a terminal without settings still prints
	}
	s.Lflag &^= unix.ICANON | unix.ECHO
	s.Iflag |= unix.ICRNL
	s.Oflag |= unix.OPOST | unix.ONLCR
	s.Cc[unix.VMIN], s.Cc[unix.VTIME] = 0, 0
	_ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, s) // lines instead of keys, then
}

func (t *terminals) close() {
	for _, f := range t.open {
		f.Close()
	}
}

// printf writes to each terminal. One that takes nothing (a serial line held by its flow
// control) is passed over after a second.
func (t *terminals) printf(format string, args ...any) {
	text := []byte(fmt.Sprintf(format, args...))
	for _, f := range t.open {
		fd := int(f.Fd())
		_ = unix.SetNonblock(fd, true)
		for rest := text; len(rest) > 0; {
			n, err := unix.Write(fd, rest)
			if n > 0 {
				rest = rest[n:]
				continue
			}
			if err != unix.EAGAIN && err != unix.EINTR {
				break
			}
			if ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1000); ready == 0 || err != nil && err != unix.EINTR {
				break
			}
		}
	}
}

// key waits for one key on any terminal.
func (t *terminals) key(most time.Duration) (byte, bool) {
	fds := make([]unix.PollFd, len(t.open))
	for i, f := range t.open {
		fds[i] = unix.PollFd{Fd: int32(f.Fd()), Events: unix.POLLIN}
	}
	if n, err := unix.Poll(fds, int(most/time.Millisecond)); err != nil || n == 0 {
		return 0, false
	}
	for _, p := range fds {
		var b [1]byte
		if p.Revents&unix.POLLIN != 0 {
			if n, err := unix.Read(int(p.Fd), b[:]); n == 1 && err == nil {
				return lower(b[0]), true
			}
		}
	}
	// A line that hung up is ready at once and has nothing: not a reason to spin.
	_, _ = unix.Poll(nil, 100)
	return 0, false
}

func lower(b byte) byte {
	if b >= 'A' && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}
