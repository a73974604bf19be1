package installer

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
)

func medium() Medium {
	noise := func(n int, seed byte) []byte {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		return b
	}
	return Medium{Arch: "amd64", Title: "TRIBUTARY_1", UKI: noise(3<<20, 1), Image: bytes.NewReader(noise(40<<20, 2)), Map: []byte("<bmap/>")}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.iso"), filepath.Join(dir, "b.iso")
	for _, path := range []string{a, b} {
		if err := Write(path, medium()); err != nil {
			t.Fatal(err)
		}
	}
	x, _ := os.ReadFile(a)
	y, _ := os.ReadFile(b)
	if !bytes.Equal(x, y) {
		t.Error("two media differ")
	}
	tab, _, err := gpt.Read(bytes.NewReader(x), int64(len(x)))
	if err != nil {
		t.Fatal(err)
	}
	n, p := tab.Find(Label)
	if n != 1 {
		t.Fatal("no partition")
	}
	v, err := fat.Open(io.NewSectionReader(bytes.NewReader(x), tab.Offset(p), tab.Size(p)), tab.Size(p))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v.ReadFile("EFI/BOOT/BOOTX64.EFI", 8<<20); err != nil || !bytes.Equal(got, medium().UKI) {
		t.Error(err)
	}
	if _, err := fat.Open(bytes.NewReader(x[1<<20:]), int64(len(x)-1<<20)); err != nil {
		t.Errorf("where the boot catalog leads: %v", err)
	}
}

// TestOthers asks tools about both forms.
func TestOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.iso")
	if err := Write(path, medium()); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("xorriso"); err != nil {
		t.Skip("needs xorriso")
	}
	out, err := exec.Command("xorriso", "-indev", path, "-report_el_torito", "plain", "-find", "/").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "UEFI") || !strings.Contains(string(out), "README.TXT") {
		t.Errorf("xorriso: %v\n%s", err, out)
	}
	if _, err := exec.LookPath("sgdisk"); err == nil {
		if out, err := exec.Command("sgdisk", "-v", path).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No problems found")) {
			t.Errorf("sgdisk: %v\n%s", err, out)
		}
	}
}
