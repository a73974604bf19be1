package machines

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

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
		{"3", `edged-initrd: `},
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
