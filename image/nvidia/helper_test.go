package nvidia

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/image/deb"
)

func helperConfig(t *testing.T, keep string) HelperConfig {
	t.Helper()
	root, err := filepath.Abs(checkout)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := deb.ReadLock(filepath.Join(root, "rootfs/packages.lock"))
	if err != nil {
		t.Fatal(err)
	}
	with, err := lock.Packages("amd64", "compile", "compile-program")
	if err != nil {
		t.Fatal(err)
	}
	return HelperConfig{Cache: &deb.Cache{Dir: filepath.Join(root, ".cache/debs"), Log: slog.New(slog.DiscardHandler)}, With: with, Root: root, Arch: "amd64", Keep: keep, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// The lock has a compiler and the C library's headers, both of them and the library of one version.
func TestHelperLocked(t *testing.T) {
	c := helperConfig(t, "")
	of := map[string]string{}
	for _, p := range c.With {
		of[p.Name] = p.Version
	}
	if of["gcc-12"] == "" || of["libc6-dev"] == "" || of["libc6-dev"] != of["libc6"] || of["linux-libc-dev"] == "" {
		t.Errorf("the lock has %v", of)
	}
}

func TestHelperElsewhere(t *testing.T) {
	c := helperConfig(t, t.TempDir())
	c.Arch = "arm64"
	if file, err := CompileHelper(t.Context(), c); err == nil || !strings.Contains(err.Error(), "amd64 alone") {
		t.Errorf("%s, %v", file, err)
	}
}

// What was kept and is not whole is made anew; what is whole stays.
func TestHelperKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "digest", Helper)
	for _, spoil := range []func() error{nil, func() error { return os.WriteFile(file, []byte("other"), 0o755) }, func() error { return os.Remove(file + ".sha256") }} {
		if spoil != nil {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
		}
		if whole(file) {
			t.Error("what is spoilt, or not there, counts as whole")
		}
		if err := keepWhole(file, []byte("a program")); err != nil || !whole(file) {
			t.Fatalf("kept: %v", err)
		}
	}
}

// TestHelper compiles gpud twice, in folders of other names and with another number of compilers: the same bits. It
// starts where there is no card, and says so; it needs nothing but the C library.
func TestHelper(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("compiles for minutes: run make vmtest")
	}
	c := helperConfig(t, filepath.Join(t.TempDir(), "one"))
	err := c.Cache.Fetch(t.Context(), c.With, func() (deb.Mirror, error) { return deb.MachineMirror(os.DirFS("/")) })
	if errors.Is(err, deb.ErrDropped) {
		t.Skipf("the committed lock's packages are not to be had any more: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	first, err := CompileHelper(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := CompileHelper(t.Context(), c); err != nil || again != first {
		t.Errorf("what is kept is at %s: %s, %v", first, again, err)
	}
	c.Keep = filepath.Join(t.TempDir(), "a longer path of another")
	t.Setenv("TZ", "Asia/Tokyo")
	second, err := CompileHelper(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("other bits the second time: %d bytes and %d", len(a), len(b))
	}
	f, err := elf.NewFile(bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := f.ImportedLibraries()
	if err != nil || !slices.Equal(libraries, []string{"libc.so.6"}) {
		t.Errorf("it needs %v (%v)", libraries, err)
	}
	if info, err := buildinfo.Read(bytes.NewReader(a)); err != nil || info.Path != "tributary.dev/tributary/cmd/gpud" {
		t.Errorf("it says of itself %v, %v", info, err)
	}
	if bytes.Contains(a, []byte(c.Root)) {
		t.Error("it names the folder of the checkout")
	}
	out, err := exec.CommandContext(t.Context(), first, "word").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "usage: gpud") {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%.1f MB", float64(len(a))/1e6)
}
