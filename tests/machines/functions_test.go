package machines

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/vm"
)

// functionBox is a guest with a card that has virtual functions, and edged's rooms.
type functionBox struct {
	t   *testing.T
	ctx context.Context
	m   *vm.Machine
}

// do sends lines and waits until each is done.
func (b *functionBox) do(lines ...string) {
	b.t.Helper()
	for _, line := range lines {
		if err := b.m.Send(line + "\n"); err != nil {
			b.t.Fatal(err)
		}
		found, err := b.m.Expect(b.ctx, `functions: (done `+line+`\b|failed: .*)|inside: ended \d+`)
		if err != nil {
			b.t.Fatal(err)
		}
		if !strings.Contains(found[0], "done") {
			b.t.Fatalf("%s: %s", line, found[0])
		}
	}
}

// off ends the guest, in order.
func (b *functionBox) off() {
	b.t.Helper()
	if err := b.m.Send("off\n"); err != nil {
		b.t.Fatal(err)
	}
	expect(b.t, b.ctx, b.m, `inside: ended 0`)
}

// TestFunctions has two guests, whose igb cards are connected, run a container each on a
// virtual function, by edged's own rooms and a real containerd. In rounds somebody is killed
// (edged, containerd, the container, all of them, the container's namespace, or one after the
// other at any moment), the app goes and comes, or the card gets another number of functions:
// each time the containers reach each other again, and every function is in a container or at
// home under its own name and address. In the end the card is as it was found. TRIBUTARY_ROUNDS
// says how many rounds; make functions does 200.
func TestFunctions(t *testing.T) {
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("TRIBUTARY_ROUNDS")); err == nil && n > 0 {
		rounds = n
	}
	a, b := functionPair(t, 4*patience+time.Duration(rounds)*30*time.Second)
	began := time.Now()
	deeds := [][]string{
		{"kill edge"}, {"kill containerd"}, {"kill container"}, {"kill both"}, {"kill namespace"}, {"storm"},
		{"spoil", "want 2 none 192.0.2.1/24", "home", "want 2 app 192.0.2.1/24"},
		// Another number: the user is ended first, and runs again on what is there then.
		{"want 3 app 192.0.2.1/24", "functions 3 igbvf"}, {"storm"}, {"want 2 app 192.0.2.1/24", "storm", "functions 2 igbvf"},
	}
	for i := range rounds {
		deed := slices.Clone(deeds[i%len(deeds)])
		for j := range deed {
			if deed[j] == "storm" {
				deed[j] = "storm " + strconv.Itoa(i)
			}
		}
		a.do(append(deed, "inside", "reach 192.0.2.2:8080")...)
		b.do("reach 192.0.2.1:8080")
		t.Logf("round %d, %.0f s: %s", i+1, time.Since(began).Seconds(), strings.Join(deed, ", "))
	}
	a.do("want 3 none 192.0.2.1/24", "functions 3 igbvf", "home", "want", "found")
	b.do("inside")
	a.off()
	b.off()
}

// TestFunctionFigures measures a container's network on a virtual function against a namespace on a bridge, in the same two guests, in
// turns. TRIBUTARY_FIGURES names a file for what it measured: make bench BENCH=sriov.
func TestFunctionFigures(t *testing.T) {
	a, b := functionPair(t, 4*patience)
	a.do("plain 1 2")
	b.do("plain 2 1", "answer")
	if err := a.m.Send("bench 192.0.2.2 198.51.102.2\n"); err != nil {
		t.Fatal(err)
	}
	found, err := a.m.Expect(a.ctx, `functions: (figure (\{.*\})\.|failed: .*)`)
	if err != nil || found[2] == "" {
		t.Fatal(found, err)
	}
	t.Log(found[2])
	var figures map[string]map[string][]float64
	if err := json.Unmarshal([]byte(found[2]), &figures); err != nil || len(figures) != 2 {
		t.Error(figures, err)
	}
	if file := os.Getenv("TRIBUTARY_FIGURES"); file != "" {
		if err := os.WriteFile(file, []byte(found[2]), 0o644); err != nil {
			t.Error(err)
		}
	}
	a.off()
	b.off()
}

// TestFunctionProgram gives a container a function by vfio-pci, an isolated processor and huge pages. A driver in the
// container sends frames with them and gets frames; then the card is given back as it was found.
func TestFunctionProgram(t *testing.T) {
	ctx, cancel := functionContext(t, 4*patience)
	defer cancel()
	image, initrd := functionImage(t, ctx, "box", "with its program")
	spec := functionGuest("functions-program", image, initrd, "02:00:00:00:0c:00", "user,id=cable,ipv6=off,restrict=on", 4*patience)
	spec.CPUs, spec.Cmdline = 2, spec.Cmdline+" isolcpus=1 hugepagesz=2M hugepages=8"
	b := &functionBox{t, ctx, power(t, ctx, spec)}
	if _, err := b.m.Expect(ctx, `functions: ready`); err != nil {
		t.Fatal(err)
	}
	b.do("want 2 none 192.0.2.1/24", "functions 2 igbvf", "want 2 vfio 192.0.2.1/24", "echo", "program")
	b.do("kill edge", "program", "kill container", "program", "want 2 none 192.0.2.1/24", "functions 2 igbvf", "home", "want", "found")
	b.off()
}

