package deb

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz" // twelve times as fast as the other one on kernel modules; it only reads
)

// Bounds of one package: the largest kernel package has 8,000 entries and 600 MB.
const (
	maxEntries  = 200_000
	maxUnpacked = 4 << 30
	maxWindow   = 128 << 20 // memory that a decoder may ask for
)

// Entry is one file, folder or link of a package. Owners are left out: all of the image belongs to root.
type Entry struct {
	Path string      // slash-separated, relative, clean
	Mode fs.FileMode // permissions, set-id bits and type (regular, directory, symlink)
	Link string      // target of a symbolic link; path of the first name for a hard link
	Hard bool        // a hard link: Link names an earlier entry
	Size int64       // of a regular file
}

// ErrFormat says that a file is not a Debian package (deb(5)), or breaks one of the bounds.
var ErrFormat = errors.New("not a Debian package")

// Walk hands over the content of a .deb in the order of its archive. body is nil unless the entry is a regular file;
// it is valid until each returns and need not be read. Device files are refused: no package of an image has any.
func Walk(file string, each func(e Entry, body io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := WalkReader(bufio.NewReaderSize(f, 1<<20), each); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// WalkReader is Walk for a stream.
func WalkReader(r io.Reader, each func(e Entry, body io.Reader) error) error {
	name, data, err := findMember(r, "data.tar")
	if err != nil {
		return err
	}
	plain, err := decompress(name, data)
	if err != nil {
		return err
	}
	defer plain.Close()
	return walkTar(plain, each)
}

const (
	arMagic  = "!<arch>\n"
	arHeader = 60
)

// findMember goes through the ar archive to the member whose name has the prefix.
func findMember(r io.Reader, prefix string) (string, io.Reader, error) {
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != arMagic {
		return "", nil, fmt.Errorf("%w: no ar archive", ErrFormat)
	}
	header := make([]byte, arHeader)
	for members := 0; members < 16; members++ {
		if _, err := io.ReadFull(r, header); err != nil {
			return "", nil, fmt.Errorf("%w: it has no %s", ErrFormat, prefix)
		}
		name := strings.TrimRight(strings.TrimRight(string(header[:16]), " "), "/")
		size, err := strconv.ParseInt(strings.TrimRight(string(header[48:58]), " "), 10, 64)
		if err != nil || size < 0 || size > maxPackage || string(header[58:]) != "`\n" {
			return "", nil, fmt.Errorf("%w: broken header of an ar member", ErrFormat)
		}
		if strings.HasPrefix(name, prefix) {
			return name, io.LimitReader(r, size), nil
		}
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return "", nil, fmt.Errorf("%w: ar member %q is cut off", ErrFormat, name)
		}
	}
	return "", nil, fmt.Errorf("%w: it has no %s among its first members", ErrFormat, prefix)
}

func decompress(name string, r io.Reader) (io.ReadCloser, error) {
	switch path.Ext(name) {
	case ".xz":
		x, err := xzReader(r)
		return io.NopCloser(x), err
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case ".gz":
		return gzip.NewReader(r)
	case ".tar":
		return io.NopCloser(r), nil
	}
	return nil, fmt.Errorf("%w: %s is packed in a way that is not known", ErrFormat, name)
}

func xzReader(r io.Reader) (io.Reader, error) {
	x, err := xz.NewReader(bufio.NewReaderSize(r, 256<<10), maxWindow)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return x, nil
}

func walkTar(r io.Reader, each func(Entry, io.Reader) error) error {
	in := tar.NewReader(r)
	var total int64
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if total += h.Size; n >= maxEntries || h.Size < 0 || total > maxUnpacked {
			return fmt.Errorf("%w: more than %d entries or %d bytes", ErrFormat, maxEntries, int64(maxUnpacked))
		}
		e, err := entryOf(h)
		if err != nil {
			return err
		}
		if e.Path == "." {
			continue
		}
		var body io.Reader
		if e.Mode.IsRegular() && !e.Hard {
			body = in
		}
		if err := each(e, body); err != nil {
			return err
		}
	}
}

func entryOf(h *tar.Header) (Entry, error) {
	e := Entry{Mode: h.FileInfo().Mode().Perm() | h.FileInfo().Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)}
	var err error
	if e.Path, err = cleanPath(h.Name); err != nil {
		return e, err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Size = h.Size
	case tar.TypeDir:
		e.Mode |= fs.ModeDir
	case tar.TypeSymlink:
		e.Mode |= fs.ModeSymlink
		if e.Link = h.Linkname; e.Link == "" || len(e.Link) > 4096 || strings.ContainsRune(e.Link, 0) {
			return e, fmt.Errorf("%w: link %q leads nowhere", ErrFormat, e.Path)
		}
	case tar.TypeLink:
		e.Hard = true
		if e.Link, err = cleanPath(h.Linkname); err != nil {
			return e, err
		}
	default:
		return e, fmt.Errorf("%w: %s is of type %q; images take files, folders and links", ErrFormat, e.Path, h.Typeflag)
	}
	return e, nil
}

// cleanPath makes "./usr/bin/x" to "usr/bin/x" and refuses what would leave the root.
func cleanPath(name string) (string, error) {
	p := path.Clean(strings.TrimLeft(name, "/"))
	if len(name) > 4096 || hasDotDot(name) || strings.ContainsRune(name, 0) || p == "" || strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("%w: path %.80q", ErrFormat, name)
	}
	return p, nil
}
