package secureboot

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	forms "tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/tests/vm"
)

// The device tree that a UKI carries takes the place of the firmware's: the machine's own with another model's name in
// it is what the kernel sees, and the appliance comes up on it.
func TestDeviceTree(t *testing.T) {
	dir, file := built(t, "vm-arm64")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	const memory, theirs, ours = "768", "linux,dummy-virt", "tributary,a-test"
	dump := filepath.Join(t.TempDir(), "dtb")
	if text, err := exec.Command("qemu-system-aarch64", "-machine", "virt,acpi=off,dumpdtb="+dump, "-cpu", "cortex-a72", "-m", memory, "-nodefaults", "-display", "none").CombinedOutput(); err != nil {
		t.Skipf("needs qemu-system-aarch64: run tests/install-deps vm: %v %s", err, text)
	}
	tree, err := os.ReadFile(dump)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Count(tree, []byte(theirs)) == 0 || len(theirs) != len(ours) {
		t.Fatal("the machine's tree names another model")
	}
	tree = bytes.ReplaceAll(tree, []byte(theirs), []byte(ours))
	old := file(forms.UKIFile)
	part := func(name string) string {
		b, err := uki.Read(old, name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	image, err := uki.Build(uki.Config{Stub: file("stub.efi"), Kernel: []byte(part(".linux")), Initrd: []byte(part(".initrd")), Cmdline: part(".cmdline") + " loglevel=7",
		OSRelease: part(".osrel"), Uname: part(".uname"), DeviceTree: tree})
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string) *os.File {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	_, hash, _ := strings.Cut(part(".cmdline"), "roothash=")
	p, err := hwprofiles.Load("vm-arm64")
	if err != nil {
		t.Fatal(err)
	}
	made, err := disk.Write(filepath.Join(t.TempDir(), "disk.raw"), disk.Layout{
		Profile: p.Name, Arch: p.Arch, Sizes: p.Partitions, Time: day, Root: open(forms.RootFile), Verity: open(forms.VerityFile), RootHash: hashOf(t, hash[:64]), UKI: image,
		BootManager: file(forms.ManagerFile), Install: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := vm.Start(ctx, vm.Spec{Name: "board", Arch: "arm64", MemoryMiB: 768, NoReboot: true, Life: 2 * patience, Disks: []vm.Disk{{Path: made.Path}}, Extra: []string{"-machine", "acpi=off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, want := range []string{`Machine model: ` + ours, comesUp} {
		if _, err := m.Expect(ctx, want); err != nil {
			t.Fatalf("%v\n%s", err, m.Console.Tail(60))
		}
	}
}

func hashOf(t *testing.T, text string) (h [32]byte) {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || copy(h[:], b) != len(h) {
		t.Fatalf("%q: %v", text, err)
	}
	return h
}
