//go:build linux

// Package leftover answers: when is the memory of the initramfs' own program given back? Not
// at once: the kernel would hand those very pages to the program that starts next. Where code
// is translated (an emulated machine), each page that was executed must first be forgotten,
// which costs far more than writing it.
package leftover

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// handed is the environment variable by which a program leaves an open file to the program
// that takes its place: its number.
const handed = "TRIBUTARY_LEFTOVER"

// Leave keeps a file's memory after its name is removed, until the next program closes what
// Take gives it. It returns what that program's environment is to hold.
func Leave(path string) (env string, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fmt.Sprintf("%s=%d", handed, fd), nil
}

// Take gives what Leave left, such that no child inherits it; nil when nothing was left.
func Take() *os.File {
	fd, err := strconv.Atoi(os.Getenv(handed))
	_ = os.Unsetenv(handed) // it fails for no name of ours
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "leftover")
}
