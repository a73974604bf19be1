// Package door answers: what is a check whose test can be tried?
package door

import "errors"

// Open takes a key of four letters that begins with k.
func Open(key string) error {
	if n := len(key); n != 4 { // check: length
		return errors.New("refused")
	}
	switch {
	case key[0] != 'k': // check: first
		return errors.New("refused")
	}
	return nil
}
