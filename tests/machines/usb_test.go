package machines

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/vm"
)

// usbProfile is an image that drives USB; the profile vm's small kernel does not.
const usbProfile = "generic-amd64"

// TestUSB plugs a stick and a modem into a running box. The modem, as those that show
// themselves as a network card, is an uplink. The box writes a support bundle on it, in which
// there is no secret, and installs an update from it that the core never had; a file on it that
// nobody signed is refused.
func TestUSB(t *testing.T) {
	needImage(t, "amd64")
	from := filepath.Join(images(), usbProfile)
	if _, err := os.Stat(filepath.Join(from, ".programs")); err != nil {
		t.Skipf("needs %s with its programs beside it: run make image PROFILE=%s", from, usbProfile)
	}
	system, err := Open(from, "amd64", usbProfile, filepath.Join(root, ".cache", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	shown := filepath.Join(dir, "images") // as the tree looks for it
	if err := os.MkdirAll(filepath.Join(shown, Profiles["amd64"]), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := system.Flash(filepath.Join(from, "disk.raw"), filepath.Join(shown, Profiles["amd64"], "disk.raw"), trial, "tributary.debug"); err != nil {
		t.Fatal(err)
	}
	stick := filepath.Join(dir, "stick.img")
	fill(t, stick, system)
	tree, err := New(Spec{Bin: programs(t), Images: shown, Dir: filepath.Join(dir, "tree"), CoredArgs: story.CoredArgs, Say: t.Logf,
		Boxes: []BoxSpec{{Name: "box", Parent: "core", Role: "field", Arch: "amd64", MemoryMiB: 1024, Uplinks: []string{"{match: {driver: cdc_ether}, dhcp: true, cost: 10}", "{match: {driver: rndis_host}, dhcp: true, cost: 10}"}, Extra: []string{"-device", "qemu-xhci,id=usb"}}}})
	if err != nil {
		t.Fatal(err)
	}
	closing(t, tree, "usb.txt")
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	u := &updating{T: t, ctx: ctx, artifacts: map[string]string{}, tree: tree, system: system, story: &story.Story{Tree: tree, Root: root, Out: os.Stderr, Wait: patience, Bear: Bear}}
	if err := errors.Join(tree.StartCore(ctx), tree.Join(ctx), tree.StartBoxes(ctx)); err != nil {
		t.Fatal(err)
	}
	u.calm()

	m := tree.Machine("box")
	say := func(line, pattern string) {
		t.Helper()
		if err := m.Send(line); err != nil {
			t.Fatal(err)
		}
		expect(t, ctx, m, pattern)
	}
	say("\r", `drawn screen: `)
	plug(t, ctx, m, stick)
	modem(t, ctx, m)
	say("support\r", `go back: `)
	for deadline := time.Now().Add(patience); !strings.Contains(m.Console.Tail(12), "/dev/sda"); { // the kernel takes a moment to see it
		if time.Now().After(deadline) {
			t.Fatal("the stick is not seen")
		}
		say("r\r", `go back: `)
	}
	say("1\r", `USB partition[^\n]*\[/dev/sda\]: `)
	say("\r", `Written: tributary-support-[\s\S]*Done\.[\s\S]*go back: `)
	say("\r", `drawn screen: `)
	say("slots\r", `1  Install an update from USB[\s\S]*go back: `)
	say("1\r", `\[/dev/sda\]: `)
	say("\r", `only one: `)
	say("stranger.tbu\r", `Type "install" to go on: `)
	say("install\r", `The updater has it[\s\S]*go back: `)
	t.Log(u.warned("update-refused"))
	say("1\r", `\[/dev/sda\]: `)
	say("\r", `only one: `)
	say("v2.tbu\r", `Type "install" to go on: `)
	say("install\r", `The updater has it`)
	u.runs("v2")
	u.says(`confirmed: system, agent, parent and apps are well`)
	if err := tree.Box("box").PowerCut(); err != nil { // and with it the stick
		t.Fatal(err)
	}
	bundled(t, stick)
}

// fill makes a stick with two updates, one of which a stranger signed.
func fill(t *testing.T, stick string, system *System) {
	t.Helper()
	var files []fat.File
	for _, v := range []Variant{{Version: "v2", Counter: 1}, {Version: "stranger", Counter: 1, Stranger: true}} {
		path := filepath.Join(t.TempDir(), v.Version+".tbu")
		if err := system.Release(v, path); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, fat.File{Path: v.Version + ".tbu", Content: io.NewSectionReader(f, 0, info.Size())})
	}
	const size = 2 << 30
	f, err := os.Create(stick)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), fat.Write(f, size, fat.Options{Label: "STICK", Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}, files), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// plug puts a stick into a running machine.
func plug(t *testing.T, ctx context.Context, m *vm.Machine, path string) {
	t.Helper()
	err := errors.Join(m.Do(ctx, "blockdev-add", map[string]any{"driver": "raw", "node-name": "stick", "file": map[string]any{"driver": "file", "filename": path}}, nil),
		m.Do(ctx, "device_add", map[string]any{"driver": "usb-storage", "id": "stick", "bus": "usb.0", "drive": "stick", "removable": true}, nil))
	if err != nil {
		t.Fatal(err)
	}
}

// modem plugs in what routers on a stick show themselves as: a network card on USB, with a
// network of its own.
func modem(t *testing.T, ctx context.Context, m *vm.Machine) {
	t.Helper()
	err := errors.Join(m.Do(ctx, "netdev_add", map[string]any{"type": "user", "id": "modem", "net": "10.0.9.0/24", "ipv6": false}, nil),
		m.Do(ctx, "device_add", map[string]any{"driver": "usb-net", "id": "modem", "bus": "usb.0", "netdev": "modem"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, ctx, m, `10\.0\.9\.15/24 by DHCP`)
}

// bundled looks for the support bundle on the stick, and for what may not be in it.
func bundled(t *testing.T, stick string) {
	t.Helper()
	f, err := os.Open(stick)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	v, err := fat.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range v.Entries() {
		if !strings.HasPrefix(strings.ToLower(e.Path), "tributary-support-") {
			continue
		}
		b, err := v.ReadFile(e.Path, 16<<20)
		if err != nil {
			t.Fatal(err)
		}
		names, secret := unpack(t, b)
		t.Logf("the bundle of %d bytes holds %s", len(b), names)
		for _, want := range []string{"facts.json", "log/agent.log", "run/boot.json", "log/kernel.txt"} {
			if !strings.Contains(names, "tributary-support/"+want+" ") {
				t.Errorf("the bundle has no %s", want)
			}
		}
		if secret != "" {
			t.Errorf("in the bundle: %s", secret)
		}
		return
	}
	t.Error("no support bundle is on the stick")
}

// unpack lists a bundle, and what in it is secret.
func unpack(t *testing.T, b []byte) (names, secret string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, secret
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names += h.Name + " "
		for _, bad := range []string{"PRIVATE KEY", "tj1."} {
			if bytes.Contains(text, []byte(bad)) {
				secret += fmt.Sprintf("%s holds %q ", h.Name, bad)
			}
		}
	}
}
