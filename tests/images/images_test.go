package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"tributary.dev/tributary/tests/images/debimage"
)

// made makes the images once for all tests of this package.
func made(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs Debian packages from the mirror; not in short mode")
	}
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (a Debian machine)", tool)
		}
	}
	// The project's cache: the demo and the tests share the downloads.
	dir, err := filepath.Abs("../../.cache/images")
	if err != nil {
		t.Fatal(err)
	}
	if err := produce(t.Context(), options{out: dir}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImagesAreReproducible(t *testing.T) {
	dir := made(t)
	debs := debimage.Debs{Dir: filepath.Join(dir, ".debs")}
	var packages []string
	for _, r := range recipes() {
		packages = append(packages, r.packages...)
	}
	closure, err := debs.Closure(t.Context(), append(packages, "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	offered, err := debs.Offered(t.Context(), closure)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := debs.Unpack(t.Context(), offered)
	if err != nil {
		t.Fatal(err)
	}
	images, err := build(tree, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	shared := map[v1.Hash]int{}
	for name, img := range images {
		stored, err := load(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		a, err1 := img.Digest()
		b, err2 := stored.Digest()
		if err := errors.Join(err1, err2); err != nil || a != b {
			t.Errorf("%s: built anew %s, stored %s: %v", name, a, b, err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			d, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			shared[d]++
		}
	}
	// One base under all, one nginx under both versions: an update moves one small layer.
	var counts [8]int
	for _, n := range shared {
		counts[n]++
	}
	if counts[4] != 1 || counts[2] != 1 || counts[1] != 4 {
		t.Errorf("layers by the number of images that share them: %v", counts)
	}
}

func TestRandomImageIsTheSameEachTime(t *testing.T) {
	for _, size := range []int64{1, 1 << 20} {
		a, err := debimage.Random("amd64", size, 1, 7)
		if err != nil {
			t.Fatal(err)
		}
		b, err := debimage.Random("amd64", size, 1, 7)
		if err != nil {
			t.Fatal(err)
		}
		da, err1 := a.Digest()
		db, err2 := b.Digest()
		if err := errors.Join(err1, err2); err != nil || da != db {
			t.Fatal(da, db, err)
		}
	}
}

// TestProgramsRun starts the images' real programs in a root of their own, on a
// network of their own, and asks them.
func TestProgramsRun(t *testing.T) {
	dir := made(t)
	if os.Getuid() != 0 {
		t.Skip("needs root: chroot and a network namespace")
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "--net", "true").CombinedOutput(); err != nil {
		t.Skipf("needs network namespaces: %s", out)
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cache", "broker", "web"} {
		img, err := load(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		unpack(t, img, root)
	}
	for path, content := range map[string]string{"etc/hosts": "127.0.0.1 localhost\n127.0.0.1 cache\n", "etc/greeting/text": "hello there\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := `
ip link set lo up
mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
redis-server --bind 127.0.0.1 --dir /data --appendonly yes --daemonize yes >/tmp/redis.log
mosquitto -c /etc/mosquitto/tributary.conf 2>/tmp/broker.log & B=$!
nginx -e stderr -g 'daemon off; user www-data;' 2>/tmp/nginx.log & W=$!
n=0; until redis-cli ping && wget -q -O - http://127.0.0.1:8080/healthz && mosquitto_pub -t a -m b -r; do n=$((n+1)); [ $n -gt 600 ] && break; sleep 0.1; done
wget -q -O - http://127.0.0.1:8080/; wget -q -O - http://127.0.0.1:8080/
mosquitto_sub -t a -C 1 -W 60
kill $W $B; redis-cli shutdown nosave
cat /tmp/nginx.log /tmp/broker.log`
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "unshare", "--net", "--pid", "--fork", "--kill-child", "chroot", root, "/bin/sh", "-c", script).CombinedOutput()
	text := string(out)
	for _, want := range []string{"PONG", "version 1", "greeting: hello there", "visits: 1", "visits: 2", "\nb\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("missing %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%v\n%s", err, text)
	}
}

func unpack(t *testing.T, img v1.Image, root string) {
	t.Helper()
	flat := mutate.Extract(img)
	defer flat.Close()
	for r := tar.NewReader(flat); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, os.FileMode(h.Mode&0o777)|sticky(h.Mode)))
		case tar.TypeSymlink:
			_ = os.Remove(path)
			err = os.Symlink(h.Linkname, path)
		case tar.TypeReg:
			var f *os.File
			if f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, os.FileMode(h.Mode&0o777)); err == nil {
				_, err = io.Copy(f, r)
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sticky(mode int64) os.FileMode {
	if mode&0o1000 != 0 {
		return os.ModeSticky
	}
	return 0
}
