// Package installer answers: does a stick or a disc bring the system onto a box, and nowhere else?
//
// The machines have firmware that checks signatures, in setup mode as a maker delivers it: what the installer enrols is
// what the next start is checked against.
package installer

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/tests/vm"
)

const (
	root     = "../.."
	patience = 10 * time.Minute
	up       = `up after [0-9.]+ s`
	diskSize = 6 << 30
)

// medium is an installer that was built before, below build or TRIBUTARY_IMAGES.
func medium(t *testing.T, profile string) string { return form(t, profile, "installer.iso") }

// form is one file of an image.
func form(t *testing.T, profile, name string) string {
	t.Helper()
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("needs minutes: run make vmtest")
	}
	images := cmp.Or(os.Getenv("TRIBUTARY_IMAGES"), filepath.Join(root, "build"))
	path, err := filepath.Abs(filepath.Join(images, profile, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs %s: run make image PROFILE=%s", path, profile)
	}
	return path
}

// box is a machine's parts that stay from one start to the next.
type box struct {
	vars, disk string
}

func newBox(t *testing.T) box {
	t.Helper()
	dir := t.TempDir()
	b := box{filepath.Join(dir, "vars.fd"), filepath.Join(dir, "disk.raw")}
	empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Skipf("needs ovmf: run tests/install-deps vm: %v", err)
	}
	if err := os.WriteFile(b.vars, empty, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(b.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	return b
}

// start boots the box, from the medium where one is given.
func (b box) start(t *testing.T, ctx context.Context, medium string, disc bool) *vm.Machine {
	t.Helper()
	spec := vm.Spec{Name: "box", Arch: "amd64", MemoryMiB: 768, SecureBoot: true, Vars: b.vars, NoReboot: true, Life: patience}
	switch {
	case disc:
		spec.Extra = []string{"-drive", "if=none,id=disc,format=raw,readonly=on,media=cdrom,file=" + medium, "-device", "ide-cd,drive=disc,bootindex=1"}
	case medium != "":
		spec.Disks = append(spec.Disks, vm.Disk{Path: medium, ReadOnly: true, BootIndex: 1})
	}
	spec.Disks = append(spec.Disks, vm.Disk{Path: b.disk})
	m, err := vm.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the serial line:\n%s", m.Console.Tail(80))
		}
		_ = m.Close()
	})
	return m
}

