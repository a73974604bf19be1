package main

import (
	"syscall"
	"unsafe"
)

// System calls without package syscall's upper half, which asks the runtime for memory
// and tells it of each call. Paths end in a zero byte.

const (
	atCWD   = ^uintptr(99) // AT_FDCWD
	seekEnd = 2
)

func call(nr, a, b, c uintptr) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(nr, a, b, c)
	return int(n), errno
}

func open(path *byte, flags int) (fd int, ok bool) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_OPENAT, atCWD, uintptr(unsafe.Pointer(path)), uintptr(flags|syscall.O_CLOEXEC), 0o640, 0, 0)
	return int(n), errno == 0
}

func read(fd int, b []byte) (int, syscall.Errno) {
	return call(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}

func write(fd int, b []byte) (int, syscall.Errno) {
	return call(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}

func closeFD(fd int) { call(syscall.SYS_CLOSE, uintptr(fd), 0, 0) }

func unlink(path *byte) { call(syscall.SYS_UNLINKAT, atCWD, uintptr(unsafe.Pointer(path)), 0) }

type pollFD struct {
	fd      int32
	events  int16
	revents int16
}

// poll waits until one of the descriptors has something.
func poll(fds *[2]pollFD) syscall.Errno {
	at := uintptr(unsafe.Pointer(fds))
	if alone {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_PPOLL, at, 2, 0, 0, 0, 0)
		return errno
	}
	// Not a raw call: the runtime would take this goroutine for one that computes, and
	// interrupt it by a signal every 10 ms for as long as the container is silent.
	_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, at, 2, 0, 0, 0, 0)
	return errno
}

// now is the time in µs since 1970.
func now() int64 {
	const realtime = 0
	call(syscall.SYS_CLOCK_GETTIME, realtime, uintptr(unsafe.Pointer(&clock)), 0)
	return int64(clock.Sec)*1_000_000 + int64(clock.Nsec)/1000
}

var clock syscall.Timespec

// ignore sets a signal's disposition to SIG_IGN (rt_sigaction(2)).
func ignore(sig syscall.Signal) {
	action[0] = 1
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

var action [8]uintptr

func exit(code int) {
	for {
		call(syscall.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}
