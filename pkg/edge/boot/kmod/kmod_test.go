package kmod

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestList(t *testing.T) {
	got, err := ParseList(strings.NewReader("# watchdogs\n/m/i6300esb.ko heartbeat=60\n\n /m/erofs.ko.xz # the root\n"))
	want := []Entry{{"/m/i6300esb.ko", "heartbeat=60"}, {"/m/erofs.ko.xz", ""}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDep(t *testing.T) {
	files, needs, err := parseDep(strings.NewReader("kernel/a/dm-mod.ko.xz:\nkernel/a/dm-verity.ko.xz: kernel/a/dm-bufio.ko.xz kernel/a/dm-mod.ko.xz\n"))
	if err != nil || files["dm_verity"] != "kernel/a/dm-verity.ko.xz" || !slices.Equal(needs["dm_verity"], []string{"dm_mod", "dm_bufio"}) {
		t.Errorf("%v %v %v", files, needs, err)
	}
}

func TestMatch(t *testing.T) {
	aliases := "# made by depmod\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000002v* virtio-blk\nalias virtio:d00000001v* virtio_net\nalias fs-erofs erofs\n"
	got, err := match(strings.NewReader(aliases), []string{"virtio:d00000002v00001AF4", "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00", "acpi:PNP0C0C:"})
	if err != nil || !slices.Equal(got, []string{"virtio_pci", "virtio_blk"}) {
		t.Errorf("%v, %v", got, err)
	}
}

// A name that nobody knows is an error that names it; one that the kernel has is none.
func TestLoadUnknown(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"modules.dep": "", "modules.builtin": "kernel/fs/ext4/ext4.ko\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Load("ext4"); err != nil {
		t.Error(err)
	}
	if err := tree.Load("no-such"); err == nil || !strings.Contains(err.Error(), "no_such") {
		t.Errorf("%v", err)
	}
	if err := Insert(filepath.Join(dir, "none.ko"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("alias pci:v*d* x", "pci:v1d2")
	f.Fuzz(func(t *testing.T, aliases, device string) {
		_, _ = match(strings.NewReader(aliases), []string{device})
		_, _, _ = parseDep(strings.NewReader(aliases))
		_, _ = ParseList(strings.NewReader(aliases))
	})
}
