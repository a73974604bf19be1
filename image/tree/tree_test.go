package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/deb/debtest"
)

// standIn builds one small static program of ours for an architecture, once: it stands in for all.
var standIn = map[string]func() (string, error){"amd64": sync.OnceValues(func() (string, error) { return buildSmall("amd64") }), "arm64": sync.OnceValues(func() (string, error) { return buildSmall("arm64") })}

var small string // folder of the stand-ins

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tree-test-")
	if err != nil {
		panic(err)
	}
	small = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func buildSmall(arch string) (string, error) {
	file := filepath.Join(small, arch)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", file, "tributary.dev/tributary/cmd/edged-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, text)
	}
	return file, nil
}

func standIns(t *testing.T, arch string) map[string]string {
	t.Helper()
	file, err := standIn[arch]()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range Names() {
		out[name] = file
	}
	return out
}

// checkout is a made-up one: rootfs/ with lists and a lock, and a cache filled with made-up packages.
type checkout struct {
	t    *testing.T
	dir  string
	arch string
	lock *deb.Lock
}

func newCheckout(t *testing.T, arch string) *checkout {
	return &checkout{t, t.TempDir(), arch, &deb.Lock{Suite: "made", Sets: map[deb.Key][]deb.Package{}}}
}

func (c *checkout) write(name, text string) {
	c.t.Helper()
	file := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *checkout) pkg(set, name string, members ...debtest.Member) {
	b := debtest.Make(".zst", members...)
	sum := fmt.Sprintf("%x", sha256.Sum256(b))
	c.write(".cache/debs/"+sum+".deb", string(b))
	k := deb.Key{Arch: c.arch, Set: set}
	c.lock.Sets[k] = append(c.lock.Sets[k], deb.Package{Name: name, Version: "1", Arch: c.arch, SHA256: sum, Size: int64(len(b)), Archive: deb.Main, Path: "pool/" + name + ".deb", Source: name})
	c.write("rootfs/packages.lock", string(c.lock.Encode()))
}

func certificate(t *testing.T) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func module(info ...string) string { return string(debtest.XZ(debtest.Module(info...))) }

