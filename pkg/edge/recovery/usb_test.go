package recovery

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stick is a loop device with a file system, as a USB partition is one.
func stick(t *testing.T) (node string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a loop device is made")
	}
	image := filepath.Join(t.TempDir(), "stick.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Skipf("needs mkfs.ext4: %v %s", err, out)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	defer control.Close()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 10 { // another may be quicker
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("needs a loop device: %v", err)
		}
		node = fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(node, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("needs loop devices: %v", err)
		}
		if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(f.Fd())); err != nil {
			dev.Close()
			continue
		}
		t.Cleanup(func() {
			_ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0) // the image goes with the test
			dev.Close()
		})
		return node
	}
	t.Skip("needs a loop device, and all are taken again and again")
	return ""
}

// on mounts a stick as a person's own machine would.
func on(t *testing.T, node string, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(node, dir, "ext4", 0, ""); err != nil {
		t.Skipf("needs mounts: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	do(dir)
}

func bundleOf(t *testing.T) []byte {
	t.Helper()
	manifest := `{"layers":[]}`
	sum := sha256.Sum256([]byte(manifest))
	hash := hex.EncodeToString(sum[:])
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range [][2]string{{"oci-layout", "{}"}, {"index.json", `{"manifests":[{"digest":"sha256:` + hash + `"}]}`}, {"blobs/sha256/" + hash, manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestOddFiles: what is no plain file on a stick, such as a pipe that nobody writes to, or a link out of it, is refused at once.
func TestOddFiles(t *testing.T) {
	a := stand(t)
	dir := a.path(home)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Mkfifo(filepath.Join(dir, "pipe.tbu"), 0o600), os.WriteFile(filepath.Join(dir, "real"), bundleOf(t), 0o600),
		os.Symlink("real", filepath.Join(dir, "link.tbu")), os.Mkdir(filepath.Join(dir, "folder.tbu"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"pipe.tbu", "link.tbu", "folder.tbu"} {
		ended := make(chan error, 1)
		go func() {
			ended <- a.Do(t.Context(), "usb-update", map[string]string{"from": home, "file": file}, func(string) {})
		}()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s is taken", file)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the console hangs", file)
		}
	}
}

// TestStick: a support bundle goes to a stick, and an update comes from it; each time it is
// mounted for no longer than that takes.
func TestStick(t *testing.T) {
	node := stick(t)
	on(t, node, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "tributary-2.tbu"), bundleOf(t), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	a := stand(t)
	sys := filepath.Join("/sys/block", filepath.Base(node))
	if err := os.MkdirAll(a.path(sys), 0o755); err != nil {
		t.Fatal(err)
	}
	a.put(t, filepath.Join(sys, "removable"), "1")
	a.put(t, filepath.Join(sys, "size"), "16384")
	var said textBuffer
	if err := a.Do(t.Context(), "support-bundle", map[string]string{"to": node}, said.say); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(a.path(a.Data), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := a.Do(t.Context(), "usb-update", map[string]string{"from": node}, said.say); err != nil {
		t.Fatal(err)
	}
	if err := a.Do(t.Context(), "usb-update", map[string]string{"from": node, "file": "other.tbu"}, said.say); err == nil {
		t.Error("a file that is not there is taken")
	}
	if !strings.Contains(string(said), "Written: tributary-support-20261122-220000.tar.gz") || !strings.Contains(string(said), "The updater has it") {
		t.Errorf("%s", said)
	}
	if text, err := os.ReadFile(a.path(a.Data, "usb/wish.json")); err != nil || !strings.Contains(string(text), "sha256:") {
		t.Errorf("%s %v", text, err)
	}
	on(t, node, func(dir string) {
		info, err := os.Stat(filepath.Join(dir, "tributary-support-20261122-220000.tar.gz"))
		if err != nil || info.Size() < 200 {
			t.Errorf("%v %v", info, err)
		}
	})
}
