package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/image/nvidia"
)

const top = "../.."

// locked gives a lock whose packages for the profile are in the checkout's cache: the committed one or, when the mirror
// has dropped one of its versions, one resolved afresh. It skips where packages can't be had.
func locked(t *testing.T, p hwprofiles.Profile) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs Debian's packages: not in short mode")
	}
	ctx := context.Background()
	file := filepath.Join(top, "rootfs/packages.lock")
	cache := &deb.Cache{Dir: filepath.Join(top, ".cache/debs"), Log: slog.New(slog.DiscardHandler)}
	fetch := func() error {
		lock, err := deb.ReadLock(file)
		if err != nil {
			t.Fatal(err)
		}
		list, err := lock.Packages(p.Arch, Sets(p, lock)...)
		if err != nil {
			t.Fatal(err)
		}
		if len(cache.Missing(list)) > 0 {
			reach(t)
		}
		return cache.Fetch(ctx, list, func() (deb.Mirror, error) { return deb.MachineMirror(os.DirFS("/")) })
	}
	err := fetch()
	if errors.Is(err, deb.ErrDropped) {
		t.Logf("the committed lock is of no use any more, resolving afresh: %v", err)
		file = filepath.Join(t.TempDir(), "packages.lock")
		if _, err = deb.Relock(ctx, top, file, cache.Log); err == nil {
			err = fetch()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// reach skips when the mirror can't be reached at all: that is the machine's matter. All else is ours.
func reach(t *testing.T) {
	t.Helper()
	m, err := deb.MachineMirror(os.DirFS("/"))
	if err != nil {
		t.Skipf("needs a mirror: %v", err)
	}
	u, err := url.Parse(m.Main)
	if err != nil {
		t.Fatal(err)
	}
	if u.Host == "" || os.Getenv("http_proxy")+os.Getenv("https_proxy") != "" {
		return
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "ftp": "21"}[u.Scheme]
	}
	if port == "" {
		port = "80"
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(u.Hostname(), port), 20*time.Second)
	if err != nil {
		t.Skipf("needs the mirror of this machine's apt sources, which can't be reached: %v", err)
	}
	conn.Close()
}

// TestReal builds the images of virtual machines from Debian's packages, both architectures, twice each.
func TestReal(t *testing.T) {
	for _, name := range []string{"vm", "vm-arm64"} {
		t.Run(name, func(t *testing.T) {
			p, err := hwprofiles.Load(name)
			if err != nil {
				t.Fatal(err)
			}
			c := Config{Root: top, Lock: locked(t, p), Profile: p, Version: "0.0-test", Time: time.Unix(1700000000, 0), Programs: standIns(t, p.Arch), Out: t.TempDir()}
			at := time.Now()
			r := build(t, c)
			t.Logf("%s: root %d MB, initrd %.1f MB, %d modules, %d early: %v", name, r.RootSize/1e6, float64(size(t, r.Initrd))/1e6, len(r.Modules), len(r.EarlyModules), time.Since(at))
			first := sums(t, r)
			c.Out = t.TempDir()
			if second := sums(t, build(t, c)); !maps.Equal(first, second) {
				t.Errorf("not the same bits twice:\n%v\n%v", first, second)
			}
			for _, m := range []string{"dm_verity", "dm_mod", "erofs", "efivarfs", "virtio_blk"} {
				if !slices.Contains(r.EarlyModules, m) {
					t.Errorf("the initramfs lacks %s", m)
				}
			}
			for _, m := range []string{"overlay", "dm_crypt", "veth", "nf_tables", "bridge", "virtio_net"} {
				if !slices.Contains(r.Modules, m) {
					t.Errorf("the root lacks %s", m)
				}
			}
			asDepmod(t, r)
			noLeftovers(t, r)
		})
	}
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// asDepmod takes the modules out of the root and has kmod make its tables of them, and modprobe read ours.
func asDepmod(t *testing.T, r *Result) {
	t.Helper()
	depmod, err := exec.LookPath("depmod")
	if err != nil {
		t.Log("depmod of the package kmod is not installed: the tables are not compared")
		return
	}
	img := open(t, r.Rootfs)
	base := "usr/lib/modules/" + r.KernelVersion
	dir := t.TempDir()
	into := filepath.Join(dir, "lib/modules", r.KernelVersion)
	sub, err := fs.Sub(img, base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(into, sub); err != nil {
		t.Fatal(err)
	}
	ours := map[string][]byte{}
	for _, name := range []string{"modules.dep", "modules.alias", "modules.alias.bin", "modules.softdep", "modules.builtin.alias.bin"} {
		if ours[name], err = os.ReadFile(filepath.Join(into, name)); err != nil {
			t.Fatal(err)
		}
	}
	if modprobe, err := exec.LookPath("modprobe"); err == nil {
		text, err := exec.Command(modprobe, "-d", dir, "-S", r.KernelVersion, "--show-depends", "virtio:d00000001v00001AF4").CombinedOutput()
		if err != nil || !bytes.Contains(text, []byte("/net_failover.ko")) || !bytes.Contains(text, []byte("/virtio_net.ko")) {
			t.Errorf("modprobe reads of our tables: %v: %s", err, text)
		}
	}
	order := ""
	for _, m := range fullOrder(t, r) { // depmod reads modules.order, the root has no use for it
		order += m + "\n"
	}
	if err := os.WriteFile(filepath.Join(into, "modules.order"), []byte(order), 0o644); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command(depmod, "-b", dir, r.KernelVersion).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for name, got := range ours {
		want, err := os.ReadFile(filepath.Join(into, name))
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case "modules.softdep", "modules.alias":
			got, want = lines(got), lines(want)
		case "modules.dep": // any order that loads is right, ours is checked in package modules
			got, want = sortedWords(got), sortedWords(want)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what depmod writes (%d bytes, %d)%s", name, len(got), len(want), firstDifference(got, want))
		}
	}
}

// fullOrder is the kernel's own modules.order, which decides ranks.
func fullOrder(t *testing.T, r *Result) []string {
	t.Helper()
	cache := &deb.Cache{Dir: filepath.Join(top, ".cache/debs")}
	var kernels []deb.Package
	for _, p := range r.Packages {
		if strings.HasPrefix(p.Name, "linux-image-") {
			kernels = append(kernels, p)
		}
	}
	k, err := readKernel(cache, kernels)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(k.Files["modules.order"]))
}

// lines drops comments and writes names as the kernel does.
func lines(b []byte) []byte {
	var out []string
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			out = append(out, strings.ReplaceAll(line, "-", "_"))
		}
	}
	return []byte(strings.Join(out, ""))
}

