package secureboot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tributary.dev/tributary/image/keys"
	ours "tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/tpm/eventlog"
	"tributary.dev/tributary/tests/vm"
)

// TestForetold: from the log of a real firmware's start, PCR 7 is foretold bit for bit, for the same start and for one with
// another key in db. TRIBUTARY_RECORD names a folder to keep the logs in, as pkg/tpm/eventlog has them.
func TestForetold(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") == "" {
		t.Skip("boots two machines: run make vmtest")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	p := build(t, ctx)
	dir := t.TempDir()
	set, err := keys.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Skipf("needs ovmf: run tests/install-deps vm: %v", err)
	}
	p = parts{sign(t, set.Signer(), p.uki), sign(t, set.Signer(), p.manager)}
	start := func(name string, set *keys.Set) (log []byte, pcr7 string) {
		t.Helper()
		vars, err := set.OVMFVars(empty, day)
		if err != nil {
			t.Fatal(err)
		}
		m := boot(t, ctx, p, vars, "guest: ready")
		if m.TPM == "" {
			t.Skip("needs swtpm: run tests/install-deps vm")
		}
		log = security(t, ctx, m, "tpm0/binary_bios_measurements")
		pcr7 = show(t, ctx, m, "/sys/class/tpm/tpm0/pcr-sha256/7")
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if to := os.Getenv("TRIBUTARY_RECORD"); to != "" {
			if err := os.WriteFile(filepath.Join(to, name+"-"+pcr7[:16]), log, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return log, pcr7
	}
	log, now := start("one-key", set)
	more, err := keys.Prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, then := start("two-keys", more)

	events, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	list := keys.List(set.Owner(), set.Certificates()...)
	by, err := ours.LetBy(list, p.uki)
	if err != nil || by == nil {
		t.Fatal("who signed it?", err)
	}
	boots := [][]byte{by, by}
	for what, c := range map[string]struct {
		change eventlog.Change
		want   string
	}{
		"the same":       {eventlog.Change{Booted: boots, Boots: boots}, now},
		"another key in": {eventlog.Change{Booted: boots, Boots: boots, Variables: map[string][]byte{"db": keys.List(more.Owner(), more.Certificates()...)}}, then},
	} {
		if got, err := eventlog.Foretell(events, c.change); err != nil || fmt.Sprintf("%x", got) != c.want {
			t.Errorf("%s: %x, and it is %s: %v", what, got, c.want, err)
		}
	}
	if now == then || !bytes.Contains(log, []byte("Spec ID Event03")) {
		t.Error("the machines do not measure their keys")
	}
}

// show reads a file of one line in the guest.
func show(t *testing.T, ctx context.Context, m *vm.Machine, file string) string {
	t.Helper()
	if err := m.Send("show " + file + "\n"); err != nil {
		t.Fatal(err)
	}
	found, err := m.Expect(ctx, "guest: "+regexp.QuoteMeta(file)+`: ([0-9A-Fa-f]{64})`)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(found[1])
}
