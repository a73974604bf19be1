package update

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/pattern"
)

const (
	pstore    = "/sys/fs/pstore"
	maxDumps  = 64
	maxDump   = 64 << 10
	maxWords  = 200
	keepBytes = 128 << 10
)

var panicked = pattern.New(`(?m)Kernel panic - not syncing: (.*)$`)

// LastWords gives what the kernel said when it died last, a line, and "" where it did not. What it left is moved from the
// firmware, which has little room for it, to the file kept.
func LastWords(kept string) string { return lastWords(pstore, kept) }

func lastWords(dir, kept string) (words string) {
	files, err := filepath.Glob(filepath.Join(dir, "dmesg-*"))
	if err != nil || len(files) == 0 {
		return ""
	}
	var all strings.Builder
	for _, name := range files[:min(len(files), maxDumps)] {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(f, maxDump))
		_ = f.Close()
		if err != nil {
			continue
		}
		if m := panicked.FindSubmatch(b); m != nil && words == "" {
			words = strings.ToValidUTF8(strings.TrimSpace(string(m[1][:min(len(m[1]), maxWords)])), "?")
		}
		if all.Len() < keepBytes {
			fmt.Fprintf(&all, "== %s\n%s\n", filepath.Base(name), b)
		}
	}
	if err := atomicfile.Write(kept, []byte(all.String()), 0o600); err != nil {
		return words // it stays where it is
	}
	for _, name := range files {
		_ = os.Remove(name) // once more at worst
	}
	return words
}
