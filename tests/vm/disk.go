package vm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
)

// CopyDisk copies a disk image without its holes, as flashing does, and makes it size bytes
// long if that is more: real disks are larger than what is flashed onto them.
func CopyDisk(from, to string, size int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for at := int64(0); at < info.Size(); {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // holes to the end
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, end-data)); err != nil {
			return err
		}
		at = end
	}
	return out.Truncate(max(size, info.Size()))
}

// WriteConfig puts a tributary.yaml, and more files, on a disk's partition CONFIG, as a person
// with the stick in hand would; nothing else of the partition stays.
func WriteConfig(disk, text string, more ...fat.File) (err error) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	table, _, err := gpt.Read(f, info.Size())
	if err != nil {
		// The second table lies at the end of what was flashed, and the disk is longer: the
		// first alone will do.
		return fmt.Errorf("%s: %w", disk, err)
	}
	n, p := table.Find("config")
	if n == 0 {
		return fmt.Errorf("%s has no partition CONFIG", disk)
	}
	return fat.Write(io.NewOffsetWriter(f, table.Offset(p)), table.Size(p), fat.Options{Label: "CONFIG", Time: time.Now()},
		append([]fat.File{{Path: "tributary.yaml", Content: strings.NewReader(text)}}, more...))
}
