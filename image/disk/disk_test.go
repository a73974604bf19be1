package disk

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/disk/bmap"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/verity"
)

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func file(t testing.TB, b []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}

func layout(t testing.TB) Layout {
	hollow := func(b []byte) []byte { // pages of zeros in the midst, as file systems and programs have them
		clear(b[5*4096 : 9*4096])
		return b
	}
	root, tree := file(t, hollow(noise(2<<20, 1))), file(t, nil)
	hash, err := verity.Format(root, 2<<20, nil, [16]byte{}, tree)
	if err != nil {
		t.Fatal(err)
	}
	return Layout{
		Profile: "test", Arch: "amd64", Sizes: hwprofiles.Partitions{ESP: 40, Root: 8, Verity: 4, Config: 36, State: 8, Data: 8},
		Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Root: root, Verity: tree, RootHash: hash,
		UKI: hollow(noise(3<<20, 2)), BootManager: noise(90000, 3), Install: 1,
		Config: []fat.File{{Path: "tributary.yaml", Content: bytes.NewReader([]byte("name: box\n"))}},
	}
}

func TestWrite(t *testing.T) {
	l := layout(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	im, err := Write(path, l)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Write(path+"2", l)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	b2, _ := os.ReadFile(again.Path)
	if !bytes.Equal(b, b2) {
		t.Error("two images differ")
	}
	tab, from, err := gpt.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil || from != gpt.Primary || len(tab.Partitions) != 9 {
		t.Fatalf("%v %v %+v", from, err, tab)
	}
	for _, label := range []string{"esp-a", "esp-b"} {
		_, p := tab.Find(label)
		v, err := fat.Open(io.NewSectionReader(bytes.NewReader(b), tab.Offset(p), tab.Size(p)), tab.Size(p))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Check(); err != nil {
			t.Error(err)
		}
		if uki, err := v.ReadFile("EFI/Linux/tributary-1.efi", 8<<20); err != nil || !bytes.Equal(uki, l.UKI) {
			t.Errorf("%s: %v", label, err)
		}
		if _, err := v.ReadFile("EFI/BOOT/BOOTX64.EFI", 8<<20); err != nil {
			t.Error(err)
		}
	}
	section := func(label string) *io.SectionReader {
		_, p := tab.Find(label)
		return io.NewSectionReader(bytes.NewReader(b), tab.Offset(p), tab.Size(p))
	}
	if err := verity.Verify(section("root-a"), section("root-a-verity"), l.RootHash); err != nil {
		t.Error(err)
	}
	want, _ := gpt.RootIDs(l.RootHash)
	if _, p := tab.Find("root-a"); p.ID != want {
		t.Errorf("root-a is %s", p.ID)
	}
	// Outside the map there are zeros only.
	for _, r := range im.Map.Ranges {
		clear(b[r.Offset() : r.Offset()+im.Map.Size(r)])
	}
	if len(bytes.TrimLeft(b, "\x00")) > 0 {
		t.Error("the block map leaves out something")
	}
	flashedOverRubbish(t, im, l)
	if _, err := exec.LookPath("sgdisk"); err == nil {
		if out, err := exec.Command("sgdisk", "-v", path).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No problems found")) {
			t.Errorf("sgdisk: %v\n%s", err, out)
		}
	}
}

// flashedOverRubbish writes what the map names over a disk of 0xff, as bmaptool does, and looks for what must be whole.
func flashedOverRubbish(t *testing.T, im *Image, l Layout) {
	t.Helper()
	image, err := os.ReadFile(im.Path)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{0xff}, len(image))
	for _, r := range im.Map.Ranges {
		copy(b[r.Offset():][:im.Map.Size(r)], image[r.Offset():])
	}
	section := func(label string) *io.SectionReader {
		_, p := im.Table.Find(label)
		return io.NewSectionReader(bytes.NewReader(b), im.Table.Offset(p), im.Table.Size(p))
	}
	if err := verity.Verify(section("root-a"), section("root-a-verity"), l.RootHash); err != nil {
		t.Errorf("flashed over rubbish: %v", err)
	}
	for _, label := range []string{"esp-a", "esp-b", "config"} {
		r := section(label)
		v, err := fat.Open(r, r.Size())
		if err != nil {
			t.Fatalf("flashed over rubbish: %s: %v", label, err)
		}
		if err := v.Check(); err != nil {
			t.Errorf("flashed over rubbish: %s: %v", label, err)
		}
		if label == "config" {
			continue
		}
		if uki, err := v.ReadFile("EFI/Linux/tributary-1.efi", 8<<20); err != nil || !bytes.Equal(uki, l.UKI) {
			t.Errorf("flashed over rubbish: %s: the kernel image is another (%v)", label, err)
		}
	}
	for _, label := range []string{"state", "data"} {
		head := make([]byte, min(keyArea, section(label).Size()))
		if _, err := section(label).ReadAt(head, 0); err != nil || len(bytes.Trim(head, "\x00")) > 0 {
			t.Errorf("flashed over rubbish: the keys of a former %s are still there (%v)", label, err)
		}
	}
}

func TestCompress(t *testing.T) {
	l := layout(t)
	dir := t.TempDir()
	im, err := Write(filepath.Join(dir, "disk.raw"), l)
	if err != nil {
		t.Fatal(err)
	}
	var sums [2][32]byte
	var size int
	for i := range sums {
		if i == 1 { // a machine with one processor gives the same bits
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		}
		path := filepath.Join(dir, "disk.raw.zst")
		sum, err := Compress(path, im)
		if err != nil {
			t.Fatal(err)
		}
		if raw, _ := os.ReadFile(im.Path); sha256.Sum256(raw) != sum {
			t.Error("the sum is another image's")
		}
		b, _ := os.ReadFile(path)
		sums[i], size = sha256.Sum256(b), len(b)
	}
	if sums[0] != sums[1] {
		t.Error("two compressions differ")
	}
	// Everything in the image is noise: the second ESP must cost nearly nothing.
	if most := 2<<20 + 3<<20 + 90000 + 200000; size > most {
		t.Errorf("%d bytes compressed, want less than %d: the second ESP is not found in the first", size, most)
	}
	f, err := os.Open(filepath.Join(dir, "disk.raw.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	got, want := sha256.New(), sha256.New()
	if _, err := io.Copy(got, z); err != nil {
		t.Fatal(err)
	}
	raw, _ := os.ReadFile(im.Path)
	want.Write(raw)
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("another image comes out")
	}
	if m, err := bmap.Decode(im.Map.Encode()); err != nil || m.Mapped() != im.Map.Mapped() {
		t.Error(err)
	}
}

func TestTooSmall(t *testing.T) {
	for name, spoil := range map[string]func(*Layout){
		"root": func(l *Layout) { l.Sizes.Root = 1 },
		"esp":  func(l *Layout) { l.UKI = noise(41<<20, 1) },
		"arch": func(l *Layout) { l.Arch = "riscv64" },
	} {
		l := layout(t)
		spoil(&l)
		if _, err := Write(filepath.Join(t.TempDir(), "disk.raw"), l); err == nil {
			t.Errorf("%s: written", name)
		}
	}
}
