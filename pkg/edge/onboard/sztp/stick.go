package sztp

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// The files of a stick, in DER, in a folder tributary/ or in one named after the serial
// number below it; the latter goes first.
const (
	StickDir      = "tributary"
	StickConveyed = "conveyed-information.cms"
	StickOwner    = "owner-certificate.cms"
	StickVoucher  = "ownership-voucher.cms"
)

// readStick reads the signed data of removable storage (RFC 8572 section 4.1): place is a
// folder, or what holds a FAT file system, which is read here and not by the kernel: a
// stranger's stick meets no more than this program.
func readStick(place, serial string) (a Artifacts, err error) {
	info, err := os.Stat(place)
	if err != nil {
		return a, err
	}
	if info.IsDir() {
		return stickFiles(serial, func(name string, most int64) ([]byte, error) {
			return readSome(filepath.Join(place, filepath.FromSlash(name)), most)
		})
	}
	f, err := os.Open(place)
	if err != nil {
		return a, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return a, err
	}
	v, err := fat.Open(f, size)
	if err != nil {
		if kind := formatted(f); kind != "" { // as new sticks come, and as people format them
			return a, fmt.Errorf("it holds %s, which is not read here: format it as FAT32 (%w)", kind, err)
		}
		// None that people give to sticks: no business of ours.
		return a, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return stickFiles(serial, func(name string, most int64) ([]byte, error) {
		b, err := v.ReadFile(name, most)
		if err != nil && !slices.ContainsFunc(v.Entries(), func(e fat.Entry) bool { return strings.EqualFold(e.Path, name) }) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return b, err
	})
}

// formatted names the file system that a person may have meant for us; empty for none.
func formatted(r io.ReaderAt) string {
	b := make([]byte, 1<<10+512)
	if n, err := r.ReadAt(b, 0); err != nil && (!errors.Is(err, io.EOF) || n < 512) {
		return ""
	}
	for _, k := range []struct {
		at         int
		sign, kind string
	}{{3, "EXFAT   ", "exFAT"}, {3, "NTFS    ", "NTFS"}, {54, "FAT12   ", "FAT12"}, {54, "FAT16   ", "FAT16"}, {82, "FAT32   ", "a damaged FAT32"}, {1080, "\x53\xef", "ext4"}} {
		if strings.HasPrefix(string(b[k.at:]), k.sign) {
			return k.kind
		}
	}
	return ""
}

// stickFiles picks the three files.
func stickFiles(serial string, read func(name string, most int64) ([]byte, error)) (a Artifacts, err error) {
	dirs := []string{StickDir}
	if path.Base(serial) == serial && serial != "." && serial != ".." {
		dirs = []string{path.Join(StickDir, serial), StickDir}
	}
	err = fs.ErrNotExist
	for _, dir := range dirs {
		if a.Conveyed, err = read(path.Join(dir, StickConveyed), voucher.MaxConveyed); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return a, err
		}
		if a.OwnerCert, err = read(path.Join(dir, StickOwner), voucher.MaxVoucher); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
		if a.Voucher, err = read(path.Join(dir, StickVoucher), voucher.MaxVoucher); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
		return a, nil
	}
	return Artifacts{}, err
}

func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return b, err
}

// Sticks lists what is plugged in and may hold signed data, by the kernel's list of disks
// (/sys): partitions of removable disks and of those on USB, and such disks without any.
func Sticks(sys, dev string) (out []string) {
	disks, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return nil
	}
	for _, d := range disks {
		dir := filepath.Join(sys, "block", d.Name())
		removable, _ := readSome(filepath.Join(dir, "removable"), 16)
		where, _ := filepath.EvalSymlinks(dir)
		if strings.TrimSpace(string(removable)) != "1" && !strings.Contains(where, "/usb") {
			continue
		}
		if size, _ := readSome(filepath.Join(dir, "size"), 32); strings.TrimSpace(string(size)) == "0" {
			continue // a drive without a medium
		}
		inside, _ := os.ReadDir(dir)
		parts := 0
		for _, p := range inside {
			if _, err := os.Stat(filepath.Join(dir, p.Name(), "partition")); err == nil {
				out = append(out, filepath.Join(dev, p.Name()))
				parts++
			}
		}
		if parts == 0 {
			out = append(out, filepath.Join(dev, d.Name()))
		}
	}
	return out[:min(len(out), maxList)]
}
