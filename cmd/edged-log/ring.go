package main

import "syscall"

// segments is a ring of files NNNNNNNN.log; greater numbers are newer.
type segments struct {
	dir   string
	limit int64 // bytes a segment
	count int64 // segments kept, the one being written included
	fd    int
	seq   int64
	size  int64
}

// arguments reads the pairs of the command line. Package os is avoided for its size.
func arguments() bool {
	ring.limit, ring.count = 1<<20, 5
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	n, err := syscall.Read(fd, out[:])
	syscall.Close(fd)
	if err != nil || n == len(out) {
		return false
	}
	key := ""
	for i, start := 0, 0; i < n; i++ {
		if out[i] != 0 {
			continue
		}
		word := string(out[start:i])
		switch {
		case start == 0: // the program's own name
		case key == "":
			key = word
		default:
			ring.set(key, word)
			key = ""
		}
		start = i + 1
	}
	return ring.dir != ""
}

func (r *segments) set(key, value string) {
	switch key {
	case "dir":
		r.dir = value
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
func parse(s string) int64 {
	v := int64(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || v > 1<<50 {
			return -1
		}
		v = v*10 + int64(s[i]-'0')
	}
	if s == "" {
		return -1
	}
	return v
}

// open goes on with the newest segment there is, or begins the first.
func (r *segments) open() bool {
	d, err := syscall.Open(r.dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	first := int64(-1)
	for {
		n, err := syscall.ReadDirent(d, in[:])
		if err != nil || n <= 0 {
			break
		}
		_, _, names := syscall.ParseDirent(in[:n], -1, nil)
		for _, name := range names {
			if len(name) != 12 || name[8:] != ".log" {
				continue
			}
			if v := parse(name[:8]); v >= 0 {
				r.seq = max(r.seq, v)
				if first < 0 || v < first {
					first = v
				}
			}
		}
	}
	syscall.Close(d)
	for ; first >= 0 && first <= r.seq-r.count; first++ {
		syscall.Unlink(r.path(first))
	}
	return r.begin()
}

func (r *segments) path(seq int64) string {
	var b [8]byte
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + seq%10)
		seq /= 10
	}
	return r.dir + "/" + string(b[:]) + ".log"
}

// begin opens segment seq.
func (r *segments) begin() bool {
	fd, err := syscall.Open(r.path(r.seq), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_APPEND|syscall.O_CLOEXEC, 0o640)
	if err != nil {
		r.fd = -1
		return false
	}
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) == nil {
		r.size = st.Size
	}
	r.fd = fd
	return true
}

// write appends whole lines. What does not fit on the disk is dropped, after the
// oldest segment gave way.
func (r *segments) write(b []byte) {
	if r.size > 0 && r.size+int64(len(b)) > r.limit || r.fd < 0 {
		if r.fd >= 0 {
			syscall.Close(r.fd)
			r.seq++
			r.size = 0
		}
		if r.seq >= r.count {
			syscall.Unlink(r.path(r.seq - r.count))
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
		syscall.Unlink(r.path(old))
	}
}

// append writes all of b or nothing.
func (r *segments) append(b []byte) bool {
	for done := 0; done < len(b); {
		n, err := syscall.Write(r.fd, b[done:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			syscall.Ftruncate(r.fd, r.size)
			return false
		}
		done += n
	}
	r.size += int64(len(b))
	return true
}
