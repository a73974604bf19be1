package main

import "syscall"

// read returns a file that is not longer than limit; nil when there is none.
func read(path string, limit int) []byte {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	b := readAll(fd, limit)
	return b
}

// readAll reads to the end and closes; nil when there is more than limit.
func readAll(fd, limit int) []byte {
	defer syscall.Close(fd)
	b := make([]byte, 0, min(limit, 16<<10)+1)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := syscall.Read(fd, b[len(b):cap(b)])
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return b
		}
		if b = b[:len(b)+n]; len(b) > limit {
			return nil
		}
	}
}

// words reads a list of texts that end in zero bytes (proc(5)).
func words(path string) (out []string) {
	b := read(path, 1<<20)
	for i, from := 0, 0; i < len(b); i++ {
		if b[i] == 0 {
			out = append(out, string(b[from:i]))
			from = i + 1
		}
	}
	return out
}

// write replaces a file as a whole.
func write(path string, data []byte) bool {
	tmp := path + "." + number(syscall.Getpid())
	fd, err := syscall.Open(tmp, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	n, err := syscall.Write(fd, data)
	syscall.Close(fd)
	if err != nil || n != len(data) || syscall.Rename(tmp, path) != nil {
		syscall.Unlink(tmp)
		return false
	}
	return true
}

func number(v int) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return string(b[i:])
		}
	}
}

func say(fd int, text string) bool {
	n, err := syscall.Write(fd, []byte(text))
	return err == nil && n == len(text)
}