// fill makes a checkout whose image has one of everything.
func fill(t *testing.T, arch string) (*checkout, Config) {
	c := newCheckout(t, arch)
	file, err := standIn[arch]()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	efi := map[string]string{"amd64": "x64", "arm64": "aa64"}[arch]
	link := func(name, to string) debtest.Member {
		return debtest.Member{Name: name, Kind: tar.TypeSymlink, Link: to}
	}
	c.pkg("base", "tools", debtest.Member{Name: "./sbin/runc", Body: string(program), Mode: 0o755}, link("./sbin/tool", "runc"),
		debtest.Member{Name: "./sbin/again", Kind: tar.TypeLink, Link: "./sbin/runc"}, debtest.Member{Name: "./usr/share/doc/tools/README", Body: "text"})
	c.pkg("base", "certs", debtest.Member{Name: "./usr/share/ca-certificates/a/b.crt", Body: certificate(t)})
	c.pkg("kernel-full", "meta", debtest.Member{Name: "./usr/share/doc/meta/README", Body: "text"})
	const at = "./lib/modules/6.12-made/"
	c.pkg("kernel-full", "kernel", debtest.Member{Name: "./boot/vmlinuz-6.12-made", Body: "the kernel"},
		debtest.Member{Name: at + "kernel/drivers/net/net.ko.xz", Body: module("depends=mii", "firmware=net/a.bin", "firmware=net/b.bin", "firmware=rules.db", "alias=pci:v1d2*")},
		debtest.Member{Name: at + "kernel/drivers/net/mii.ko.xz", Body: module("license=GPL")},
		debtest.Member{Name: at + "kernel/drivers/net/unwanted.ko.xz", Body: module("firmware=net/c.bin")},
		debtest.Member{Name: at + "kernel/drivers/watchdog/dog_wdt.ko.xz", Body: module("license=GPL")},
		debtest.Member{Name: at + "kernel/drivers/mfd/bus.ko.xz", Body: module("license=GPL")},
		debtest.Member{Name: at + "kernel/fs/erofs.ko.xz", Body: module("license=GPL")},
		debtest.Member{Name: at + "modules.order", Body: "kernel/fs/erofs.ko\nkernel/drivers/net/mii.ko\n"},
		debtest.Member{Name: at + "modules.builtin", Body: "kernel/fs/ext4.ko\n"})
	c.pkg("firmware-net", "blobs", debtest.Member{Name: "./usr/lib/firmware/net/a-1.bin", Body: "a"}, link("./usr/lib/firmware/net/a.bin", "a-1.bin"),
		debtest.Member{Name: "./lib/firmware/net/b.bin", Body: "left out by the list"}, debtest.Member{Name: "./lib/firmware/net/c.bin", Body: "asked for by nobody"})
	c.pkg("firmware-net+rules", "rules", debtest.Member{Name: "./lib/firmware/rules.db-debian", Body: "rules"}, debtest.Member{Name: "./lib/firmware/rules.db-upstream", Body: "others"})
	c.pkg("microcode", "ucode", debtest.Member{Name: "./lib/firmware/intel-ucode/06-02", Body: "second"}, debtest.Member{Name: "./lib/firmware/intel-ucode/06-01", Body: "first"})
	c.pkg("boot", "boot", debtest.Member{Name: "./usr/lib/systemd/boot/efi/linux" + efi + ".efi.stub", Body: "stub"}, debtest.Member{Name: "./usr/lib/systemd/boot/efi/systemd-boot" + efi + ".efi", Body: "manager"})
	c.write("rootfs/keep.list", "usr/sbin/runc\nusr/sbin/tool\nusr/sbin/again\n")
	c.write("rootfs/modules/net.list", "net\next4\n")
	c.write("rootfs/modules/boot.list", "erofs\n")
	c.write("rootfs/modules/initramfs/watchdog.list", "dog_wdt after bus\n")
	c.write("rootfs/firmware/net.list", "net/*\nrules.db\n!net/b.bin\n")
	p := hwprofiles.Profile{Name: "made", Arch: arch, Kernel: hwprofiles.Kernel{Flavour: "full"}, Modules: []string{"net", "boot"}, Initramfs: []string{"boot", "watchdog"},
		Firmware: []string{"net"}, Microcode: []string{"intel", "amd"}, Watchdog: hwprofiles.Watchdog{Drivers: []string{"dog_wdt"}}, Partitions: hwprofiles.Partitions{Root: 512}}
	return c, Config{Root: c.dir, Profile: p, Version: "1.2", Time: time.Unix(1700000000, 0), Programs: standIns(t, arch), Out: filepath.Join(c.dir, "out"),
		Mirror: func() (deb.Mirror, error) { return deb.Mirror{}, errors.New("a filled cache asked for the mirror") }}
}

