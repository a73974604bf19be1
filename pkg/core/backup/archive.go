// Package backup answers: how does a core outlive its machine?
//
// A backup is one file: tar, compressed by zstd, encrypted by age (age-encryption.org/v1)
// to a passphrase or to recipients. The first entry tells what it is; then come copies
// of the databases, the keys, and what else it was given. It is as secret as the core.
package backup

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Header tells what a backup is.
type Header struct {
	Format  int       `json:"format"` // 1
	Version string    `json:"version"`
	Created time.Time `json:"created"`
	// Epoch is the core's when the backup was made; a restored core starts a higher one.
	Epoch uint64 `json:"epoch"`
	// Artifacts tells whether everything in the registry is in it, or app bundles only.
	Artifacts bool `json:"artifacts"`
}

const (
	format     = 1
	headerName = "backup.json"
	// maxEntries and maxHeader bound what Extract takes.
	maxEntries = 10_000_000
	maxHeader  = 64 << 10
)

// Entry is one file of a backup: the content of Path, or Data when Path is empty.
type Entry struct {
	Name string // local, with slashes
	Path string
	Data []byte
}

// Create writes a backup to a new file, mode 0600. The file is there whole, on the disk,
// or not at all; it fails when there is one already.
func Create(path string, to []age.Recipient, h Header, entries []Entry) (err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, &api.Error{Code: api.Conflict, Message: path + " exists already", Remedy: "choose another name; a backup is never written over another"})
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".backup-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	h.Format = format
	if err := write(tmp, to, h, entries); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return errors.Join(tmp.Close(), atomicfile.SyncDir(filepath.Dir(path)))
}

func write(w io.Writer, to []age.Recipient, h Header, entries []Entry) error {
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return err
	}
	packed, err := zstd.NewWriter(sealed, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	archive := tar.NewWriter(packed)
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	for _, e := range append([]Entry{{Name: headerName, Data: head}}, entries...) {
		if err := add(archive, e, h.Created); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return errors.Join(archive.Close(), packed.Close(), sealed.Close())
}

func add(archive *tar.Writer, e Entry, at time.Time) error {
	var content io.Reader = bytes.NewReader(e.Data)
	size := int64(len(e.Data))
	if e.Path != "" {
		f, err := os.Open(e.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, size = io.LimitReader(f, info.Size()), info.Size()
	}
	if err := archive.WriteHeader(&tar.Header{Name: e.Name, Mode: 0o600, Size: size, ModTime: at, Typeflag: tar.TypeReg, Format: tar.FormatPAX}); err != nil {
		return err
	}
	n, err := io.Copy(archive, content)
	if err == nil && n != size {
		err = errors.New("it became shorter while it was read")
	}
	return err
}

// Extract reads a backup into an existing, empty folder, and syncs every file. An error
// of code Unauthorized means that no identity opens it.
func Extract(path string, by []age.Identity, dir string) (*Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return extract(f, by, dir)
}

func extract(r io.Reader, by []age.Identity, dir string) (*Header, error) {
	opened, err := age.Decrypt(r, by...)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return nil, &api.Error{Code: api.Unauthorized, Message: "the passphrase or identity does not open this backup", Err: err}
	}
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "this is not a backup", Err: err}
	}
	unpacked, err := zstd.NewReader(opened, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, err
	}
	defer unpacked.Close()
	archive := tar.NewReader(unpacked)
	h, err := header(archive)
	if err != nil {
		return nil, err
	}
	for range maxEntries {
		e, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return h, atomicfile.SyncDir(dir)
		}
		if err != nil {
			return nil, fmt.Errorf("the backup is damaged: %w", err)
		}
		if e.Typeflag != tar.TypeReg || !filepath.IsLocal(e.Name) {
			return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("the backup holds %q, which no backup has", e.Name)}
		}
		if err := put(filepath.Join(dir, filepath.FromSlash(e.Name)), archive); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil, &api.Error{Code: api.TooLarge, Message: "the backup has too many files"}
}

func header(archive *tar.Reader) (*Header, error) {
	e, err := archive.Next()
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "the backup is empty or damaged", Err: err}
	}
	if e.Name != headerName || e.Size > maxHeader {
		return nil, &api.Error{Code: api.Invalid, Message: "this is not a backup of cored"}
	}
	b, err := io.ReadAll(archive)
	if err != nil {
		return nil, fmt.Errorf("the backup is damaged: %w", err)
	}
	var h Header
	if err := json.Unmarshal(b, &h); err != nil || h.Format != format {
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("the backup has format %d; this cored reads %d", h.Format, format), Remedy: "restore it with the cored that made it, or a newer one", Err: err}
	}
	return &h, nil
}

func put(path string, content io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return f.Sync()
}
