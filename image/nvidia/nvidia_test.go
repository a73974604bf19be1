package nvidia

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/deb/debtest"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/tests/mutation"
)

const (
	checkout = "../.."
	nobody   = 65534
	into     = "TRIBUTARY_COMPILE_INTO" // names the folder for TestStranger
)

func one(version string, names ...string) (list []deb.Package) {
	for _, n := range names {
		list = append(list, deb.Package{Name: n, Version: version, Arch: "amd64"})
	}
	return list
}

// Modules, libraries and firmware of different versions do not talk to each other.
func TestSource(t *testing.T) {
	list := one("535.261.03-1", SourcePackage, "libcuda1")
	if p, err := Source(list); err != nil || p.Name != SourcePackage {
		t.Errorf("%v %v", p, err)
	}
	if _, err := Source(append(list, one("535.261.03-2+b1", "nvidia-smi")...)); err != nil {
		t.Errorf("another revision of the same version: %v", err)
	}
	if _, err := Source(append(list, one("535.309.01-0+deb12u1", "libnvidia-ml1")...)); !errors.Is(err, ErrVersions) {
		t.Errorf("a library of another version: %v", err)
	}
	if _, err := Source(list[1:]); err == nil {
		t.Error("no source")
	}
}

// All that goes in names the result: what is kept is of these inputs, whole, or made anew.
func TestKept(t *testing.T) {
	c := Config{Release: "6.12", Arch: "amd64", Keep: t.TempDir(), Source: deb.Package{SHA256: "a"}, With: []deb.Package{{SHA256: "b"}, {SHA256: "c"}}}
	files := map[string][]byte{}
	for _, name := range Files {
		files[name] = []byte("bits of " + name)
	}
	if _, ok := c.Kept(); ok {
		t.Error("kept before anything was")
	}
	for range 2 { // a second build of the same beside it
		if err := c.Put(files); err != nil {
			t.Fatal(err)
		}
	}
	got, ok := c.Kept()
	if !ok || !bytes.Equal(got[Files[0]], files[Files[0]]) {
		t.Errorf("%q %v", got, ok)
	}
	swapped := c
	swapped.With = []deb.Package{c.With[1], c.With[0], c.With[0]} // two sets of the lock may both have one
	if _, ok := swapped.Kept(); !ok {
		t.Error("the order of the packages counts")
	}
	for what, change := range map[string]func(*Config){
		"kernel":   func(c *Config) { c.Release = "6.13" },
		"source":   func(c *Config) { c.Source.SHA256 = "x" },
		"compiler": func(c *Config) { c.With = c.With[:1] },
	} {
		other := c
		change(&other)
		if _, ok := other.Kept(); ok {
			t.Errorf("another %s gives the same", what)
		}
	}
	at := filepath.Join(c.Keep, c.Digest(), Files[1])
	if err := os.WriteFile(at, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Kept(); ok {
		t.Error("a damaged one is taken")
	}
	if err := c.Put(files); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Kept(); !ok {
		t.Error("a damaged one is not made anew")
	}
}

// A module for another kernel is none.
func TestFits(t *testing.T) {
	module := debtest.Module("vermagic=6.12.95+deb12-amd64 SMP preempt mod_unload modversions ")
	if err := fits(module, "6.12.95+deb12-amd64"); err != nil {
		t.Error(err)
	}
	for _, release := range []string{"6.12.95+deb12-cloud-amd64", "6.12.95", ""} {
		if err := fits(module, release); err == nil {
			t.Errorf("it fits %q too", release)
		}
	}
	if err := fits([]byte("no module"), ""); err == nil {
		t.Error("no module fits")
	}
}

// In a build without the checks these tests fail.
func TestChecksCount(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^(TestSource|TestKept|TestFits)$", "nvidia.go")...)
}

// Packages are laid out in a merged /usr; documentation is not.
func TestUnpack(t *testing.T) {
	cache := &deb.Cache{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	pkg := debtest.Make(".xz", debtest.Member{Name: "./bin/tool", Body: "tool"}, debtest.Member{Name: "./usr/share/doc/tool/README", Body: "read"})
	p := deb.Package{Name: "tool", SHA256: fmt.Sprintf("%x", sha256.Sum256(pkg)), Size: int64(len(pkg))}
	if err := os.WriteFile(cache.Path(p), pkg, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := Config{Cache: cache, Source: p, With: []deb.Package{{Name: "linux-image-6.12-amd64"}}}
	if err := c.unpack(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/bin/tool", "bin/tool"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "tool" {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/share/doc")); err == nil {
		t.Error("documentation")
	}
}

// config is what the committed lock says for a profile with Debian's full kernel.
func config(t *testing.T, cache, keep string) Config {
	t.Helper()
	lock, err := deb.ReadLock(filepath.Join(checkout, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	packages := func(sets ...string) []deb.Package {
		list, err := lock.Packages("amd64", sets...)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	c := Config{Cache: &deb.Cache{Dir: cache, Log: slog.New(slog.DiscardHandler)}, Arch: "amd64", Keep: keep, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), With: packages("compile", "compile-full")}
	if c.Source, err = Source(packages("extension-" + Extension)); err != nil {
		t.Fatal(err)
	}
	for _, p := range packages("kernel-full") {
		if release, ok := strings.CutPrefix(p.Name, "linux-image-"); ok && release != "amd64" {
			c.Release = release
		}
	}
	return c
}

// The lock's compiler, headers and source fit its kernel.
func TestLocked(t *testing.T) {
	c := config(t, "", "")
	want := map[string]bool{"linux-headers-" + c.Release: false, "gcc-12": false, "make": false}
	for _, p := range c.With {
		if _, ok := want[p.Name]; ok {
			want[p.Name] = true
		}
	}
	for name, ok := range want {
		if !ok {
			t.Errorf("the lock has no %s", name)
		}
	}
}

// TestCompile makes the modules twice, by whoever runs the test and by a user without rights, in another folder, with
// another number of compilers at a time: the same bits, for the kernel of the image. The first may be kept from before.
func TestCompile(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("compiles for many minutes: run make vmtest")
	}
	debs, err := filepath.Abs(filepath.Join(checkout, ".cache/debs"))
	if err != nil {
		t.Fatal(err)
	}
	c := config(t, debs, filepath.Join(checkout, ".cache/modules"))
	err = c.Cache.Fetch(t.Context(), append([]deb.Package{c.Source}, c.With...), func() (deb.Mirror, error) { return deb.MachineMirror(os.DirFS("/")) })
	if errors.Is(err, deb.ErrDropped) {
		t.Skipf("the committed lock's packages are not to be had any more: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	first, err := Compile(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	second := asStranger(t, c)
	for _, name := range Files {
		if !bytes.Equal(first[name], second[name]) {
			t.Errorf("%s has other bits the second time: %d bytes and %d", name, len(first[name]), len(second[name]))
		}
		if err := fits(first[name], c.Release); err != nil {
			t.Error(err)
		}
		if err := fits(first[name], c.Release+"1"); err == nil {
			t.Errorf("%s is for any kernel", name)
		}
		for _, path := range []string{"/tmp/", os.Getenv("HOME") + "/go", c.Keep} {
			if bytes.Contains(first[name], []byte(path)) {
				t.Errorf("%s names %s", name, path)
			}
		}
		version, err := modules.Field(first[name], "version")
		t.Logf("%s: version %s, %.1f MB, %v", name, version, float64(len(first[name]))/1e6, err)
	}
}

// asStranger compiles as a user who owns nothing but a folder. There is no network: the packages are there.
func asStranger(t *testing.T, c Config) map[string][]byte {
	t.Helper()
	dir, err := os.MkdirTemp("", "a longer path of another-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.MkdirAll(filepath.Join(dir, "debs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range append([]deb.Package{c.Source}, c.With...) {
		link := filepath.Join(dir, "debs", filepath.Base(c.Cache.Path(p)))
		if err := os.Link(c.Cache.Path(p), link); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	lock, err := os.ReadFile(filepath.Join(checkout, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"src/rootfs", "src/image/nvidia"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(program, self, 0o755), os.WriteFile(filepath.Join(dir, "src/rootfs/packages.lock"), lock, 0o644), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestStranger$", "-test.v", "-test.timeout=2h")
	cmd.Dir, cmd.Env = filepath.Join(dir, "src/image/nvidia"), append(os.Environ(), into+"="+dir, "TMPDIR="+dir, "HOME="+dir, "TZ=Asia/Tokyo", "GOMAXPROCS=2")
	if os.Getuid() == 0 {
		for _, d := range []string{dir, filepath.Join(dir, "debs")} {
			if err := os.Chown(d, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	text, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(text, []byte("--- PASS: TestStranger")) {
		t.Fatalf("%v\n%s", err, text)
	}
	c.Keep = filepath.Join(dir, "modules")
	out, ok := c.Kept()
	if !ok {
		t.Fatalf("nothing was made:\n%s", text)
	}
	return out
}

// TestStranger is TestCompile's second compilation, by another user.
func TestStranger(t *testing.T) {
	dir := os.Getenv(into)
	if dir == "" {
		t.Skip("TestCompile runs it")
	}
	c := config(t, filepath.Join(dir, "debs"), filepath.Join(dir, "modules"))
	if _, err := Compile(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	fmt.Println("compiled by user", os.Getuid())
}
