package modules

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/image/deb/debtest"
)

func module(t testing.TB, path string, info ...string) *Module {
	t.Helper()
	m, err := Parse(path, debtest.Module(info...))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestParse(t *testing.T) {
	m := module(t, "kernel/drivers/net/my-net.ko", "license=GPL", "alias=pci:v00008086d0000100E*", "alias=my-alias", "depends=phy-core,mii", "softdep=pre: crc-x y post: z", "firmware=my/fw.bin")
	want := &Module{Name: "my_net", Path: "kernel/drivers/net/my-net.ko", Size: m.Size, Depends: []string{"phy_core", "mii"}, Pre: []string{"crc_x", "y"}, Post: []string{"z"},
		Aliases: []string{"pci:v00008086d0000100E*", "my-alias"}, Firmware: []string{"my/fw.bin"}}
	if fmt.Sprint(*m) != fmt.Sprint(*want) {
		t.Errorf("got  %+v\nwant %+v", m, want)
	}
	if _, err := Parse("x.ko", []byte("no module")); !errors.Is(err, ErrModule) {
		t.Error(err)
	}
}

func kernelOf(ms ...*Module) *Kernel {
	k := &Kernel{Release: "6.12-test", Modules: map[string]*Module{}, Builtin: map[string]bool{"virtio": true}, Files: map[string][]byte{}}
	for _, m := range ms {
		k.Modules[m.Name] = m
		k.Order = append(k.Order, m.Name)
	}
	return k
}

func list(t testing.TB, text string) List {
	t.Helper()
	l, err := ParseList("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func names(ms []*Module) string {
	var out []string
	for _, m := range ms {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

// TestSoftAlias: what a soft dependency names may be an alias of several modules.
func TestSoftAlias(t *testing.T) {
	k := kernelOf(module(t, "kernel/lib/libcrc32c.ko", "softdep=pre: crc32c"), module(t, "kernel/crypto/crc32c_generic.ko", "alias=crc32c", "alias=crypto-crc32c"),
		module(t, "kernel/arch/crc32c-intel.ko", "alias=crc32c"), module(t, "kernel/crypto/other.ko"))
	c := Choice{Names: []string{"libcrc32c"}}
	if got := names(k.LoadOrder(c)); got != "crc32c_intel crc32c_generic libcrc32c" {
		t.Errorf("order: %s", got)
	}
	closed, err := k.Close(c)
	if err != nil || len(closed) != 3 {
		t.Errorf("closed: %s, %v", names(closed), err)
	}
}

func TestChooseAndOrder(t *testing.T) {
	k := kernelOf(
		module(t, "kernel/net/a.ko", "depends=lib"), module(t, "kernel/net/b.ko"), module(t, "kernel/lib/lib.ko", "softdep=pre: arch-crc"),
		module(t, "kernel/lib/arch-crc.ko"), module(t, "kernel/wd/dog.ko"), module(t, "kernel/wd/bus.ko", "softdep=post: late"), module(t, "kernel/wd/late.ko"),
	)
	c := k.Choose([]List{list(t, "dog after bus gone # why\nnet/\n!b\nvirtio\nmisspelt\n")})
	if got := strings.Join(c.Names, " "); got != "dog bus a" {
		t.Errorf("chosen: %s", got)
	}
	if len(c.Unknown) != 1 || c.Unknown[0].Name != "misspelt" {
		t.Errorf("unknown: %+v", c.Unknown)
	}
	closed, err := k.Close(c)
	if err != nil || names(closed) != "arch_crc lib a bus dog late" {
		t.Errorf("closed: %s, %v", names(closed), err)
	}
	if got := names(k.LoadOrder(c)); got != "bus late dog arch_crc lib a" {
		t.Errorf("order: %s", got)
	}
	if c := k.Choose([]List{list(t, "net/\n!b\nb\n")}); strings.Join(c.Names, " ") != "a b" {
		t.Errorf("a name does not outweigh an exclusion: %v", c.Names)
	}
	for _, bad := range []string{"a/b", "a b c", "!a after b", "!", "x after"} {
		if _, err := ParseList("bad", []byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if _, err := kernelOf(module(t, "kernel/a.ko", "depends=gone")).Close(Choice{Names: []string{"a"}}); err == nil {
		t.Error("a missing need was not seen")
	}
}

// TestOrderHolds: whatever needs whatever, each module comes once and after all that it needs.
func TestOrderHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 15).Draw(rt, "n")
		var ms []*Module
		for i := range n {
			m := &Module{Name: fmt.Sprint("m", i), Path: fmt.Sprintf("kernel/m%d.ko", i)}
			if i > 0 {
				for _, j := range rapid.SliceOfN(rapid.IntRange(0, i-1), 0, 3).Draw(rt, "needs") {
					m.Depends = append(m.Depends, fmt.Sprint("m", j))
				}
			}
			ms = append(ms, m)
		}
		k := kernelOf(ms...)
		c := Choice{Names: []string{fmt.Sprint("m", n-1), fmt.Sprint("m", rapid.IntRange(0, n-1).Draw(rt, "other"))}}
		closed, err := k.Close(c)
		if err != nil {
			rt.Fatal(err)
		}
		order := k.LoadOrder(c)
		if len(order) != len(closed) {
			rt.Fatalf("%d modules in order, %d needed", len(order), len(closed))
		}
		for i, m := range order {
			for _, d := range m.Depends {
				if at := slices.Index(order, k.Modules[d]); at < 0 || at > i {
					rt.Fatalf("%s comes before %s, which it needs", m.Name, d)
				}
			}
		}
	})
}

// TestTablesAsDepmod compares with what kmod's own depmod writes for the same tree, byte for byte.
func TestTablesAsDepmod(t *testing.T) {
	depmod, err := exec.LookPath("depmod")
	if err != nil {
		t.Skip("needs depmod of the package kmod, which is not installed")
	}
	objects := map[string][]byte{
		"kernel/drivers/one-a.ko": debtest.Module("license=GPL", "alias=pci:v00008086d0000100Esv*", "alias=pci:v00008086d00001[0-4]0Fsv*", "alias=net-pf-16-proto-5"),
		"kernel/drivers/one-b.ko": debtest.Module("license=GPL", "alias=pci:v00008086d0000100Esv*", "alias=crypto-sha-1", "softdep=pre: one-a post: two"),
		"kernel/lib/two.ko":       debtest.Module("license=GPL"),
	}
	k := kernelOf()
	k.Files["modules.builtin"] = []byte("kernel/drivers/virtio/virtio.ko\nkernel/fs/my-fs.ko\n")
	k.Files["modules.builtin.modinfo"] = []byte("my_fs.license=GPL\x00my_fs.alias=fs-my-fs\x00virtio.file=drivers/virtio/virtio\x00")
	k.Files["modules.order"] = []byte("kernel/lib/two.ko\nkernel/drivers/one-b.ko\nkernel/drivers/one-a.ko\n")
	k.Builtin = map[string]bool{"virtio": true, "my_fs": true}
	k.Order = ReadBuiltin(k.Files["modules.order"])
	dir := filepath.Join(t.TempDir(), "lib/modules", k.Release)
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var ms []*Module
	for path, object := range objects {
		m, err := Parse(path, object)
		if err != nil {
			t.Fatal(err)
		}
		k.Modules[m.Name] = m
		ms = append(ms, m)
		put(path, object)
	}
	for name, b := range k.Files {
		put(name, b)
	}
	base := strings.TrimSuffix(dir, "/lib/modules/"+k.Release)
	if text, err := exec.Command(depmod, "-b", base, k.Release).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for name, got := range k.Tables(ms) {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("depmod writes no %s", name)
			continue
		}
		if name == "modules.softdep" { // names as the kernel writes them; modprobe takes either
			want = bytes.ReplaceAll(want, []byte("one-a"), []byte("one_a"))
		}
		if !bytes.Equal(withoutComments(got), withoutComments(want)) {
			t.Errorf("%s\n got %q\nwant %q", name, got, want)
		}
	}
}

// withoutComments drops depmod's headings of text files.
func withoutComments(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("# ")) {
		_, b, _ = bytes.Cut(b, []byte("\n"))
		return withoutComments(b)
	}
	return b
}

func FuzzParse(f *testing.F) {
	f.Add(debtest.Module("alias=a", "softdep=pre: b", "depends=c,d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Parse("kernel/x.ko", b); err == nil {
			kernelOf(m).Tables([]*Module{m})
		}
	})
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("net/\n!net/a/\nx after y # z\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseList("x", b)
		if err == nil {
			kernelOf(&Module{Name: "x", Path: "kernel/net/x.ko"}).Choose([]List{l})
		}
	})
}
