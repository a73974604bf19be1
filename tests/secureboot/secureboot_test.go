// Package secureboot answers: does firmware with our keys start what we signed, and nothing else?
//
// A small unified kernel image of the machine's own Debian kernel stands for the appliance's: the same stub, the same
// builder, the same keys, on a disk that the builder laid out.
package secureboot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/verity"
	"tributary.dev/tributary/tests/vm"
)

const (
	root     = "../.."
	patience = 4 * time.Minute
	efi      = "/usr/lib/systemd/boot/efi/"
)

// refused is what firmware and boot manager say of what they do not start.
const refused = `(?i)Security Violation|Access Denied|Secure Boot violation|bad signature|EFI_ACCESS|Error loading`

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// parts are what a disk is made of.
type parts struct {
	uki, manager []byte
}

// build makes an unsigned image, with more files in its first file system, and gives the unsigned boot manager beside it.
func build(t *testing.T, ctx context.Context, files ...initramfs.File) parts {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("needs an amd64 host")
	}
	if testing.Short() {
		t.Skip("boots machines: not in short tests")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64: run tests/install-deps vm")
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Skipf("needs systemd-boot-efi: run tests/install-deps vm: %v", err)
		}
		return b
	}
	kernel, err := vm.TestKernel(ctx, root, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	var more bytes.Buffer
	if err := initramfs.Write(&more, files); err != nil {
		t.Fatal(err)
	}
	image, err := uki.Build(uki.Config{
		Stub: read(efi + "linuxx64.efi.stub"), Kernel: read(kernel.Image), Initrd: append(read(kernel.Initrd), more.Bytes()...),
		Cmdline: vm.SerialCmdline(runtime.GOARCH) + " quiet", OSRelease: "ID=tributary\nVERSION_ID=1\nPRETTY_NAME=\"Tributary\"\n", Uname: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	return parts{uki: image, manager: read(efi + "systemd-bootx64.efi")}
}

func layOut(t *testing.T, p parts) string {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	rootfs, tree := file("root"), file("tree")
	if _, err := rootfs.Write(bytes.Repeat([]byte("not a file system"), 4096)); err != nil {
		t.Fatal(err)
	}
	size := int64(17 * 4096)
	hash, err := verity.Format(rootfs, size, nil, [16]byte{}, tree)
	if err != nil {
		t.Fatal(err)
	}
	im, err := disk.Write(filepath.Join(dir, "disk.raw"), disk.Layout{
		Profile: "secureboot", Arch: "amd64", Sizes: hwprofiles.Partitions{ESP: 64, Root: 2, Verity: 1, Config: 36, State: 1, Data: 1}, Time: day,
		Root: rootfs, Verity: tree, RootHash: hash, UKI: p.uki, BootManager: p.manager, Install: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return im.Path
}

func sign(t *testing.T, k *keys.Key, pe []byte) []byte {
	t.Helper()
	out, err := uki.Sign(pe, k)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// boot starts a machine whose firmware checks signatures, and waits until it says what is wanted.
func boot(t *testing.T, ctx context.Context, p parts, vars []byte, want string) *vm.Machine {
	t.Helper()
	store := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(store, vars, 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, ctx, p, store, want)
}

// start is boot with a variable store that stays.
func start(t *testing.T, ctx context.Context, p parts, store, want string) *vm.Machine {
	t.Helper()
	dir := t.TempDir()
	spec := vm.Spec{
		Name: "box", Arch: "amd64", MemoryMiB: 512, SecureBoot: true, Vars: store, NoReboot: true, Life: patience,
		Disks: []vm.Disk{{Path: layOut(t, p)}},
	}
	if _, err := exec.LookPath("swtpm"); err == nil {
		spec.TPM = filepath.Join(dir, "tpm")
	}
	m, err := vm.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	if _, err := m.Expect(ctx, want); err != nil {
		t.Fatalf("%v\n%s", err, m.Console.Tail(60))
	}
	return m
}

func owner(t *testing.T) (*keys.Set, []byte) { return ownerOf(t, t.TempDir()) }

func ownerOf(t *testing.T, dir string) (*keys.Set, []byte) {
	t.Helper()
	set, err := keys.LoadOrCreate(dir)
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
	return set, vars
}

// What we signed starts with Secure Boot on, and the TPM says of it what was foretold, bit for bit.
func TestSignedStarts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p := build(t, ctx)
	set, vars := owner(t)
	p = parts{sign(t, set.Signer(), p.uki), sign(t, set.Signer(), p.manager)}
	m := boot(t, ctx, p, vars, "guest: ready")
	if m.TPM != "" {
		want, err := uki.PCR11(p.uki)
		if err != nil {
			t.Fatal(err)
		}
		const file = "/sys/class/tpm/tpm0/pcr-sha256/11"
		if err := m.Send("show " + file + "\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Expect(ctx, fmt.Sprintf("(?i)guest: %s: %x", file, want)); err != nil {
			t.Errorf("PCR 11 is not %x as foretold: %v", want, err)
		}
	}
	if text := m.Console.Tail(200); strings.Contains(text, "secureboot: Secure boot disabled") {
		t.Error("the kernel says that Secure Boot is off")
	}
}

// What is not signed by a key in db does not start.
func TestOthersDoNot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	p := build(t, ctx)
	set, vars := owner(t)
	stranger, _ := owner(t)
	good := parts{sign(t, set.Signer(), p.uki), sign(t, set.Signer(), p.manager)}
	altered := bytes.Clone(good.uki)
	at := bytes.Index(altered, []byte("quiet"))
	if at < 0 {
		t.Fatal("no command line in the image")
	}
	altered[at] = 'Q'
	for _, c := range []struct {
		name string
		p    parts
	}{
		{"unsigned", parts{p.uki, good.manager}},
		{"altered", parts{altered, good.manager}},
		{"another's", parts{sign(t, stranger.Signer(), p.uki), good.manager}},
		{"unsigned boot manager", parts{good.uki, p.manager}},
	} {
		t.Run(c.name, func(t *testing.T) {
			boot(t, ctx, c.p, vars, refused)
		})
		if c.name == "altered" {
			// Without the check the same bytes start: it is the signature that stops them.
			t.Run("altered without Secure Boot", func(t *testing.T) {
				empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
				if err != nil {
					t.Skip(err)
				}
				boot(t, ctx, c.p, empty, "guest: ready")
			})
		}
	}
}
