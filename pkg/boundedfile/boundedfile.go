// Package boundedfile answers: how is a file read that may be larger than it should be?
package boundedfile

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrTooLarge is in the error of what has more bytes than it may.
var ErrTooLarge = errors.New("too large")

// Read reads a file of at most so many bytes. It does not rely on the size that the
// system tells: of a file in /proc that is 0, and others may grow.
func Read(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("%s: %w: it has more than %d bytes", path, ErrTooLarge, most)
	}
	return b, nil
}
