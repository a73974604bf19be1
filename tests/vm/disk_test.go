package vm

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
)

func TestConfigOnACopiedDisk(t *testing.T) {
	const mib, size = 1 << 20, 64 << 20
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	linux, err := gpt.Parse("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
	if err != nil {
		t.Fatal(err)
	}
	table := gpt.Table{Disk: gpt.Named("disk"), SectorSize: 512, Sectors: size / 512, Partitions: []gpt.Partition{
		{Type: linux, ID: gpt.Named("a"), First: mib / 512, Last: 20*mib/512 - 1, Name: "esp-a"},
		{Type: linux, ID: gpt.Named("b"), First: 20 * mib / 512, Last: 60*mib/512 - 1, Name: "config"}}}
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("before"), 19*mib); err != nil {
		t.Fatal(err)
	}
	if err := CopyDisk(from, to, 4*size); err != nil {
		t.Fatal(err)
	}
	if err := WriteConfig(to, "name: box\n"); err != nil {
		t.Fatal(err)
	}
	copied, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if info, err := copied.Stat(); err != nil || info.Size() != 4*size {
		t.Errorf("the copy has %v, %v", info, err)
	}
	v, err := fat.Open(io.NewSectionReader(copied, 20*mib, 40*mib), 40*mib)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := v.ReadFile("tributary.yaml", 1<<10); err != nil || string(b) != "name: box\n" {
		t.Errorf("on CONFIG is %q, %v", b, err)
	}
	b := make([]byte, 6)
	if _, err := copied.ReadAt(b, 19*mib); err != nil || !bytes.Equal(b, []byte("before")) {
		t.Errorf("before CONFIG is %q, %v", b, err)
	}
	if err := WriteConfig(from, strings.Repeat("x", 1<<10)); err != nil {
		t.Error(err)
	}
}