func build(t *testing.T, c Config) *Result {
	t.Helper()
	r, err := Build(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sums(t *testing.T, r *Result) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, file := range []string{r.Rootfs, r.Kernel, r.Initrd, r.Stub, r.BootManager, r.Microcode} {
		if file == "" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(file)] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return out
}

func TestBuild(t *testing.T) {
	for _, arch := range deb.Arches {
		t.Run(arch, func(t *testing.T) {
			_, c := fill(t, arch)
			r := build(t, c)
			first := sums(t, r)
			c.Out += "-again"
			if second := sums(t, build(t, c)); !maps.Equal(first, second) {
				t.Errorf("not the same bits twice:\n%v\n%v", first, second)
			}
			if r.RootSize%4096 != 0 {
				t.Errorf("%d bytes are no multiple of a block", r.RootSize)
			}
			if got := strings.Join(r.Modules, " "); got != "dog_wdt erofs mii net" {
				t.Errorf("modules: %s", got)
			}
			if got := strings.Join(r.Firmware, " "); got != "net/a-1.bin net/a.bin rules.db rules.db-debian" {
				t.Errorf("firmware: %s", got)
			}
			checkRoot(t, r)
			checkInitrd(t, r)
			micro, err := os.ReadFile(r.Microcode)
			if err != nil || !bytes.Contains(micro, []byte("firstsecond")) {
				t.Errorf("microcode %q, %v", micro, err)
			}
		})
	}
}

// checkRoot reads the image with a reader of its own, and mounts it where that is allowed.
func checkRoot(t *testing.T, r *Result) {
	t.Helper()
	img := open(t, r.Rootfs)
	look := func(img fs.FS, how string) {
		for _, p := range []string{"usr/bin/edged", "opt/cni/bin/bridge", "usr/lib/modules/6.12-made/modules.dep.bin", "etc/ssl/certs/ca-certificates.crt", "etc/machine-id"} {
			if st, err := fs.Stat(img, p); err != nil || !st.Mode().IsRegular() {
				t.Errorf("%s: %s: %v, %v", how, p, st, err)
			}
		}
		for _, p := range []string{"state", "data", "config", "run", "tmp", "proc", "sys", "dev", "var", "root"} {
			if st, err := fs.Stat(img, p); err != nil || !st.IsDir() {
				t.Errorf("%s: no mount point /%s: %v", how, p, err)
			}
		}
		for _, p := range []string{"usr/share", "usr/bin/edged-boot", "bin/sh", "usr/bin/sh"} {
			if _, err := fs.Stat(img, p); err == nil {
				t.Errorf("%s: /%s is there", how, p)
			}
		}
		for p, want := range map[string]string{"usr/lib/tributary/build-time": "1700000000\n", "usr/lib/firmware/net/a-1.bin": "a"} {
			if b, err := fs.ReadFile(img, p); err != nil || string(b) != want {
				t.Errorf("%s: %s: %q, %v", how, p, b, err)
			}
		}
		b, err := fs.ReadFile(img, "usr/lib/os-release")
		if err != nil || !bytes.Equal(b, r.OSRelease) || !strings.Contains(string(b), "VARIANT_ID=made\n") {
			t.Errorf("%s: os-release %q, %v", how, b, err)
		}
	}
	look(img, "as read")
	dir := t.TempDir()
	if err := mountLoop(r.Rootfs, dir); err != nil {
		t.Logf("the kernel's own reading is left out: %v", err)
		return
	}
	defer unix.Unmount(dir, 0)
	look(os.DirFS(dir), "as mounted")
	if st, err := os.Stat(filepath.Join(dir, "etc/shadow")); err != nil || st.Mode().Perm() != 0o600 || !st.ModTime().Equal(Epoch) {
		t.Errorf("etc/shadow: %v, %v", st, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "bin")); err != nil || to != "usr/bin" {
		t.Errorf("/bin leads to %q, %v", to, err)
	}
}

func mountLoop(file, dir string) error {
	text, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", file, dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// checkInitrd unpacks it and looks at the order of modules.
func checkInitrd(t *testing.T, r *Result) {
	t.Helper()
	b, err := os.ReadFile(r.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := z.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	const base = "/lib/modules/6.12-made/"
	want := base + "watchdog/bus.ko\n" + base + "watchdog/dog_wdt.ko\n" + base + "kernel/fs/erofs.ko\n"
	if !bytes.Contains(plain, []byte(want)) {
		_, rest, _ := bytes.Cut(plain, []byte("watchdogs first"))
		t.Errorf("modules.list is %.300q", rest)
	}
	// The tables by which /init finds a device's driver name those that are no watchdogs.
	for _, table := range []string{"kernel/fs/erofs.ko:\n", "modules.alias\x00"} {
		if !bytes.Contains(plain, []byte(table)) {
			t.Errorf("the initramfs' tables lack %q", table)
		}
	}
	for _, name := range []string{"init", "modules.list", "lib/modules/6.12-made/watchdog/dog_wdt.ko"} {
		if !bytes.Contains(plain, []byte(name+"\x00")) {
			t.Errorf("the initramfs has no %s", name)
		}
	}
}

// TestRefusals: what does not fit together makes no image.
func TestRefusals(t *testing.T) {
	for _, bad := range []struct {
		name, says string
		spoil      func(*checkout, *Config)
	}{
		{"pattern without a file", "meets no file", func(c *checkout, _ *Config) { c.write("rootfs/keep.list", "usr/sbin/*\nusr/bin/gone\n") }},
		{"class without a list", "class nowhere of modules", func(_ *checkout, c *Config) { c.Profile.Modules = append(c.Profile.Modules, "nowhere") }},
		{"program of the other architecture", "is for EM_AARCH64", func(c *checkout, cfg *Config) { cfg.Programs["edged"] = standIns(c.t, "arm64")["edged"] }},
		{"program left out", "program containerd is not among those given", func(_ *checkout, c *Config) { delete(c.Programs, "containerd") }},
		{"given file in another's place", "both", func(_ *checkout, c *Config) { c.Files = map[string][]byte{"etc/hosts": []byte("x")} }},
		{"slot too small", "the slot of profile made", func(_ *checkout, c *Config) { c.Profile.Partitions.Root = 1 }},
		{"cache damaged", "the cache is damaged", func(c *checkout, _ *Config) {
			p := c.lock.Sets[deb.Key{Arch: "amd64", Set: "boot"}][0]
			c.write(".cache/debs/"+p.SHA256+".deb", strings.Repeat("x", int(p.Size)))
		}},
		{"package missing", "a filled cache asked", func(c *checkout, _ *Config) {
			os.Remove(filepath.Join(c.dir, ".cache/debs", c.lock.Sets[deb.Key{Arch: "amd64", Set: "boot"}][0].SHA256+".deb"))
		}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			c, cfg := fill(t, "amd64")
			bad.spoil(c, &cfg)
			if _, err := Build(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), bad.says) {
				t.Errorf("got %v, want an error that says %q", err, bad.says)
			}
		})
	}
}

func TestCheckClosed(t *testing.T) {
	dynamic := "/bin/ls" // any program of this machine that needs a loader
	b, err := os.ReadFile(dynamic)
	if err != nil {
		t.Skipf("needs %s: %v", dynamic, err)
	}
	for name, put := range map[string]func(*Tree) error{
		"is started by": func(tr *Tree) error { return tr.Put("usr/bin/ls", File{Mode: 0o755, Data: b}) },
		"leads to":      func(tr *Tree) error { return tr.Link("etc/x", "../nowhere") },
		"set-id":        func(tr *Tree) error { return tr.Put("usr/bin/x", File{Mode: fs.ModeSetuid | 0o755}) },
		"anybody may":   func(tr *Tree) error { return tr.Put("etc/x", File{Mode: 0o666}) },
	} {
		tr := New()
		if err := put(tr); err != nil {
			t.Fatal(err)
		}
		arch := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[machine()]
		if err := tr.CheckClosed(arch, libraries(arch)); !errors.Is(err, ErrTree) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return unix.ByteSliceToString(u.Machine[:])
}

// TestResolveEnds: whatever links there are, following them ends, and inside the root.
func TestResolveEnds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tr := New()
		name := rapid.SampledFrom([]string{"a", "b", "c", "usr/d", "usr/bin/e", "etc/f"})
		for range rapid.IntRange(0, 8).Draw(rt, "n") {
			p := name.Draw(rt, "path")
			if rapid.Bool().Draw(rt, "link") {
				_ = tr.Link(p, rapid.SampledFrom([]string{"a", "../b", "/c", "../../../usr/d", "/etc", ".", "/usr/bin/e/f", "/"}).Draw(rt, "to"))
			} else {
				_ = tr.Text(p, "x", 0o644)
			}
		}
		for _, p := range tr.Paths() {
			if at, _, ok := tr.Resolve(p); ok && !slices.Contains(tr.Paths(), at) {
				rt.Fatalf("%s leads to %s, which is not in the root", p, at)
			}
		}
	})
}
