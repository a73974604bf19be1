package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	erofs "github.com/erofs/go-erofs"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/deb/debtest"
	"tributary.dev/tributary/image/nvidia"
	"tributary.dev/tributary/pkg/disk/extension"
	"tributary.dev/tributary/tests/mutation"
)

// compiled is a checkout whose profile takes NVIDIA's extension, with modules that are compiled already.
func compiled(t *testing.T, firmware string) (*checkout, Config) {
	t.Helper()
	o, c := fill(t, "amd64")
	const libs = "./usr/lib/x86_64-linux-gnu/nvidia/current/"
	o.pkg("extension-nvidia", nvidia.SourcePackage, debtest.Member{Name: "./usr/src/nvidia-current-open-1/Kbuild", Body: "obj-m"})
	o.pkg("extension-nvidia", "libcuda1", debtest.Member{Name: libs + "libcuda.so.1", Body: "a library"}, debtest.Member{Name: "./usr/share/doc/libcuda1/README", Body: "text"})
	o.pkg("extension-nvidia", "firmware-nvidia-gsp", debtest.Member{Name: "./lib/firmware/nvidia/1/gsp_x.bin", Body: "gsp"}, debtest.Member{Name: "./lib/firmware/nvidia/1/other.bin", Body: "other"})
	o.pkg("compile", "gcc", debtest.Member{Name: "./usr/bin/gcc", Body: "gcc"})
	o.pkg("compile-full", "headers", debtest.Member{Name: "./usr/src/h", Body: "h"})
	o.write("rootfs/extensions/nvidia/modules.list", "nvidia\nnvidia-uvm\n")
	o.write("rootfs/extensions/nvidia/firmware.list", "nvidia/*/gsp_*.bin\n")
	o.write("rootfs/extensions/nvidia/keep.list", "usr/lib/*-linux-gnu/nvidia/current/libcuda.so.*\n")
	c.Profile.Extensions = []string{"nvidia"}
	c.Compiled = t.TempDir()
	c.Sign = func(module []byte) ([]byte, error) { return append(bytes.Clone(module), " signed"...), nil }
	lock := o.lock
	source, err := nvidia.Source(lock.Sets[deb.Key{Arch: "amd64", Set: "extension-nvidia"}])
	if err != nil {
		t.Fatal(err)
	}
	with, err := lock.Packages("amd64", "compile", "compile-full")
	if err != nil {
		t.Fatal(err)
	}
	n := nvidia.Config{Cache: &deb.Cache{Log: slog.New(slog.DiscardHandler)}, Source: source, With: with, Release: "6.12-made", Arch: "amd64", Keep: c.Compiled}
	err = n.Put(map[string][]byte{
		"nvidia.ko":     debtest.Module("version=1", "depends=mii", "vermagic=6.12-made SMP", "firmware="+firmware),
		"nvidia-uvm.ko": debtest.Module("version=1", "depends=nvidia", "vermagic=6.12-made SMP"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return o, c
}

// NVIDIA's extension holds the compiled modules, signed, with what they need of the kernel, the firmware that they ask
// for and the libraries of the list; the bill is told what was compiled of what.
func TestCompiledExtension(t *testing.T) {
	_, c := compiled(t, "nvidia/1/gsp_x.bin")
	r := build(t, c)
	root := open(t, r.Rootfs)
	list, err := extension.Read(root)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	sealed, err := fs.ReadFile(root, list[0].File()[1:])
	if err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(bytes.NewReader(sealed[:list[0].Size]))
	if err != nil {
		t.Fatal(err)
	}
	const base = "usr/lib/modules/6.12-made/"
	for name, want := range map[string]string{
		base + "modules.dep":                                   "updates/nvidia-uvm.ko: updates/nvidia.ko kernel/drivers/net/mii.ko\n",
		base + "updates/nvidia.ko":                             "depends=mii",
		base + "kernel/drivers/net/mii.ko":                     "license=GPL",
		"usr/lib/firmware/nvidia/1/gsp_x.bin":                  "gsp",
		"usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.1": "a library",
		"usr/lib/extension-release.d/extension-release.nvidia": "KERNEL=6.12-made",
	} {
		if b, err := fs.ReadFile(img, name); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %.200q %v", name, b, err)
		}
	}
	for _, name := range []string{"usr/lib/firmware/nvidia/1/other.bin", "usr/share", "usr/src", "usr/bin/gcc"} {
		if _, err := fs.Stat(img, name); err == nil {
			t.Errorf("%s is there", name)
		}
		if _, err := fs.Stat(root, name); err == nil && name != "usr/share" {
			t.Errorf("%s is in the root", name)
		}
	}
	module, err := fs.ReadFile(img, base+"updates/nvidia.ko")
	if err != nil || !bytes.HasSuffix(module, []byte(" signed")) {
		t.Errorf("the module is not signed: %v", err)
	}
	if len(r.Drivers) != 2 || r.Drivers[0].Name != "nvidia" || r.Drivers[0].SHA256 != fmt.Sprintf("%x", sha256.Sum256(module)) || r.Drivers[0].Source.Name != nvidia.SourcePackage || len(r.Drivers[0].With) != 2 {
		t.Errorf("%+v", r.Drivers)
	}
	for _, p := range r.Packages {
		if p.Name == "gcc" || p.Name == "headers" {
			t.Errorf("the image is said to hold %s", p)
		}
	}
	first := sums(t, r)
	c.Out += "-again"
	if second := sums(t, build(t, c)); first["root.erofs"] != second["root.erofs"] {
		t.Error("not the same bits twice")
	}
	c.Profile.Extensions = nil
	c.Out += "-without"
	if r := build(t, c); len(r.Drivers) != 0 || len(r.Packages) >= len(first)+20 {
		t.Errorf("a profile that does not name the extension has %v", r.Drivers)
	} else if _, err := fs.Stat(open(t, r.Rootfs), list[0].File()[1:]); err == nil {
		t.Error("a profile that does not name the extension has it")
	}
}

// What would be of no use on a box makes no image.
func TestCompiledRefusals(t *testing.T) {
	for what, c := range map[string]struct {
		firmware string
		spoil    func(*checkout, *Config)
		want     string
	}{
		"firmware that is not there": {"nvidia/2/gsp_x.bin", nil, "asks for the firmware nvidia/2/gsp_x.bin"},
		"a library of another version": {"nvidia/1/gsp_x.bin", func(o *checkout, _ *Config) {
			o.lock.Sets[deb.Key{Arch: "amd64", Set: "extension-nvidia"}][1].Version = "2"
			o.write("rootfs/packages.lock", string(o.lock.Encode()))
		}, nvidia.ErrVersions.Error()},
		"a kernel without headers": {"nvidia/1/gsp_x.bin", func(o *checkout, _ *Config) {
			delete(o.lock.Sets, deb.Key{Arch: "amd64", Set: "compile-full"})
			o.write("rootfs/packages.lock", string(o.lock.Encode()))
		}, "cannot be compiled for this kernel"},
		"a program that nobody knows": {"nvidia/1/gsp_x.bin", func(o *checkout, _ *Config) { o.write("rootfs/extensions/nvidia/programs.list", "other\n") }, "nobody knows how the program"},
		"a program without a compiler": {"nvidia/1/gsp_x.bin", func(o *checkout, _ *Config) {
			o.write("rootfs/extensions/nvidia/programs.list", "# of ours\ngpud\n")
		}, "gpud cannot be compiled: the lock has no C compiler for it"},
		"a library that needs another": {"nvidia/1/gsp_x.bin", func(o *checkout, _ *Config) {
			o.pkg("extension-nvidia", "libnvidia-ml1", debtest.Member{Name: "./usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.2", Body: "\x7fELF and no more"})
		}, "libcuda.so.2"},
	} {
		o, config := compiled(t, c.firmware)
		if c.spoil != nil {
			c.spoil(o, &config)
		}
		if _, err := Build(t.Context(), config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		} else if what == "firmware that is not there" && !errors.Is(err, ErrTree) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// In a build without the check TestCompiledRefusals fails.
func TestCompiledRefusalsCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestCompiledRefusals$", "extension.go")...)
}
