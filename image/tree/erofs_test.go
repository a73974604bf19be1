package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	erofs "github.com/erofs/go-erofs"
)

func open(t *testing.T, file string) fs.FS {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	img, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestAnywhere: wherever the inodes come to lie, the last one at the very end of the image too, what was put in is there.
func TestAnywhere(t *testing.T) {
	fsck, _ := exec.LookPath("fsck.erofs") // its word too, where it is
	dir, longer, before := t.TempDir(), 0, int64(0)
	for n := range 128 { // a file's bytes stand behind its inode: each step moves what follows by a short inode
		root := New()
		err := errors.Join(root.Put("etc/file", File{Mode: 0o644, Data: bytes.Repeat([]byte{7}, 32*n)}), root.Put("var", File{Mode: fs.ModeDir | 0o755}))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, fmt.Sprint(n))
		if err := root.WriteEROFS(file); err != nil {
			t.Fatal(err)
		}
		img := open(t, file)
		for _, p := range root.Paths() {
			st, err := fs.Lstat(img, p)
			if err != nil || st.Mode().Type() != root.files[p].Mode.Type() {
				t.Fatalf("a file of %d bytes: /%s: %v, %v", 32*n, p, st, err)
			}
		}
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && st.Size() > before {
			longer = n
		}
		before = st.Size()
		if fsck != "" && (n == longer || n%16 == 0) {
			if out, err := exec.CommandContext(t.Context(), fsck, file).CombinedOutput(); err != nil {
				t.Errorf("a file of %d bytes: %v\n%s", 32*n, err, out)
			}
		}
	}
	if longer == 0 {
		t.Error("nothing came to lie at the end of an image")
	}
}
