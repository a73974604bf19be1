package update

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLastWords(t *testing.T) {
	dir, kept := t.TempDir(), filepath.Join(t.TempDir(), "last-panic")
	if got := lastWords(dir, kept); got != "" {
		t.Fatal(got)
	}
	text := "Panic#1 Part1\n<4>[    3.1] something\n<0>[    3.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n<4>[ 3.3] CPU: 0\n"
	if err := os.WriteFile(filepath.Join(dir, "dmesg-efi_pstore-1"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lastWords(dir, kept); got != "VFS: Unable to mount root fs on unknown-block(0,0)" {
		t.Fatalf("%q", got)
	}
	if b, err := os.ReadFile(kept); err != nil || !strings.Contains(string(b), "something") {
		t.Fatal(string(b), err)
	}
	if got := lastWords(dir, kept); got != "" {
		t.Fatalf("said twice: %q", got)
	}
}
