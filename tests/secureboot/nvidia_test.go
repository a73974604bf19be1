package secureboot

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	erofs "github.com/erofs/go-erofs"

	forms "tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/modules"
	"tributary.dev/tributary/image/uki"
	"tributary.dev/tributary/pkg/disk/extension"
	"tributary.dev/tributary/tests/vm"
)

// TestNVIDIA: NVIDIA's modules, compiled at build, are taken by the locked-down kernel that they were compiled for: the
// signature, the version and every symbol fit. There is no card, so the driver says so and goes, and the box comes up
// without a warning. The same module without its signature, and with another byte, is refused by the same kernel.
//
// What a real card would show is not shown here: that the firmware of its processor starts, and that CUDA computes.
func TestNVIDIA(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("compiles for many minutes the first time, builds an image and boots two machines: run make vmtest")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 12*patience)
	defer cancel()
	made := extend(t, ctx, "nvidia", "nvidia")
	dir, set, vars := made.dir, made.set, made.vars
	files, needs := modulesOf(t, filepath.Join(dir, forms.RootFile), "nvidia", made.kernel)
	for _, name := range []string{"nvidia.ko", "nvidia-uvm.ko"} {
		if err := modules.Verify(files[name], set.Signer().Certificate()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("image", func(t *testing.T) {
		store := filepath.Join(t.TempDir(), "vars.fd")
		if err := os.WriteFile(store, vars, 0o600); err != nil {
			t.Fatal(err)
		}
		box, err := vm.Start(ctx, vm.Spec{Name: "box", Arch: "amd64", MemoryMiB: 1024, CPUs: 2, SecureBoot: true, Vars: store, NoReboot: true, Life: 2 * patience, Disks: []vm.Disk{{Path: filepath.Join(dir, forms.RawFile)}}})
		if err != nil {
			t.Fatal(err)
		}
		defer box.Close()
		// In any order: the kernel's log goes its own way to the console.
		wanted := []string{`extension nvidia: no device for the driver nvidia`, `NVRM: No NVIDIA GPU found`}
		for len(wanted) > 0 {
			if _, err := box.Expect(ctx, strings.Join(append(wanted, `extension-refused`, `no extension has`), "|")); err != nil {
				t.Fatalf("%v\n%s", err, box.Console.Tail(60))
			}
			text := box.Console.String()
			if found := regexp.MustCompile(`[^\n]*(extension-refused|no extension has)[^\n]*`).FindString(text); found != "" {
				t.Fatalf("%s\n%s", found, box.Console.Tail(60))
			}
			wanted = slices.DeleteFunc(wanted, func(w string) bool { return strings.Contains(text, w) })
		}
		text := box.Console.String()
		if found := regexp.MustCompile(`(?i)(nvidia.*(unknown symbol|disagrees|tainting.*signature|verification failed)|key was rejected)[^\n]*`).FindString(text); found != "" {
			t.Errorf("the kernel says: %s", found)
		}
	})
	t.Run("kernel", func(t *testing.T) {
		// The smaller module stands for both where the signature is what counts: the kernel looks at that first.
		bare, _, err := modules.Signature(files["nvidia-uvm.ko"])
		if err != nil {
			t.Fatal(err)
		}
		altered := bytes.Clone(files["nvidia-uvm.ko"])
		altered[bytes.LastIndex(altered, []byte("vermagic="))] = 'V'
		other, err := modules.Sign(bare, set.KEK)
		if err != nil {
			t.Fatal(err)
		}
		more := []initramfs.File{file("unsigned.ko", bare), file("altered.ko", altered), file("stranger.ko", other), file("uvm.ko", files["nvidia-uvm.ko"]), file("nvidia.ko", files["nvidia.ko"])}
		for _, name := range needs { // the guest loads these at its start
			more = append(more, file("modules/"+name, files[name]))
		}
		box := boot(t, ctx, kernelOf(t, ctx, dir, set, more), vars, "guest: ready")
		const refusedKey = `key was rejected|required key not available|operation not permitted|bad message`
		for _, c := range []struct{ module, reason string }{
			{"unsigned.ko", refusedKey}, {"stranger.ko", refusedKey}, {"altered.ko", refusedKey},
			{"uvm.ko", `no such file or directory`}, // its signature is good; what it is missing is the other module
			{"nvidia.ko", `no such device`},
		} {
			if err := box.Send("module " + c.module + "\n"); err != nil {
				t.Fatal(err)
			}
			got, err := box.Expect(ctx, `guest: `+c.module+` is (refused: [a-z ]+|taken)[^a-z ]`) // the whole line
			if err != nil {
				t.Fatalf("%v\n%s", err, box.Console.Tail(40))
			}
			if !regexp.MustCompile(c.reason).MatchString(got[1]) {
				t.Errorf("%s is %s, not for: %s\n%s", c.module, got[1], c.reason, box.Console.Tail(20))
			}
			t.Log(got[0])
		}
	})
}

func file(name string, b []byte) initramfs.File {
	return initramfs.File{Path: name, Mode: 0o600, Data: b}
}

// modulesOf reads an extension out of a root: all its modules by file name, and the names of those that NVIDIA's need.
func modulesOf(t *testing.T, rootFile, name, release string) (files map[string][]byte, needs []string) {
	t.Helper()
	f, err := os.Open(rootFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	list, err := extension.Read(img)
	if err != nil || len(list) != 1 || list[0].Name != name {
		t.Fatalf("%v %v", list, err)
	}
	sealed, err := whole(img, strings.TrimPrefix(list[0].File(), "/"))
	if err != nil {
		t.Fatal(err)
	}
	if err := extension.Check(bytes.NewReader(sealed), int64(len(sealed)), list[0]); err != nil {
		t.Fatal(err)
	}
	inside, err := erofs.Open(bytes.NewReader(sealed[:list[0].Size]))
	if err != nil {
		t.Fatal(err)
	}
	base := "usr/lib/modules/" + release + "/"
	dep, err := whole(inside, base+"modules.dep")
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{}
	for line := range strings.Lines(string(dep)) {
		at, _, _ := strings.Cut(line, ":")
		if files[path.Base(at)], err = whole(inside, base+at); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(at, "updates/") {
			needs = append(needs, path.Base(at))
		}
	}
	t.Logf("the extension %s has %.1f MB", name, float64(len(sealed))/1e6)
	return files, needs
}

// whole reads a file of any size: fs.ReadFile of an EROFS image stops at 128 MiB.
func whole(img fs.FS, name string) ([]byte, error) {
	f, err := img.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// kernelOf is a signed image of the built image's own kernel with the guest of the tests and more files.
func kernelOf(t *testing.T, ctx context.Context, dir string, set *keys.Set, more []initramfs.File) parts {
	t.Helper()
	guest, err := vm.TestKernel(ctx, root, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var archive bytes.Buffer
	if err := initramfs.Write(&archive, more); err != nil {
		t.Fatal(err)
	}
	image, err := uki.Build(uki.Config{
		Stub: read(efi + "linuxx64.efi.stub"), Kernel: read(filepath.Join(dir, "vmlinuz")), Initrd: append(read(guest.Initrd), archive.Bytes()...),
		Cmdline: vm.SerialCmdline("amd64") + " loglevel=7", OSRelease: "ID=tributary\nVERSION_ID=1\nPRETTY_NAME=\"Tributary\"\n", Uname: "test",
	})
	if err != nil {
		t.Fatal(err)
	}
	return parts{uki: sign(t, set.Signer(), image), manager: sign(t, set.Signer(), read(efi+"systemd-bootx64.efi"))}
}
