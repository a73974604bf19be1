package secureboot

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	forms "tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/disk"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/pkg/disk/extension"
	"tributary.dev/tributary/tests/vm"
)

// extended is a small image with one extension, and firmware that trusts its keys.
type extended struct {
	profile hwprofiles.Profile
	dir     string
	kernel  string
	set     *keys.Set
	vars    []byte
}

// extend builds one, whose kernel says all that it does.
func extend(t *testing.T, ctx context.Context, extension, driver string, nics ...hwprofiles.NIC) extended {
	t.Helper()
	p, err := hwprofiles.Load("generic-amd64")
	if err != nil {
		t.Fatal(err)
	}
	p.Extensions, p.GPU.Drivers, p.Firmware, p.Microcode, p.Partitions.Data = []string{extension}, []string{driver}, nil, nil, 256
	if len(nics) > 0 {
		p.NICs = nics
	}
	keyDir, dir := t.TempDir(), t.TempDir()
	m, err := forms.Build(ctx, forms.Config{Root: root, Profile: p, Version: "1.0", Counter: 1, Time: day, Out: dir, Keys: keyDir, Cache: filepath.Join(root, ".cache"), Quick: true,
		Cmdline: []string{"loglevel=7"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	set, err := keys.LoadOrCreate(keyDir)
	if err != nil {
		t.Fatal(err)
	}
	template, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Skipf("needs ovmf: run tests/install-deps vm: %v", err)
	}
	vars, err := set.OVMFVars(template, day)
	if err != nil {
		t.Fatal(err)
	}
	return extended{p, dir, m.Kernel, set, vars}
}

// An extension of the release is mounted and its driver loads, with Secure Boot on; one with a changed byte is refused
// by name, in a root that is otherwise whole and signed, and the box comes up without it. The box has a card that can
// be shared: the profile's virtual functions are made of it.
func TestExtension(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("builds an image and boots two machines: run make vmtest")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	made := extend(t, ctx, "gpu-virtual", "cirrus", hwprofiles.NIC{Drivers: []string{"igb"}, Role: hwprofiles.Site, VirtualFunctions: 2}, hwprofiles.NIC{Role: hwprofiles.Any})
	p, set := made.profile, made.set
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(made.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	content := read(forms.RootFile)
	// The image's release file lies in it as it is.
	mark := []byte("VERSION_ID=\"1.0\"\nKERNEL=")
	if bytes.Count(content, mark) != 1 {
		t.Fatalf("%d marks of the extension in the root", bytes.Count(content, mark))
	}
	whole := vouch(t, set.Signer(), read, content)
	content[bytes.Index(content, mark)+len(mark)] ^= 1
	altered := vouch(t, set.Signer(), read, content)
	for _, c := range []struct {
		name string
		release
		want, never string
	}{
		{"whole", whole, `extension gpu-virtual: driver cirrus`, `extension-refused`},
		{"altered", altered, `warning extension-refused: the extension gpu-virtual is not used: .*` + extension.ErrRefused.Error(), `extension gpu-virtual: driver`},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, err := disk.Write(filepath.Join(t.TempDir(), "disk.raw"), disk.Layout{
				Profile: p.Name, Arch: p.Arch, Sizes: p.Partitions, Time: day, Root: c.root, Verity: c.tree, RootHash: c.hash, UKI: c.uki, BootManager: c.manager, Install: 1,
			})
			if err != nil {
				t.Fatal(err)
			}
			store := filepath.Join(t.TempDir(), "vars.fd")
			if err := os.WriteFile(store, made.vars, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := vm.Start(ctx, vm.Spec{Name: "box", Arch: "amd64", MemoryMiB: 768, CPUs: 2, SecureBoot: true, Vars: store, NoReboot: true, Life: patience, Disks: []vm.Disk{{Path: image.Path}},
				Extra: []string{"-netdev", "user,id=shared,restrict=on", "-device", "pcie-root-port,id=port9,chassis=9,slot=9", "-device", "igb,netdev=shared,bus=port9,romfile="}})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			// In any order: the extension is read beside the rest of boot, and the kernel's log goes on when the console begins.
			wanted := []string{comesUp, c.want, `: 2 virtual functions`}
			for len(wanted) > 0 {
				if _, err := m.Expect(ctx, strings.Join(wanted, "|")); err != nil {
					t.Fatalf("%v\n%s", err, m.Console.Tail(60))
				}
				text := m.Console.String()
				wanted = slices.DeleteFunc(wanted, func(p string) bool { return regexp.MustCompile(p).MatchString(text) })
			}
			if regexp.MustCompile(c.never).MatchString(m.Console.String()) {
				t.Errorf("the console says %s", c.never)
			}
		})
	}
}
