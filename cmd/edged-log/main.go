// Command edged-log answers: how does a container's output reach a bounded ring of
// files, also while edged is dead?
//
// containerd's shim starts one for each container (log URI binary://…): file
// descriptor 3 is the container's stdout, 4 its stderr, and closing 5 says that it
// is ready. Arguments come in pairs: dir PATH, and optionally segment BYTES and
// count N. It reads always and never waits for anything but the disk; what cannot be
// written (disk full) is dropped, oldest segments first.
//
// One runs per container, for as long as the container does: the shim closes its own
// copy of the pipes' reading ends, and signals the logger's process id at the end, which
// must not be another's by then. So memory is what counts. The program uses nothing of
// Go's runtime: no allocation, goroutine, map, interface or string is made, and it
// imports nothing above syscall. On amd64 it is linked with its own entry point
// (bare_amd64.s), so that the runtime, which costs half a megabyte, never starts. Built
// by a plain `go build` the runtime does start, and the program does the same.
//
// Exit codes: 0 the container closed its output; 2 wrong arguments or no folder.
package main

import (
	"syscall"
	"unsafe"
)

const (
	stdoutFD = 3
	stderrFD = 4
	readyFD  = 5

	chunk   = 16 << 10 // read at once
	maxLine = 8 << 10  // longer lines are kept in pieces
	stamp   = 24       // room for "<µs> oF "
)

func main() { keep() }

// alone says that there is no runtime.
var alone bool

// keep is the program. Package variables have no values of their own, so that nothing
// depends on who runs the initialisers.
func keep() {
	name := [16]byte{'e', 'd', 'g', 'e', 'd', '-', 'l', 'o', 'g'}
	procName = name
	call(syscall.SYS_PRCTL, syscall.PR_SET_NAME, uintptr(unsafe.Pointer(&procName)), 0)
	ignore(syscall.SIGTERM) // the shim's hint at the end; the end of file is what counts
	ignore(syscall.SIGINT)
	ignore(syscall.SIGPIPE)
	if !arguments() || !ring.open() {
		exit(2)
	}
	closeFD(readyFD)
	copyAll()
	exit(0)
}

// stream is one of the container's outputs and the beginning of a line that has not
// ended yet.
type stream struct {
	fd   int
	name byte
	open bool
	n    int
	line [maxLine]byte
}

var (
	procName [16]byte
	streams  [2]stream
	fds      [2]pollFD
	in       [chunk]byte
	out      [2*chunk + maxLine]byte
	outN     int
	at       int64 // when what is being handled was read, in µs
	ring     segments
)

// copyAll reads until both outputs are closed.
func copyAll() {
	const pollIn, pollErr, pollHup, pollNval = 0x1, 0x8, 0x10, 0x20
	streams[0].fd, streams[0].name, streams[0].open = stdoutFD, 'o', true
	streams[1].fd, streams[1].name, streams[1].open = stderrFD, 'e', true
	for streams[0].open || streams[1].open {
		for i := range streams {
			fds[i] = pollFD{fd: int32(streams[i].fd), events: pollIn}
			if !streams[i].open {
				fds[i].fd = -1
			}
		}
		if poll(&fds) == syscall.EINTR {
			continue
		}
		for i := range streams {
			if fds[i].revents&(pollIn|pollErr|pollHup|pollNval) != 0 {
				streams[i].read()
			}
		}
		flush()
	}
}

func (s *stream) read() {
	n, errno := read(s.fd, in[:])
	if errno == syscall.EINTR || errno == syscall.EAGAIN {
		return
	}
	at = now()
	if errno != 0 || n == 0 {
		if s.n > 0 {
			s.emit('F')
		}
		s.open = false
		return
	}
	for _, c := range in[:n] {
		if c == '\n' {
			s.emit('F')
			continue
		}
		if s.n == maxLine {
			s.emit('P')
		}
		s.line[s.n] = c
		s.n++
	}
}

// emit puts one line, or a piece of one, in the output buffer.
func (s *stream) emit(part byte) {
	if outN+stamp+s.n+1 > len(out) {
		flush()
	}
	outN += number(out[outN:], at)
	out[outN], out[outN+1], out[outN+2], out[outN+3] = ' ', s.name, part, ' '
	outN += 4
	outN += copy(out[outN:], s.line[:s.n])
	out[outN] = '\n'
	outN++
	s.n = 0
}

func flush() {
	if outN > 0 {
		ring.write(out[:outN])
		outN = 0
	}
}

// number writes a decimal number and returns its length.
func number(b []byte, v int64) int {
	var tmp [20]byte
	i := len(tmp)
	for {
		i--
		tmp[i] = byte('0' + v%10)
		v /= 10
		if v == 0 {
			break
		}
	}
	return copy(b, tmp[i:])
}
