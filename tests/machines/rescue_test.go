package machines

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/tests/vm"
)

// A box that does not find its root says so, helps the person at its console, and starts
// anew by itself when nobody is there.
func TestRescue(t *testing.T) {
	spec := flashed(t, runtime.GOARCH, "")
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	built := filepath.Dir(needImage(t, runtime.GOARCH))
	spec.Kernel, spec.Initrd, spec.SecureBoot, spec.TPM = filepath.Join(built, "vmlinuz"), filepath.Join(built, "initrd.cpio.zst"), false, ""
	spec.Cmdline = fmt.Sprintf("%s quiet roothash=%s tributary.diskwait=2 tributary.rescuewait=120", vm.SerialCmdline(runtime.GOARCH), strings.Repeat("ab", 32))
	m := power(t, ctx, spec)
	for _, c := range []struct{ key, says string }{
		{"", `Tributary cannot start its system: disk: no disk holds a root`},
		{"", `or the box starts anew`},
		{"1", `root-a-verity`},
		{"x", ``}, // no key of the menu
		{"2", `slot a: reading … whole`},
		{"3", `edged: `},
		{"4", `Tributary cannot start its system`}, // once more: it has started anew
	} {
		if c.key != "" {
			if err := m.Send(c.key); err != nil {
				t.Fatal(err)
			}
		}
		if c.says != "" {
			expect(t, ctx, m, c.says)
		}
	}
	for _, says := range []string{"login:", "~ #"} {
		if strings.Contains(m.Console.String(), says) {
			t.Errorf("the rescue shows %q", says)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}

	spec.Name = "alone"
	spec.Cmdline = strings.Replace(spec.Cmdline, "rescuewait=120", "rescuewait=2", 1)
	alone := power(t, ctx, spec)
	expect(t, ctx, alone, `The box starts anew`)
	expect(t, ctx, alone, `Tributary cannot start its system`)
}

// TestRescueReinstall: a box whose only system is damaged offers its rescue with Secure Boot
// on, finds the damage, and starts the installer that is on a second medium, once, from its menu.
func TestRescueReinstall(t *testing.T) {
	spec := flashed(t, runtime.GOARCH, "")
	medium := filepath.Join(filepath.Dir(needImage(t, runtime.GOARCH)), "installer.iso")
	if _, err := os.Stat(medium); err != nil {
		t.Skipf("needs %s: run make image PROFILE=%s", medium, Profiles[runtime.GOARCH])
	}
	damage(t, spec.Disks[0].Path)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	spec.Disks[0].BootIndex = 1 // the box's own disk comes first
	// The profile vm has no drivers for USB in its initramfs: its stick is a second disk.
	spec.Disks = append(spec.Disks, vm.Disk{Path: medium, ReadOnly: true})
	m := power(t, ctx, spec)
	for _, c := range []struct{ key, says string }{
		{"", `Tributary cannot start its system: `},
		{"", `or the box starts anew`},
		{"2", `slot a: reading … [^w\n]`},
		{"3", `edged: `},
		{"6", `The installer on .* is started`},
		{"", `installing onto this box`},
		{"", `The image lies on`},
	} {
		if c.key != "" {
			if err := m.Send(c.key); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, ctx, m, c.says)
	}
	keepCapture(t, "rescue.txt", m.Console.String())
}

// damage makes the hash tree of slot A one that does not fit.
func damage(t *testing.T, disk string) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, _, err := gpt.Read(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	n, p := table.Find("root-a-verity")
	if n == 0 {
		t.Fatal("the disk has no slot A")
	}
	if _, err := f.WriteAt(make([]byte, 64<<10), table.Offset(p)); err != nil {
		t.Fatal(err)
	}
}
