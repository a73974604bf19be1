// Command edged-log answers: how does a container's output reach a bounded ring of
// files, also while edged is dead?
//
// containerd's shim starts one for each container (log URI binary://…): file
// descriptor 3 is the container's stdout, 4 its stderr, and closing 5 says that it
// is ready. Arguments come in pairs: dir PATH, and optionally segment BYTES and
// count N. It reads always and never waits for anything but the disk; what cannot be
// written (disk full) is dropped, oldest segments first.
//
// One runs per container, so memory is what counts: it imports nothing above
// syscall, allocates nothing after its start, and so never runs the collector.
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

func main() {
	syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_NAME, uintptr(unsafe.Pointer(&procName)), 0)
	ignore(syscall.SIGTERM) // the shim's hint at the end; the end of file is what counts
	ignore(syscall.SIGINT)
	ignore(syscall.SIGPIPE)
	if !arguments() || !ring.open() {
		exit(2)
	}
	syscall.Close(readyFD)
	copyAll()
}

var procName = [16]byte{'e', 'd', 'g', 'e', 'd', '-', 'l', 'o', 'g'}

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
	streams = [2]stream{{fd: stdoutFD, name: 'o', open: true}, {fd: stderrFD, name: 'e', open: true}}
	in      [chunk]byte
	out     [2*chunk + maxLine]byte
	outN    int
	ring    segments
)

type pollFD struct {
	fd      int32
	events  int16
	revents int16
}

// copyAll reads until both outputs are closed.
func copyAll() {
	const pollIn, pollErr, pollHup, pollNval = 0x1, 0x8, 0x10, 0x20
	var fds [2]pollFD
	for streams[0].open || streams[1].open {
		for i := range streams {
			fds[i] = pollFD{fd: int32(streams[i].fd), events: pollIn}
			if !streams[i].open {
				fds[i].fd = -1
			}
		}
		// Not a raw call: the runtime would take this goroutine for one that computes, and
		// interrupt it by a signal every 10 ms for as long as the container is silent.
		_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 2, 0, 0, 0, 0)
		if errno == syscall.EINTR {
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
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&in[0])), chunk)
	if errno == syscall.EINTR || errno == syscall.EAGAIN {
		return
	}
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
	var tv syscall.Timeval
	syscall.Gettimeofday(&tv)
	outN += number(out[outN:], int64(tv.Sec)*1_000_000+int64(tv.Usec))
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

// ignore sets a signal's disposition to SIG_IGN (rt_sigaction(2)).
func ignore(sig syscall.Signal) {
	action := [8]uintptr{1}
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

func exit(code int) {
	syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(code), 0, 0)
}
