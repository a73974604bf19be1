package boundedfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if _, err := Read(path, 4); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("1234"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := Read(path, 4); err != nil || string(b) != "1234" {
		t.Errorf("%q %v", b, err)
	}
	if b, err := Read(path, 3); !errors.Is(err, ErrTooLarge) || b != nil {
		t.Errorf("%q %v", b, err)
	}
	if b, err := Read("/proc/self/status", 1<<16); err != nil || len(b) == 0 {
		t.Errorf("%q %v", b, err)
	}
}