func expect(t *testing.T, ctx context.Context, m *vm.Machine, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if _, err := m.Expect(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
}

// within is a part of a file.
func within(t *testing.T, path, label string, do func(f *os.File, at, size int64)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tab, _, err := gpt.Read(f, diskSize)
	if err != nil {
		t.Fatal(err)
	}
	n, p := tab.Find(label)
	if n == 0 {
		t.Fatalf("no partition %s", label)
	}
	do(f, tab.Offset(p), tab.Size(p))
}

// An empty disk is taken without a question; our keys are enrolled; the system then starts with Secure Boot on, the
// same medium leaves it alone, and the same disk with one changed byte in its UKI does not start.
func TestEmptyDisk(t *testing.T) {
	iso := medium(t, "vm")
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	b := newBox(t)
	m := b.start(t, ctx, iso, false)
	expect(t, ctx, m, `Onto vd[ab]  6\.4 GB .* empty`, `writing .*100 %`, `verifying .*100 %`, `keys are enrolled`, `Installed on vd[ab]`)
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	fd, err := os.ReadFile(b.vars)
	if err != nil {
		t.Fatal(err)
	}
	db, _, err := keys.VendorLists(fd)
	if err != nil {
		t.Fatal(err)
	}
	set, err := keys.LoadOrCreate(filepath.Join(root, ".cache", "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if certs, err := keys.Lists(db); err != nil || len(certs) == 0 || !certs[len(certs)-1].Equal(set.Signer().Certificate()) {
		t.Errorf("db holds %d certificates: %v", len(certs), err)
	}

	m = b.start(t, ctx, "", false)
	expect(t, ctx, m, `starting Boot\d+ "Tributary A"`, up)
	_ = m.Close()

	m = b.start(t, ctx, iso, false)
	expect(t, ctx, m, `holds a Tributary system`, `It stays as it is`, `starts anew`)
	_ = m.Close()

	for _, label := range []string{"esp-a", "esp-b"} {
		within(t, b.disk, label, func(f *os.File, at, size int64) {
			esp := make([]byte, size)
			if _, err := f.ReadAt(esp, at); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			i := bytes.Index(esp, []byte("roothash="))
			if i < 0 {
				t.Fatalf("no command line in %s", label)
			}
			if _, err := f.WriteAt([]byte("R"), at+int64(i)); err != nil {
				t.Fatal(err)
			}
		})
	}
	m = b.start(t, ctx, "", false)
	expect(t, ctx, m, `(?i)Security Violation|Access Denied|Error loading|bad signature`)
}

// A disk that holds something is taken only when a person says so, twice.
func TestUsedDisk(t *testing.T) {
	iso := medium(t, "vm")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	b := newBox(t)
	f, err := os.OpenFile(b.disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("somebody's data "), 1<<18), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m := b.start(t, ctx, iso, false)
	expect(t, ctx, m, `1  vd[ab]  6\.4 GB .* holds other data`, `Press its number`)
	for _, step := range [][2]string{{"1", `Press y to erase`}, {"n", `Press its number`}, {"1", `Press y to erase`}, {"y", `Installed on vd[ab]`}} {
		if err := m.Send(step[0]); err != nil {
			t.Fatal(err)
		}
		expect(t, ctx, m, step[1])
	}
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	m = b.start(t, ctx, "", false)
	expect(t, ctx, m, up)
}

// The same file, as a disc: its boot catalog leads to the same volume.
func TestDisc(t *testing.T) {
	iso := medium(t, "generic-amd64")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	b := newBox(t)
	m := b.start(t, ctx, iso, true)
	expect(t, ctx, m, `The image lies on sr0`, `Installed on vda`)
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	m = b.start(t, ctx, "", false)
	expect(t, ctx, m, up)
}

// The netboot file over HTTP: the firmware fetches it from an address, and it installs the image that it holds. Nothing
// else is asked of the network.
func TestNetboot(t *testing.T) {
	file := form(t, "vm", "netboot.efi")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var mu sync.Mutex
	asked := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.Method+" "+r.URL.Path]++
		mu.Unlock()
		if r.URL.Path != "/netboot.efi" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/efi")
		http.ServeFile(w, r, file)
	}))
	t.Cleanup(srv.Close)
	at, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t)
	empty, err := os.ReadFile(b.vars)
	if err != nil {
		t.Fatal(err)
	}
	vars, err := keys.HTTPBoot(empty, "http://10.0.2.2:"+at.Port()+"/netboot.efi") // the machine's host, as QEMU shows it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.vars, vars, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := vm.Start(ctx, vm.Spec{Name: "box", Arch: "amd64", MemoryMiB: 1536, SecureBoot: true, Vars: b.vars, NoReboot: true, Life: patience,
		NICs: []vm.NIC{{}}, Disks: []vm.Disk{{Path: b.disk}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if _, err := m.Expect(ctx, `installing onto this box`); err != nil {
		mu.Lock()
		defer mu.Unlock()
		t.Fatalf("%v; the firmware asked for %v\n%s", err, asked, m.Console.Tail(60))
	}
	expect(t, ctx, m, `Onto vda`, `writing .*100 %`, `verifying .*100 %`, `keys are enrolled`, `Installed on vda`)
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	_ = m.Close()
	// From now on the firmware checks signatures, and the disk comes first.
	m = b.start(t, ctx, "", false)
	expect(t, ctx, m, up)
}
