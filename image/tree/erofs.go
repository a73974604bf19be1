package tree

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"

	erofs "github.com/erofs/go-erofs"
)

// WriteEROFS writes the root as an EROFS image, sorted by path, all times Epoch. It is not compressed: an update's
// delta then sees the files' own bytes, the download is packed as a whole and far better, and reading costs no CPU;
// the price is room in the slot (docs/decisions has the figures).
func (t *Tree) WriteEROFS(file string) (err error) {
	out, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
	}()
	w := erofs.Create(out, erofs.WithBuildTime(uint64(Epoch.Unix()), 0))
	if err := w.Mkdir("/", 0o755); err != nil {
		return err
	}
	if err := w.Chtimes("/", Epoch, Epoch); err != nil {
		return err
	}
	for _, p := range t.Paths() {
		if err := writeEntry(w, "/"+p, t.files[p]); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("writing EROFS: %w", err)
	}
	return padToBlock(out)
}

func writeEntry(w *erofs.Writer, p string, f File) error {
	switch {
	case f.Mode.IsDir():
		if err := w.Mkdir(p, f.Mode.Perm()); err != nil {
			return err
		}
	case f.Mode&fs.ModeSymlink != 0:
		if err := w.Symlink(f.Link, p); err != nil {
			return err
		}
	default:
		file, err := w.Create(p)
		if err != nil {
			return err
		}
		if _, err := file.ReadFrom(bytes.NewReader(f.Data)); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	}
	if f.Mode&fs.ModeSymlink == 0 {
		if err := w.Chmod(p, f.Mode.Perm()|f.Mode&fs.ModeSticky); err != nil {
			return err
		}
	}
	return w.Chtimes(p, Epoch, Epoch)
}

// padToBlock makes the length a multiple of 4096, the block of dm-verity. Where something lies in the last 32 bytes, a
// block of zeros follows: a short inode may end there, and programs that read EROFS without the kernel (fsck.erofs and
// the library above) take as many bytes for it as a long one has, and fail at the end of the file.
func padToBlock(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := (st.Size() + 4095) / 4096 * 4096
	if err := f.Truncate(size); err != nil {
		return err
	}
	end := make([]byte, 32)
	if _, err := f.ReadAt(end, size-int64(len(end))); err != nil {
		return err
	}
	if !bytes.Equal(end, make([]byte, len(end))) {
		size += 4096
	}
	return f.Truncate(size)
}
