package machines

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/tests/vm"
)

// flowModules are what rules for packets take of the kernel, and what makes traffic for them.
var flowModules = []string{"crc32c_generic", "veth", "bridge", "bonding", "8021q", "vxlan", "ip_gre", "gtp", "sch_ingress", "cls_flower", "act_mirred", "act_vlan", "act_tunnel_key", "act_police",
	"act_gact", "act_pedit", "act_csum", "act_nat", "psample"}

// TestFlows has flow policies steer, tag, limit, copy and drop real traffic between
// namespaces, in a guest whose kernel has the classifier that the host's may lack, and put rules into
// a simulated card until its table is full.
func TestFlows(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots a machine: run make vmtest")
	}
	t.Parallel()
	inGuest(t, "flows", "../../pkg/edge/network/flow", flowModules, netdevsim(t), `^(TestSteer|TestMirrorAndPolice|TestVLAN|TestTunnels|TestBreakout|TestGTPU|TestNoGap|TestOnBond|TestHardware|TestCardIsGivenBack)$`, 10)
}

// netdevsim is the kernel's simulated card, built for the kernel of the lock so that it takes rules.
func netdevsim(t *testing.T) map[string][]byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../netdevsim/build")
	cmd.Stderr = os.Stderr
	path, err := cmd.Output()
	if err != nil {
		t.Fatalf("building netdevsim: %v", err)
	}
	object, err := os.ReadFile(strings.TrimSpace(string(path)))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"netdevsim": object}
}

// inGuest runs a package's tests in a guest with Debian's full kernel and some of its modules, and more
// of others'; programs are what they run. None may be skipped.
func inGuest(t *testing.T, name, pkg string, names []string, more map[string][]byte, run string, atLeast int, programs ...initramfs.File) {
	t.Helper()
	const arch = "amd64"
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	files := []initramfs.File{
		{Path: "init", Mode: 0o755, Data: compiled(t, "build", "./inside")},
		{Path: "program.test", Mode: 0o755, Data: compiled(t, "test", "-c", pkg)},
		{Path: "run.txt", Mode: 0o644, Data: []byte("/program.test\n-test.v\n-test.timeout=40m\n-test.run=" + run + "\n")},
	}
	kernel, tree := debian(t, ctx, arch, names)
	for i := range tree {
		if tree[i].Path == "modules/order" {
			for m := range more {
				tree[i].Data = append(tree[i].Data, m+"\n"...)
			}
		}
	}
	for m, object := range more {
		tree = append(tree, initramfs.File{Path: "modules/" + m, Mode: 0o644, Data: object})
	}
	files = append(files, tree...)
	programs = slices.DeleteFunc(programs, func(p initramfs.File) bool { // a library that both bring is the same
		return slices.ContainsFunc(files, func(f initramfs.File) bool { return f.Path == p.Path })
	})
	image, initrd := onDisk(t, kernel, append(files, programs...))
	m := power(t, ctx, vm.Spec{Name: name, Arch: arch, MemoryMiB: 1024 + 64*len(programs), Kernel: image, Initrd: initrd, Cmdline: vm.SerialCmdline(arch) + " quiet", NoReboot: true, Life: 4 * patience})
	found, err := m.Expect(ctx, `inside: ended (\d+)`)
	if err != nil {
		t.Fatal(err)
	}
	said := m.Console.String()
	keepCapture(t, name+".txt", said)
	passed := len(regexp.MustCompile(`(?m)^--- PASS: Test`).FindAllString(said, -1))
	if found[1] != "0" || strings.Contains(said, "--- SKIP") || passed < atLeast {
		t.Errorf("%d of the guest's %d tests pass:\n%s", passed, atLeast, said)
	}
}

// TestSwitchdev has a simulated card follow a policy of its switch: mode, functions behind ports, scalable
// functions, rates and groups, also after a reset of its driver and an unplugging; firmware and drivers that fail
// are told of.
func TestSwitchdev(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots a machine: run make vmtest")
	}
	t.Parallel()
	inGuest(t, "switchdev", "../../pkg/edge/network/switchdev", []string{"psample"}, netdevsim(t), `^(TestCard|TestFirmware)$`, 2)
}

// TestDPU has a core, a host's edged below it and a DPU's below that, each in a network of its own, in a guest whose simulated card is
// the DPU's: its policies at the ports of the host's functions, the host's owner against them, and one that cuts the DPU off.
func TestDPU(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots a machine: run make vmtest")
	}
	t.Parallel()
	var programs []initramfs.File
	for _, name := range []string{"cored", "edged", "edged-log", "edgectl"} {
		programs = append(programs, initramfs.File{Path: "bin/" + name, Mode: 0o755, Data: compiled(t, "build", "-ldflags=-s -w", "../../cmd/"+name)})
	}
	programs = append(programs, initramfs.File{Path: "bin/hostile", Mode: 0o755, Data: compiled(t, "build", "-ldflags=-s -w", "../hostile")})
	programs = withPrograms(t, t.Context(), programs, "usr/bin", "ip", "nsenter", "curl", "containerd", "runc")
	inGuest(t, "dpu", "../scenario", flowModules, netdevsim(t), `^TestDPU$`, 1, programs...)
}
