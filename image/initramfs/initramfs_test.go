package initramfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

var sample = []File{
	{Path: "init", Mode: 0o755, Data: []byte("#!")},
	{Path: "lib/modules/6.12/a.ko", Mode: 0o644, Data: []byte("module")},
	{Path: "dev", Mode: fs.ModeDir | 0o755},
	{Path: "bin", Mode: fs.ModeSymlink | 0o777, Data: []byte("usr/bin")},
}

// TestWrite has the archive read by GNU cpio, which nobody here wrote.
func TestWrite(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs cpio, which is not installed")
	}
	var out bytes.Buffer
	if err := Write(&out, sample); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-idmu", "--quiet")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(out.Bytes())
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	b, err := os.ReadFile(filepath.Join(dir, "lib/modules/6.12/a.ko"))
	if err != nil || string(b) != "module" {
		t.Errorf("%q, %v", b, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "init")); err != nil || st.Mode() != 0o755 {
		t.Errorf("%v, %v", st, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "bin")); err != nil || to != "usr/bin" {
		t.Errorf("%q, %v", to, err)
	}
}

func TestSameBytesInAnyOrder(t *testing.T) {
	want, err := Pack(sample)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		got, err := Pack(rapid.Permutation(sample).Draw(t, "files"))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("other bytes, %v", err)
		}
	})
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := z.DecodeAll(want, nil)
	if err != nil || !bytes.HasPrefix(plain, []byte("070701")) || !bytes.Contains(plain, []byte("TRAILER!!!")) {
		t.Errorf("%v", err)
	}
}

func TestRefusals(t *testing.T) {
	for _, bad := range [][]File{
		{{Path: "../x"}}, {{Path: "/x"}}, {{Path: "."}}, {{Path: "a//b"}},
		{{Path: "a"}, {Path: "a"}}, {{Path: "a"}, {Path: "a/b"}},
	} {
		if err := Write(&bytes.Buffer{}, bad); err == nil {
			t.Errorf("%v was written", bad)
		}
	}
	if err := Write(&bytes.Buffer{}, []File{{Path: "../x"}}); !errors.Is(err, ErrPath) {
		t.Error(err)
	}
}

func TestMicrocode(t *testing.T) {
	b, err := Microcode([]byte("intel"), []byte("amd"))
	if err != nil || len(b)%4 != 0 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if !strings.Contains(string(b), "kernel/x86/microcode/AuthenticAMD.bin\x00") || !strings.Contains(string(b), "kernel/x86/microcode/GenuineIntel.bin\x00") {
		t.Error("the names that the kernel looks for are not there")
	}
	if b, err := Microcode(nil, nil); b != nil || err != nil {
		t.Errorf("%v, %v", b, err)
	}
}