// TestFunctionReboot has two services hold a function by vfio-pci, an isolated processor and huge pages each, and a third
// wait for the same. Whether the guest starts anew by its own word or is reset while they run: the two get what they had,
// as their programs see it, and the third has nothing. What the box keeps lies on the guest's disk.
func TestFunctionReboot(t *testing.T) {
	ctx, cancel := functionContext(t, 6*patience)
	defer cancel()
	disk := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", disk, "1G").CombinedOutput(); err != nil {
		t.Fatalf("making a disk: %v: %s", err, out)
	}
	image, initrd := functionImage(t, ctx, "box", "with its program")
	spec := functionGuest("functions-reboot", image, initrd, "02:00:00:00:0d:00", "user,id=cable,ipv6=off,restrict=on", 6*patience)
	spec.CPUs, spec.NoReboot, spec.Disks = 4, false, []vm.Disk{{Path: disk}}
	spec.Cmdline += " isolcpus=2,3 hugepagesz=2M hugepages=8"
	b := &functionBox{t, ctx, power(t, ctx, spec)}
	held := func() string {
		t.Helper()
		expect(t, ctx, b.m, `functions: ready`)
		b.do("echo", "held 2")
		all := regexp.MustCompile(`functions: held (.*)\.`).FindAllStringSubmatch(b.m.Console.String(), -1)
		return all[len(all)-1][1]
	}
	expect(t, ctx, b.m, `functions: ready`)
	b.do("want 2 none 192.0.2.1/24", "functions 2 igbvf", "want 2 two 192.0.2.1/24")
	b.do("echo", "held 2", "want 2 three 192.0.2.1/24", "held 2")
	all := regexp.MustCompile(`functions: held (.*)\.`).FindAllStringSubmatch(b.m.Console.String(), -1)
	first := all[len(all)-1][1]
	t.Log(first)
	each := regexp.MustCompile(`^ran: function (\S+), processor ([23]), 4194304 bytes of huge pages; second: function (\S+), processor ([23]), 4194304 bytes of huge pages$`).FindStringSubmatch(first)
	if each == nil || each[1] == each[3] || each[2] == each[4] {
		t.Fatalf("before the reboot they hold %s", first)
	}
	for _, round := range []struct {
		what  string
		start func() error
	}{
		{"started anew", func() error { return b.m.Send("reboot\n") }},
		{"reset", func() error { return b.m.Do(ctx, "system_reset", nil, nil) }},
		{"reset again", func() error { return b.m.Do(ctx, "system_reset", nil, nil) }},
	} {
		began := time.Now()
		if err := round.start(); err != nil {
			t.Fatal(err)
		}
		if now := held(); now != first {
			t.Errorf("%s, they hold %s", round.what, now)
		}
		t.Logf("%s: all run again after %.0f s", round.what, time.Since(began).Seconds())
	}
	b.do("want 2 none 192.0.2.1/24", "functions 2 igbvf", "home", "want", "found")
	b.off()
}

// functionContext is that of a test of virtual functions, or the reason that there is none.
func functionContext(t *testing.T, life time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots machines: run make vmtest")
	}
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why)
	}
	t.Parallel()
	return context.WithTimeout(t.Context(), life)
}

// functionPair is two guests with a container each, 192.0.2.1 and 192.0.2.2, that reach each other by virtual functions.
func functionPair(t *testing.T, life time.Duration) (a, b *functionBox) {
	t.Helper()
	ctx, cancel := functionContext(t, life)
	t.Cleanup(cancel)
	image, initrd := functionImage(t, ctx, "box")
	cable := filepath.Join(t.TempDir(), "cable")
	boxes := make([]*functionBox, 2)
	for i, way := range []string{"server=on", "server=off,reconnect-ms=500"} {
		spec := functionGuest(fmt.Sprint("functions-", i+1), image, initrd, fmt.Sprint("02:00:00:00:0a:0", i+1), "stream,id=cable,addr.type=unix,addr.path="+cable+","+way, life)
		boxes[i] = &functionBox{t, ctx, power(t, ctx, spec)}
	}
	for i, box := range boxes {
		if _, err := box.m.Expect(ctx, `functions: ready`); err != nil {
			t.Fatal(err)
		}
		at := fmt.Sprintf(" 192.0.2.%d/24", i+1)
		box.do("want 2 none"+at, "functions 2 igbvf", "want 2 app"+at, "inside")
	}
	boxes[0].do("reach 192.0.2.2:8080")
	return boxes[0], boxes[1]
}

// functionGuest is a machine with an igb at the end of a cable, and an IOMMU.
func functionGuest(name, image, initrd, mac, cable string, life time.Duration) vm.Spec {
	return vm.Spec{Name: name, Arch: "amd64", MemoryMiB: 1536, Kernel: image, Initrd: initrd, NoReboot: true, Life: life, Cmdline: vm.SerialCmdline("amd64") + " quiet intel_iommu=on",
		Extra: []string{"-machine", "kernel-irqchip=split", "-device", "intel-iommu,intremap=on", "-device", "pcie-root-port,id=rp1,chassis=1,slot=1",
			"-netdev", cable, "-device", "igb,id=card,bus=rp1,netdev=cable,mac=" + mac + ",romfile="}}
}

// functionImage is a kernel with the modules that this wants, and an initramfs with the
// programs of the machine that the test runs on: containerd, runc, and ours.
func functionImage(t *testing.T, ctx context.Context, args ...string) (image, initrd string) {
	t.Helper()
	files := []initramfs.File{
		{Path: "init", Mode: 0o755, Data: compiled(t, "build", "./inside")},
		{Path: "functions", Mode: 0o755, Data: compiled(t, "build", "-ldflags=-s -w", "./functions")},
		{Path: "run.txt", Mode: 0o644, Data: []byte("/functions\n" + strings.Join(args, "\n") + "\n")},
	}
	kernel, more := debian(t, ctx, "amd64", []string{"igb", "igbvf", "vfio_pci", "vfio_iommu_type1", "veth", "bridge", "overlay", "virtio_pci", "virtio_blk", "ext4", "crc32c_generic"})
	return onDisk(t, kernel, withContainers(t, ctx, append(files, more...)))
}
