package machines

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/tests/vm"
)

// TestRealtime starts a guest of two NUMA nodes with the real-time kernel, which keeps two of four processors free:
// interrupts and the kernel's work leave them, huge pages are put on their node, a container that claims both gets
// them, over ends of edged and containerd, and all is given back as it was found. How late a thread wakes up there is
// measured against the same beside all containers; TRIBUTARY_FIGURES=FILE has that done often, and keeps what was
// measured (make bench BENCH=realtime).
func TestRealtime(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots a machine: run make vmtest")
	}
	t.Parallel()
	const arch = "amd64"
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	runs, figures := "1", os.Getenv("TRIBUTARY_FIGURES")
	if figures != "" {
		runs = "15"
	}
	files := []initramfs.File{
		{Path: "init", Mode: 0o755, Data: compiled(t, "build", "./inside")},
		{Path: "realtime", Mode: 0o755, Data: compiled(t, "build", "./realtime")},
		{Path: "run.txt", Mode: 0o644, Data: []byte("/realtime\n" + runs + "\n")},
	}
	kernel, more := debianOf(t, ctx, arch, []string{"nvme", "e1000e", "overlay"}, "kernel-rt", "test-realtime")
	image, initrd := onDisk(t, kernel, withContainers(t, ctx, append(files, more...)))
	m := power(t, ctx, vm.Spec{Name: "realtime", Arch: arch, MemoryMiB: 1536, CPUs: 4, Kernel: image, Initrd: initrd, NoReboot: true, Life: 4 * patience,
		Cmdline: vm.SerialCmdline(arch) + " quiet isolcpus=managed_irq,domain,2-3 nohz_full=2-3 rcu_nocbs=2-3 hugepagesz=2M hugepages=0:8,1:8",
		Extra: []string{"-object", "memory-backend-ram,id=m0,size=768M", "-object", "memory-backend-ram,id=m1,size=768M",
			"-numa", "node,nodeid=0,cpus=0-1,memdev=m0", "-numa", "node,nodeid=1,cpus=2-3,memdev=m1", "-numa", "dist,src=0,dst=1,val=21",
			"-netdev", "user,id=more,ipv6=off,restrict=on", "-device", "e1000e,netdev=more,romfile=",
			"-blockdev", "driver=null-co,node-name=n0,size=1073741824,read-zeroes=on", "-device", "nvme,drive=n0,serial=first"}})
	found, err := m.Expect(ctx, `inside: ended (\d+)`)
	if err != nil {
		t.Fatal(err)
	}
	said := m.Console.String()
	keepCapture(t, "realtime.txt", said)
	if found[1] != "0" || strings.Contains(said, "WRONG") || strings.Count(said, "realtime: well") < 20 {
		t.Errorf("the guest said:\n%s", said)
	}
	figure := regexp.MustCompile(`realtime: figure (\{.*\})\.`).FindStringSubmatch(said)
	if len(figure) != 2 {
		t.Fatal("the guest measured nothing")
	}
	t.Logf("microseconds late: %s", figure[1])
	if figures != "" {
		if err := os.WriteFile(figures, []byte(figure[1]), 0o644); err != nil {
			t.Error(err)
		}
	}
}
