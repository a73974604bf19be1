package tree

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/modules"
)

// cniPrefix marks plugins among the programs: they live in a folder of their own, where edged looks for them.
const cniPrefix = "cni/"

// programs puts our own programs and the runtime into the root. edged-boot is of the initramfs only.
func (b *builder) programs() error {
	for _, name := range slices.Sorted(maps.Keys(b.Programs)) {
		if name == "edged-boot" {
			continue
		}
		data, err := b.program(name)
		if err != nil {
			return err
		}
		at := "usr/bin/" + name
		if plugin, ok := strings.CutPrefix(name, cniPrefix); ok {
			at = "opt/cni/bin/" + plugin
		}
		if err := b.tree.Put(at, File{Mode: 0o755, Data: data, From: "program " + name}); err != nil {
			return err
		}
	}
	for _, name := range Names() {
		if _, ok := b.Programs[name]; !ok {
			return fmt.Errorf("program %s is not among those given", name)
		}
	}
	return b.tree.Link("usr/bin/runc", "../sbin/runc")
}

// osRelease is etc/os-release (os-release(5)).
func (b *builder) osRelease() string {
	return fmt.Sprintf("ID=tributary\nNAME=Tributary\nPRETTY_NAME=\"Tributary %[1]s\"\nVERSION=%[1]q\nVERSION_ID=%[1]q\nIMAGE_ID=%[2]s\nIMAGE_VERSION=%[1]s\nVARIANT_ID=%[2]s\nID_LIKE=debian\n",
		b.Version, b.Profile.Name)
}

// made writes the files that no package has. Nobody can log in: there is no password, no shell for any account, and
// nothing that asks for one.
func (b *builder) made() error {
	b.result.OSRelease = []byte(b.osRelease())
	var errs []error
	text := func(at, content string) { errs = append(errs, b.tree.Text(at, content, 0o644)) }
	text("usr/lib/os-release", string(b.result.OSRelease))
	text("etc/passwd", "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
	text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
	text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	text("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	text("etc/machine-id", "")
	text("usr/lib/tributary/build-time", unixText(b.Time))
	errs = append(errs,
		b.tree.Text("etc/shadow", "root:!*:1::::::\nnobody:!*:1::::::\n", 0o600),
		b.tree.Link("etc/os-release", "../usr/lib/os-release"),
		b.tree.Link("etc/resolv.conf", "/run/tributary/resolv.conf"),
		b.tree.Link("etc/mtab", "/proc/self/mounts"),
		b.tree.Dir("tmp", 0o755), b.tree.Dir("root", 0o700))
	for _, dir := range []string{"dev", "proc", "sys", "run", "var", "state", "data", "config"} {
		errs = append(errs, b.tree.Dir(dir, 0o755))
	}
	for _, at := range slices.Sorted(maps.Keys(b.Files)) {
		errs = append(errs, b.tree.Put(at, File{Mode: 0o644, Data: b.Files[at], From: "given"}))
	}
	return errors.Join(errs...)
}

// readInto fills in the files of a package that parts names.
func readInto(cache *deb.Cache, p deb.Package, parts map[string][]byte) error {
	return cache.Walk(p, func(e deb.Entry, body io.Reader) (err error) {
		if _, ok := parts[e.Path]; ok && body != nil {
			parts[e.Path], err = io.ReadAll(body)
		}
		return err
	})
}

func (k *kernel) named(names []string) []*modules.Module {
	var out []*modules.Module
	for _, n := range names {
		out = append(out, k.Modules[n])
	}
	return out
}
