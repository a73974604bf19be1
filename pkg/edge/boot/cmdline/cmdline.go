// Package cmdline answers: what does the kernel's command line tell this box? The line is
// signed with the kernel (it is a section of the unified kernel image), so what stands
// there is trusted.
package cmdline

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Max is more than any kernel passes on (COMMAND_LINE_SIZE is 2048 on amd64 and arm64).
const Max = 64 << 10

// Line is the command line by key; the last of several wins, as in the kernel.
type Line map[string]string

// Parse reads words separated by blanks; double quotes hold a value together. A word
// without "=" has the empty value.
func Parse(text string) Line {
	out := Line{}
	var word strings.Builder
	quoted := false
	flush := func() {
		if word.Len() > 0 {
			k, v, _ := strings.Cut(word.String(), "=")
			out[k] = v
			word.Reset()
		}
	}
	for _, r := range text[:min(len(text), Max)] {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && (r == ' ' || r == '\n' || r == '\t'):
			flush()
		default:
			word.WriteRune(r)
		}
	}
	flush()
	return out
}

// RootHash is the root hash of the system's dm-verity tree; package gpt makes the UUIDs of
// the two partitions from it.
func (l Line) RootHash() (hash [32]byte, err error) {
	text, ok := l["roothash"]
	if !ok {
		return hash, fmt.Errorf("no roothash= on the command line")
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		return hash, fmt.Errorf("roothash=%.80s is no sha256", text)
	}
	return [32]byte(b), nil
}

// Seconds reads a whole number of seconds between 1 and most; anything else is the default.
func (l Line) Seconds(key string, otherwise, most time.Duration) time.Duration {
	n, err := strconv.Atoi(l[key])
	if err != nil || n < 1 || n > int(most/time.Second) {
		return otherwise
	}
	return time.Duration(n) * time.Second
}

// Has tells whether the key stands there, with or without a value.
func (l Line) Has(key string) bool {
	_, ok := l[key]
	return ok
}
