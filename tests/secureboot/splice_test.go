package secureboot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	forms "tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/tests/vm"
)

// release is one whole system: what the firmware checks, and what that checks.
type release struct {
	uki, manager []byte
	root, tree   *os.File
	hash         [32]byte
}

// built reads the parts of an image that was made before, below build or TRIBUTARY_IMAGES.
func built(t *testing.T, profile string) (dir string, file func(name string) []byte) {
	t.Helper()
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("needs minutes: run make vmtest")
	}
	dir = filepath.Join(cmp.Or(os.Getenv("TRIBUTARY_IMAGES"), filepath.Join(root, "build")), profile)
	if _, err := os.Stat(filepath.Join(dir, forms.UKIFile)); err != nil {
		t.Skipf("needs %s: run make image PROFILE=%s", dir, profile)
	}
	return dir, func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// vouch makes a release of a root: its tree, and a kernel image that names it, signed.
func vouch(t *testing.T, key *keys.Key, file func(string) []byte, content []byte) release {
	t.Helper()
	scratch := func() *os.File {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	r := release{root: scratch(), tree: scratch(), manager: file(forms.ManagerFile)}
	if _, err := r.root.Write(content); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.hash, err = verity.Format(r.root, int64(len(content)), []byte("salt"), [16]byte{}, r.tree); err != nil {
		t.Fatal(err)
	}
	old := file(forms.UKIFile)
	part := func(name string) string {
		b, err := uki.Read(old, name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	words := strings.Fields(part(".cmdline"))
	for i, w := range words {
		if strings.HasPrefix(w, "roothash=") {
			words[i] = "roothash=" + hex.EncodeToString(r.hash[:])
		}
	}
	image, err := uki.Build(uki.Config{Stub: file("stub.efi"), Kernel: []byte(part(".linux")), Initrd: []byte(part(".initrd")), Cmdline: strings.Join(words, " "), OSRelease: part(".osrel"), Uname: part(".uname")})
	if err != nil {
		t.Fatal(err)
	}
	r.uki = sign(t, key, image)
	return r
}

// bring starts a box whose firmware trusts the keys from parts of releases, and waits for what is wanted.
func bring(t *testing.T, ctx context.Context, vars []byte, code, data, tree release, hash [32]byte, want string) {
	t.Helper()
	p, err := hwprofiles.Load("vm")
	if err != nil {
		t.Fatal(err)
	}
	image, err := disk.Write(filepath.Join(t.TempDir(), "disk.raw"), disk.Layout{
		Profile: "vm", Arch: "amd64", Sizes: p.Partitions, Time: day, Root: data.root, Verity: tree.tree, RootHash: hash, UKI: code.uki, BootManager: code.manager, Install: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(store, vars, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := vm.Start(ctx, vm.Spec{Name: "box", Arch: "amd64", MemoryMiB: 768, CPUs: 2, SecureBoot: true, Vars: store, NoReboot: true, Life: patience, Disks: []vm.Disk{{Path: image.Path}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, err := m.Expect(ctx, want+`|up after [0-9.]+ s`); err != nil || strings.HasPrefix(got[0], "up after") != (want == comesUp) {
		t.Errorf("%q, %v\n%s", got, err, m.Console.Tail(40))
	}
}

const comesUp = `up after [0-9.]+ s`

// Two valid releases of one owner: each starts whole. One byte of a root that its release does not vouch for, the root
// and tree of one under the kernel of the other, and a kernel without its root do not start. That the first starts is
// the proof that it is the check which stops the others: it is the same changed byte, with a tree and a signature that
// allow it.
func TestSplice(t *testing.T) {
	_, file := built(t, "vm")
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	set, err := keys.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	template, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	if err != nil {
		t.Skipf("needs ovmf: run tests/install-deps vm: %v", err)
	}
	vars, err := set.OVMFVars(template, day)
	if err != nil {
		t.Fatal(err)
	}
	parts := func(name string) []byte {
		if name == forms.ManagerFile {
			manager, err := os.ReadFile(efi + "systemd-bootx64.efi")
			if err != nil {
				t.Skipf("needs systemd-boot-efi: run tests/install-deps vm: %v", err)
			}
			return sign(t, set.Signer(), manager)
		}
		return file(name)
	}
	content := file(forms.RootFile)
	one := vouch(t, set.Signer(), parts, content)
	// A letter of the profile's title: process 1 reads it, and does as before.
	title := []byte(`"title": "`)
	at := bytes.Index(content, title)
	if at < 0 {
		t.Fatal("no profile in the root")
	}
	content[at+len(title)] ^= 0x20
	two := vouch(t, set.Signer(), parts, content)

	const corrupt = `(?i)verity.*corrupt|corrupted blocks|does not mount`
	for _, c := range []struct {
		name             string
		code, data, tree release
		hash             [32]byte
		want             string
	}{
		{"the second release, whole", two, two, two, two.hash, comesUp},
		{"an altered root", one, two, one, one.hash, corrupt},
		{"root and tree of another release", one, two, two, one.hash, corrupt},
		{"a kernel without its root", two, one, one, one.hash, `disk: .*`},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range []*os.File{c.data.root, c.tree.tree} {
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
			}
			bring(t, ctx, vars, c.code, c.data, c.tree, c.hash, c.want)
		})
	}
}