// sortedWords sorts what follows the first word of each line.
func sortedWords(b []byte) []byte {
	var out []string
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		slices.Sort(words[1:])
		out = append(out, strings.Join(words, " ")+"\n")
	}
	return []byte(strings.Join(out, ""))
}

func firstDifference(a, b []byte) string {
	la, lb := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range min(len(la), len(lb)) {
		if la[i] != lb[i] {
			return fmt.Sprintf("\n got %.200q\nwant %.200q", la[i], lb[i])
		}
	}
	return ""
}

// noLeftovers: no shell, no package manager, no documentation, no set-id bits, no passwords.
func noLeftovers(t *testing.T, r *Result) {
	t.Helper()
	img := open(t, r.Rootfs)
	err := fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := filepath.Base(p)
		switch {
		case slices.Contains([]string{"sh", "bash", "dash", "dpkg", "apt", "sshd", "login", "su", "agetty", "perl", "python3"}, base) && !strings.Contains(p, "modules"):
			t.Errorf("/%s is in the root", p)
		case strings.HasPrefix(p, "usr/share/"):
			t.Errorf("/%s: nothing of usr/share is wanted", p)
		}
		info, err := d.Info()
		if err == nil && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("/%s has a set-id bit", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	shadow, err := fs.ReadFile(img, "etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(shadow)) {
		if f := strings.Split(line, ":"); !strings.HasPrefix(f[1], "!") {
			t.Errorf("account %s is not locked", f[0])
		}
	}
}

// TestListsAreKnown: every name in every list is a module, or built in, of at least one kernel that profiles use. It
// takes the kernels that are in the cache already; a lock that was just changed has none yet.
func TestListsAreKnown(t *testing.T) {
	if testing.Short() {
		t.Skip("reads whole kernels: not in short mode")
	}
	lock, err := deb.ReadLock(filepath.Join(top, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	cache := &deb.Cache{Dir: filepath.Join(top, ".cache/debs")}
	var kernels []*kernel
	for _, key := range []deb.Key{{Arch: "amd64", Set: "kernel-full"}, {Arch: "arm64", Set: "kernel-full"}} {
		list := lock.Sets[key]
		if missing := cache.Missing(list); len(missing) > 0 {
			t.Skipf("needs %v in .cache/debs: building generic-%s fetches it", missing, key.Arch)
		}
		k, err := readKernel(cache, list)
		if err != nil {
			t.Fatal(err)
		}
		kernels = append(kernels, k)
	}
	rootfs := os.DirFS(filepath.Join(top, "rootfs"))
	for _, pattern := range []string{"modules/*.list", "modules/initramfs/*.list", "extensions/*/modules.list"} {
		names, err := fs.Glob(rootfs, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := fs.ReadFile(rootfs, name)
			if err != nil {
				t.Fatal(err)
			}
			l, err := modules.ParseList(name, b)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range l.Lines {
				if strings.HasPrefix(name, "extensions/"+nvidia.Extension+"/") && slices.ContainsFunc(nvidia.Files, func(f string) bool { return modules.NameOf(f) == line.Name }) {
					continue // compiled for the kernel
				}
				if !slices.ContainsFunc(kernels, func(k *kernel) bool { return knows(k, line) }) {
					t.Errorf("%s, line %d: no kernel has %s%s", name, line.Number, line.Folder, line.Name)
				}
			}
		}
	}
}

func knows(k *kernel, line modules.Line) bool {
	if line.Folder == "" {
		return k.Modules[line.Name] != nil || k.Builtin[line.Name]
	}
	c := k.Choose([]modules.List{{Lines: []modules.Line{{Folder: line.Folder}}}})
	return len(c.Names) > 0
}

// TestEveryProfile: the classes that profiles name have lists.
func TestEveryProfile(t *testing.T) {
	lock, err := deb.ReadLock(filepath.Join(top, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := hwprofiles.All()
	if err != nil {
		t.Fatal(err)
	}
	rootfs := os.DirFS(filepath.Join(top, "rootfs"))
	for _, p := range all {
		_, err1 := lists(rootfs, p.Modules, false)
		_, err2 := lists(rootfs, p.Initramfs, true)
		_, err3 := firmwareLists(rootfs, p.Firmware)
		_, err4 := lock.Packages(p.Arch, Sets(p, lock)...)
		for _, name := range p.Extensions {
			if _, err := fs.Stat(rootfs, "extensions/"+name+"/modules.list"); err != nil {
				err4 = errors.Join(err4, err)
			}
		}
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Errorf("profile %s: %v", p.Name, err)
		}
	}
}
