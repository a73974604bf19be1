package fat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sparse is a volume in memory that keeps only blocks that were written.
type sparse map[int64]*[4096]byte

func (s sparse) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		b := s[at/4096]
		if b == nil {
			b = new([4096]byte)
			s[at/4096] = b
		}
		n += copy(b[at%4096:], p[n:])
	}
	return len(p), nil
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		var b [4096]byte
		if have := s[at/4096]; have != nil {
			b = *have
		}
		n += copy(p[n:], b[at%4096:])
	}
	return len(p), nil
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func esp() []File {
	text := func(s string) Content { return strings.NewReader(s) }
	return []File{
		{"loader/loader.conf", text("timeout 0\n")},
		{"EFI/BOOT/BOOTX64.EFI", bytes.NewReader(noise(100_000, 1))},
		{"EFI/Linux/tributary-1.efi", bytes.NewReader(noise(3_000_001, 2))},
		{"EFI/Linux/tributary-2+3.efi", bytes.NewReader(noise(4096, 3))},
		{"empty", text("")},
		{"ein längerer Name mit Umläuten.yaml", text("x")},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int64{MinSize, 64 << 20, 256 << 20, 512 << 20, 1 << 30} {
		for _, atEnd := range []bool{false, true} {
			s := sparse{}
			o := Options{Label: "ESP-A", VolumeID: 0x12345678, Time: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC), AtEnd: atEnd}
			if err := Write(s, size, o, esp()); err != nil {
				t.Fatalf("%d: %v", size, err)
			}
			v, err := Open(s, size)
			if err != nil {
				t.Fatalf("%d: %v", size, err)
			}
			if err := v.Check(); err != nil {
				t.Errorf("%d: %v", size, err)
			}
			if v.Label != "ESP-A" || v.ID != 0x12345678 {
				t.Errorf("label %q, id %x", v.Label, v.ID)
			}
			for _, f := range esp() {
				want, _ := io.ReadAll(io.NewSectionReader(f.Content, 0, f.Content.Size()))
				got, err := v.ReadFile(f.Path, 10<<20)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d: %s: %d bytes of %d: %v", size, f.Path, len(got), len(want), err)
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	one := func(path string) []File { return []File{{path, strings.NewReader("x")}} }
	for name, files := range map[string][]File{
		"colon": one("a:b"), "up": one("../x"), "deep": one("1/2/3/4/5/6/7/8/9"), "dot": one("x."),
		"twice": append(one("a"), one("A")...), "file as folder": append(one("a"), one("a/b")...), "empty": one(""),
	} {
		if err := Write(sparse{}, 64<<20, Options{}, files); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	big := []File{{"big", io.NewSectionReader(sparse{}, 0, 64<<20)}}
	if err := Write(sparse{}, 64<<20, Options{}, big); !errors.Is(err, ErrFull) {
		t.Errorf("too big: %v", err)
	}
	if err := Write(sparse{}, 16<<20, Options{}, nil); err == nil {
		t.Error("16 MiB is FAT32")
	}
}

func TestAnyFiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var files []File
		for i := range rapid.IntRange(0, 40).Draw(t, "files") {
			dir := rapid.SampledFrom([]string{"", "a/", "a/b c/", "Long Folder Name/x/"}).Draw(t, "dir")
			name := rapid.StringMatching(`[a-zA-Z][a-zA-Z0-9 ._+-]{0,40}[a-z]`).Draw(t, "name")
			files = append(files, File{fmt.Sprintf("%s%s%d", dir, name, i), bytes.NewReader(noise(rapid.IntRange(0, 9000).Draw(t, "size"), byte(i)))})
		}
		s := sparse{}
		if err := Write(s, 40<<20, Options{AtEnd: rapid.Bool().Draw(t, "end")}, files); err != nil {
			t.Fatal(err)
		}
		v, err := Open(s, 40<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Check(); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			want, _ := io.ReadAll(io.NewSectionReader(f.Content, 0, f.Content.Size()))
			if got, err := v.ReadFile(f.Path, 1<<20); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %v", f.Path, err)
			}
		}
	})
}

// TestOthers asks fsck.vfat and mtools.
func TestOthers(t *testing.T) {
	fsck, err := exec.LookPath("/usr/sbin/fsck.vfat")
	if err != nil {
		t.Skip("needs fsck.vfat (Debian: dosfstools)")
	}
	for _, size := range []int64{MinSize, 64 << 20, 300 << 20} {
		path := filepath.Join(t.TempDir(), "esp")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if err := Write(f, size, Options{Label: "TRIBUTARY", VolumeID: 7, AtEnd: size > 64<<20}, esp()); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if out, err := exec.Command(fsck, "-n", "-v", path).CombinedOutput(); err != nil {
			t.Errorf("fsck.vfat of %d: %v\n%s", size, err, out)
		}
		if _, err := exec.LookPath("mtype"); err != nil {
			continue
		}
		out, err := exec.Command("mtype", "-i", path, "::/loader/loader.conf").CombinedOutput()
		if err != nil || string(out) != "timeout 0\n" {
			t.Errorf("mtype: %v %q", err, out)
		}
		out, err = exec.Command("mdir", "-b", "-/", "-i", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "EFI/Linux/tributary-2+3.efi") {
			t.Errorf("mdir: %v\n%s", err, out)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := sparse{}
	if err := Write(s, MinSize, Options{Label: "X"}, esp()[:1]); err != nil {
		f.Fatal(err)
	}
	g, _ := shape(MinSize)
	boot := make([]byte, 2*sector)
	_, _ = s.ReadAt(boot, 0)
	dirs := make([]byte, 2*g.cluster())
	_, _ = s.ReadAt(dirs, g.offset(2))
	f.Add(boot, []byte{0xf8, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0x0f}, dirs)
	f.Fuzz(func(t *testing.T, boot, table, dirs []byte) {
		m := sparse{}
		_, _ = m.WriteAt(boot[:min(len(boot), 4096)], 0)
		_, _ = m.WriteAt(table[:min(len(table), 4096)], g.reserved*sector)
		_, _ = m.WriteAt(dirs[:min(len(dirs), 16384)], g.offset(2))
		v, err := Open(m, MinSize)
		if err != nil {
			return
		}
		_ = v.Check()
		for _, e := range v.Entries() {
			_, _ = v.ReadFile(e.Path, 1<<20)
		}
	})
}
