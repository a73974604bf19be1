package machines

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/tests/vm"
)

// TestInside runs tests that want more of a kernel than this machine may have (radios,
// VLANs) in a guest that runs the kernel and the programs of an image: wpa_supplicant of the
// profiles that have wifi, and hostapd for the other end.
func TestInside(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots a machine: run make vmtest")
	}
	t.Parallel()
	const arch = "amd64"
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	files := []initramfs.File{
		{Path: "init", Mode: 0o755, Data: compiled(t, "build", "./inside")},
		{Path: "uplink.test", Mode: 0o755, Data: compiled(t, "test", "-c", "../../pkg/edge/uplink")},
		{Path: "run.txt", Mode: 0o644, Data: []byte("/uplink.test\n-test.v\n-test.timeout=15m\n-test.run=^(TestVLAN|TestWayOut|TestBond|TestWiFi)$\n")},
	}
	kernel, more := debian(t, ctx, arch, []string{"8021q", "veth", "bridge", "bonding", "mac80211_hwsim", "ccm", "gcm", "cmac"})
	image, initrd := onDisk(t, kernel, append(files, more...))
	m := power(t, ctx, vm.Spec{Name: "inside", Arch: arch, MemoryMiB: 1024, Kernel: image, Initrd: initrd, Cmdline: vm.SerialCmdline(arch) + " quiet", NoReboot: true, Life: 4 * patience})
	found, err := m.Expect(ctx, `inside: ended (\d+)`)
	if err != nil {
		t.Fatal(err)
	}
	said := m.Console.String()
	keepCapture(t, "inside.txt", said)
	if found[1] != "0" || strings.Contains(said, "--- SKIP") || strings.Count(said, "--- PASS: Test") < 4 {
		t.Errorf("the guest's tests:\n%s", said)
	}
}

// onDisk writes what a guest starts from.
func onDisk(t *testing.T, kernel []byte, files []initramfs.File) (image, initrd string) {
	t.Helper()
	dir := t.TempDir()
	image, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	f, err := os.Create(initrd)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(image, kernel, 0o644), initramfs.Write(f, files), f.Close()); err != nil {
		t.Fatal(err)
	}
	return image, initrd
}

// compiled is a static program for the guest.
func compiled(t *testing.T, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", append([]string{args[0], "-trimpath", "-o", out}, args[1:]...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// debian takes the full kernel with some modules, and what the images and tests take for
// wireless networks, out of the locked packages.
func debian(t *testing.T, ctx context.Context, arch string, names []string) (image []byte, files []initramfs.File) {
	t.Helper()
	return debianOf(t, ctx, arch, names, "kernel-full", "modules-wifi", "test-wifi")
}

// debianOf takes a kernel with some modules, and programs, out of sets of the locked packages.
func debianOf(t *testing.T, ctx context.Context, arch string, names []string, sets ...string) (image []byte, files []initramfs.File) {
	t.Helper()
	lock, err := deb.ReadLock(filepath.Join(root, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := lock.Packages(arch, sets...)
	if err != nil {
		t.Fatal(err)
	}
	cache := &deb.Cache{Dir: filepath.Join(root, ".cache/debs"), Log: slog.New(slog.DiscardHandler)}
	if err := cache.Fetch(ctx, list, func() (deb.Mirror, error) { return deb.MachineMirror(os.DirFS("/")) }); err != nil {
		t.Fatal(err)
	}
	k := &modules.Kernel{Modules: map[string]*modules.Module{}, Builtin: map[string]bool{}}
	objects := map[string][]byte{}
	for _, p := range list {
		err := cache.Walk(p, func(e deb.Entry, body io.Reader) error {
			at := strings.TrimPrefix(path.Clean(e.Path), "/")
			switch {
			case strings.HasPrefix(at, "usr/sbin/"), at == "usr/bin/cyclictest", strings.HasPrefix(at, "sbin/"), strings.Contains(at, "/x86_64-linux-gnu/"), strings.HasPrefix(at, "lib64/"):
				if !strings.HasPrefix(at, "usr/") {
					at = "usr/" + at
				}
				f := initramfs.File{Path: at, Mode: e.Mode}
				if e.Mode&fs.ModeSymlink != 0 {
					f.Data = []byte(e.Link)
				} else if body == nil {
					return nil
				}
				if body != nil {
					var err error
					if f.Data, err = io.ReadAll(body); err != nil {
						return err
					}
				}
				files = append(files, f)
			case strings.HasPrefix(at, "boot/vmlinuz-"):
				var err error
				image, err = io.ReadAll(body)
				return err
			case strings.HasSuffix(at, ".ko"):
				object, err := io.ReadAll(body)
				if err != nil {
					return err
				}
				_, inside, _ := strings.Cut(at, "lib/modules/")
				m, err := modules.Parse(inside, object)
				if err != nil {
					return err
				}
				k.Modules[m.Name], objects[m.Name] = m, object
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	order := ""
	for _, m := range k.LoadOrder(modules.Choice{Names: names}) {
		order += m.Name + "\n"
		files = append(files, initramfs.File{Path: "modules/" + m.Name, Mode: 0o644, Data: objects[m.Name]})
	}
	if len(image) == 0 || order == "" {
		t.Fatal("the packages hold no kernel or none of its modules")
	}
	files = append(files, initramfs.File{Path: "modules/order", Mode: 0o644, Data: []byte(order)})
	for _, dir := range []string{"lib", "lib64", "sbin"} {
		files = append(files, initramfs.File{Path: dir, Mode: fs.ModeSymlink | 0o777, Data: []byte("usr/" + dir)})
	}
	t.Logf("modules: %s", strings.Join(strings.Fields(order), " "))
	return image, files
}
