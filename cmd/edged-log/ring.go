package main

import (
	"syscall"
	"unsafe"
)

const (
	fileName = 12   // NNNNNNNN.log
	maxPath  = 4096 // PATH_MAX, with a zero byte at the end
)

// segments is a ring of files NNNNNNNN.log; greater numbers are newer.
type segments struct {
	name  [maxPath + 1 + fileName + 1]byte // the folder, and room for a file in it
	dir   int                              // length of the folder's path
	limit int64                            // bytes a segment
	count int64                            // segments kept, the one being written included
	fd    int
	seq   int64
	size  int64
}

// arguments reads the pairs of the command line.
func arguments() bool {
	ring.limit, ring.count = 1<<20, 5
	path := [19]byte{'/', 'p', 'r', 'o', 'c', '/', 's', 'e', 'l', 'f', '/', 'c', 'm', 'd', 'l', 'i', 'n', 'e', 0}
	copy(in[:], path[:])
	fd, ok := open(&in[0], syscall.O_RDONLY)
	if !ok {
		return false
	}
	n, errno := read(fd, out[:])
	closeFD(fd)
	if errno != 0 || n == len(out) {
		return false
	}
	var key []byte
	for i, start := 0, 0; i < n; i++ {
		if out[i] != 0 {
			continue
		}
		word := out[start:i]
		switch {
		case start == 0: // the program's own name
		case key == nil:
			key = word
		default:
			ring.set(key, word)
			key = nil
		}
		start = i + 1
	}
	return ring.dir > 0
}

func (r *segments) set(key, value []byte) {
	switch string(key) {
	case "dir":
		if len(value) < maxPath {
			r.dir = copy(r.name[:], value)
		}
	case "segment":
		if v := parse(value); v >= 64<<10 {
			r.limit = v
		}
	case "count":
		if v := parse(value); v >= 2 {
			r.count = v
		}
	}
}

// parse reads a decimal number; -1 when it is none.
func parse(s []byte) int64 {
	v := int64(0)
	for _, c := range s {
		if c < '0' || c > '9' || v > 1<<50 {
			return -1
		}
		v = v*10 + int64(c-'0')
	}
	if len(s) == 0 {
		return -1
	}
	return v
}

// open goes on with the newest segment there is, or begins the first.
func (r *segments) open() bool {
	r.name[r.dir] = 0
	d, ok := open(&r.name[0], syscall.O_RDONLY|syscall.O_DIRECTORY)
	if !ok {
		return false
	}
	first := int64(-1)
	for {
		n, errno := call(syscall.SYS_GETDENTS64, uintptr(d), uintptr(unsafe.Pointer(&in[0])), chunk)
		if errno != 0 || n <= 0 {
			break
		}
		for b := in[:n]; len(b) > 0; {
			// struct linux_dirent64: inode and offset of 8 bytes, length of 2, type of 1, name.
			const length, name = 16, 19
			size := int(*(*uint16)(unsafe.Pointer(&b[length])))
			if size <= name || size > len(b) {
				break
			}
			if v := sequence(b[name:size]); v >= 0 {
				r.seq = max(r.seq, v)
				if first < 0 || v < first {
					first = v
				}
			}
			b = b[size:]
		}
	}
	closeFD(d)
	for ; first >= 0 && first <= r.seq-r.count; first++ {
		unlink(r.path(first))
	}
	return r.begin()
}

// sequence is the number in a segment's name, which ends in a zero byte; -1 when it is
// another file's.
func sequence(name []byte) int64 {
	if len(name) <= fileName || string(name[8:fileName]) != ".log" || name[fileName] != 0 {
		return -1
	}
	return parse(name[:8])
}

// path is valid until it is asked for again.
func (r *segments) path(seq int64) *byte {
	b := r.name[r.dir:]
	for i := 8; i > 0; i-- {
		b[i] = byte('0' + seq%10)
		seq /= 10
	}
	b[0], b[9], b[10], b[11], b[12], b[13] = '/', '.', 'l', 'o', 'g', 0
	return &r.name[0]
}

// begin opens segment seq.
func (r *segments) begin() bool {
	fd, ok := open(r.path(r.seq), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_APPEND)
	if !ok {
		r.fd = -1
		return false
	}
	if n, errno := call(syscall.SYS_LSEEK, uintptr(fd), 0, seekEnd); errno == 0 {
		r.size = int64(n)
	}
	r.fd = fd
	return true
}

// write appends whole lines. What does not fit on the disk is dropped, after the
// oldest segment gave way.
func (r *segments) write(b []byte) {
	if r.size > 0 && r.size+int64(len(b)) > r.limit || r.fd < 0 {
		if r.fd >= 0 {
			closeFD(r.fd)
			r.seq++
			r.size = 0
		}
		if r.seq >= r.count {
			unlink(r.path(r.seq - r.count))
		}
		if !r.begin() {
			return
		}
	}
	for old := r.seq - r.count + 1; ; old++ {
		if r.append(b) {
			return
		}
		if old < 0 {
			old = 0
		}
		if old >= r.seq {
			return
		}
		unlink(r.path(old))
	}
}

// append writes all of b or nothing.
func (r *segments) append(b []byte) bool {
	for done := 0; done < len(b); {
		n, errno := write(r.fd, b[done:])
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			call(syscall.SYS_FTRUNCATE, uintptr(r.fd), uintptr(r.size), 0)
			return false
		}
		done += n
	}
	r.size += int64(len(b))
	return true
}
