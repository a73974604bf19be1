package machines

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tributary.dev/tributary/image/initramfs"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/vm"
)

// TestHardware changes the hardware of a guest while it runs: virtual functions of an igb
// and of an NVMe disk are made and removed, its cable is pulled, a network card and an NVMe disk are plugged in
// and out. Its inventory says so, by the kernel's own word. TRIBUTARY_RECORD=FILE keeps what
// the guest was seen to be, as a recording for pkg/edge/hardware/testdata.
func TestHardware(t *testing.T) {
	if os.Getenv("TRIBUTARY_VMTEST") != "1" {
		t.Skip("boots a machine: run make vmtest")
	}
	t.Parallel()
	const arch = "amd64"
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	files := []initramfs.File{
		{Path: "init", Mode: 0o755, Data: compiled(t, "build", "./inside")},
		{Path: "looks", Mode: 0o755, Data: compiled(t, "build", "./looks")},
		{Path: "run.txt", Mode: 0o644, Data: []byte("/looks\n")},
	}
	kernel, more := debian(t, ctx, arch, []string{"igb", "igbvf", "e1000e", "nvme", "i6300esb", "ahci", "sd_mod"})
	image, initrd := onDisk(t, kernel, append(files, more...))
	spec := vm.Spec{Name: "hardware", Arch: arch, MemoryMiB: 1024, CPUs: 2, Kernel: image, Initrd: initrd, NoReboot: true, Watchdog: true, Life: 4 * patience,
		Cmdline: vm.SerialCmdline(arch) + " quiet intel_iommu=on isolcpus=1 hugepagesz=2M hugepages=16",
		Extra: []string{"-machine", "kernel-irqchip=split", "-device", "intel-iommu,intremap=on",
			"-object", "memory-backend-ram,id=m0,size=512M", "-object", "memory-backend-ram,id=m1,size=512M",
			"-numa", "node,nodeid=0,cpus=0,memdev=m0", "-numa", "node,nodeid=1,cpus=1,memdev=m1", "-numa", "dist,src=0,dst=1,val=21",
			"-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "pcie-root-port,id=rp2,chassis=2,slot=2", "-device", "pcie-root-port,id=rp3,chassis=3,slot=3",
			"-device", "pcie-root-port,id=rp4,chassis=4,slot=4",
			"-netdev", "user,id=cable,ipv6=off,restrict=on", "-device", "igb,id=card,bus=rp1,netdev=cable,mac=02:00:00:00:10:00,romfile=",
			"-netdev", "user,id=more,ipv6=off,restrict=on",
			"-blockdev", "driver=null-co,node-name=n0,size=1073741824,read-zeroes=on", "-device", "nvme-subsys,id=sub",
			"-device", "nvme,id=disk,bus=rp4,serial=first,subsys=sub,sriov_max_vfs=2,max_ioqpairs=8,msix_qsize=9,sriov_vq_flexible=4,sriov_vi_flexible=2", "-device", "nvme-ns,drive=n0,bus=disk,nsid=1",
			"-blockdev", "driver=null-co,node-name=n1,size=2147483648,read-zeroes=on",
			"-blockdev", "driver=null-co,node-name=n2,size=1073741824,read-zeroes=on", "-device", "ide-hd,bus=ide.0,drive=n2,serial=third,rotation_rate=1"}}
	m := power(t, ctx, spec)
	says := func(pattern string) []string {
		t.Helper()
		found, err := m.Expect(ctx, pattern)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(strings.TrimSpace(found[0]))
		return found
	}
	send := func(format string, args ...any) {
		t.Helper()
		if err := m.Send(fmt.Sprintf(format+"\n", args...)); err != nil {
			t.Fatal(err)
		}
	}
	do := func(command string, arguments map[string]any) {
		t.Helper()
		if err := m.Do(ctx, command, arguments, nil); err != nil {
			t.Fatal(err)
		}
	}
	// unpack waits for a value that the guest shows.
	unpack := func(what string, into any) {
		t.Helper()
		found, err := m.Expect(ctx, `looks: `+what+` ([A-Za-z0-9+/=]+)\.`)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := base64.StdEncoding.DecodeString(found[1])
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	show := func() (i api.Inventory) {
		t.Helper()
		send("show")
		unpack("inventory", &i)
		return i
	}

	says(`looks: \+ hw/nodes .*`)
	says(`looks: told`)
	first := seen(t, show, "two disks", func(i *api.Inventory) bool { return len(i.Disks) == 2 })
	checkFirst(t, &first)
	card := first.NetDevices[0]

	send("up %s", card.Name)
	says(`looks: ~ hw/link/` + card.Name + ` .*`)
	send("vfs %s 2", card.PCI)
	says(`looks: ~ hw/pci/0000:[0-9a-f]{2} .*|looks: \+ hw/net/.*`)
	says(`looks: told`)
	i := seen(t, show, "two virtual functions with their interfaces", func(i *api.Inventory) bool { return count(i, card.PCI) == 2 && len(i.NetDevices) == 3 })
	for _, f := range i.PCI {
		if f.Address == card.PCI && (f.VirtualFunctions != 2 || f.MaxVirtualFunctions != 7) {
			t.Errorf("the card: %+v", f)
		}
		if f.Physical != "" && (f.Driver != "igbvf" || f.IOMMUGroup == nil) {
			t.Errorf("a virtual function: %+v", f)
		}
	}
	if file := os.Getenv("TRIBUTARY_RECORD"); file != "" {
		send("record")
		var recording map[string]any
		unpack("recording", &recording)
		b, err := json.MarshalIndent(recording, "", " ")
		if err == nil {
			err = os.WriteFile(file, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
	do("set_link", map[string]any{"name": "card", "up": false})
	says(`looks: ~ hw/link/` + card.Name + ` .*`)
	do("set_link", map[string]any{"name": "card", "up": true})
	says(`looks: ~ hw/link/` + card.Name + ` .*`)
	send("vfs %s 0", card.PCI)
	seen(t, show, "no virtual function", func(i *api.Inventory) bool { return count(i, card.PCI) == 0 && len(i.NetDevices) == 1 })

	disk := first.Disks[0].PCI
	send("vfs %s 2 bare", disk) // a driver would wait in vain: nobody gave them queues
	i = seen(t, show, "two virtual functions of a disk", func(i *api.Inventory) bool { return count(i, disk) == 2 })
	for _, f := range i.PCI {
		if f.Address == disk && (f.VirtualFunctions != 2 || f.MaxVirtualFunctions != 2 || f.Driver != "nvme") {
			t.Errorf("the disk: %+v", f)
		}
		if f.Physical == disk && (f.Driver != "" || f.Class != "010802" || f.IOMMUGroup == nil) {
			t.Errorf("a virtual function of the disk: %+v", f)
		}
	}
	if len(i.Disks) != 2 {
		t.Errorf("disks: %+v", i.Disks)
	}
	send("vfs %s 0", disk)
	seen(t, show, "no virtual function of the disk", func(i *api.Inventory) bool { return count(i, disk) == 0 })

	do("device_add", map[string]any{"driver": "e1000e", "id": "late", "bus": "rp2", "netdev": "more", "mac": "02:00:00:00:20:00", "romfile": ""})
	says(`looks: \+ hw/net/\S+ .*`)
	do("device_add", map[string]any{"driver": "nvme", "id": "later", "bus": "rp3", "drive": "n1", "serial": "second"})
	says(`looks: \+ hw/disk/nvme1n1 .*`)
	i = show()
	if len(i.Disks) != 3 || i.Disks[1].Serial != "second" || i.Disks[1].Bytes != 2<<30 || i.Disks[1].Wear == nil {
		t.Errorf("disks: %+v", i.Disks)
	}
	do("device_del", map[string]any{"id": "later"})
	says(`looks: - hw/disk/nvme1n1, .*`)
	do("device_del", map[string]any{"id": "late"})
	says(`looks: - hw/net/\S+, .*`)
	howSoon(t, m.Console.String())
	send("off")
	says(`inside: ended 0`)
}

// howSoon tells how long after the kernel's word the inventory was another. A look folds what comes within 0.3 s, and
// is 2 s after the one before at the soonest.
func howSoon(t *testing.T, said string) {
	t.Helper()
	var all []int
	for _, found := range regexp.MustCompile(`B, (\d+) ms after the kernel's word|hw/\S+, (\d+) ms after`).FindAllStringSubmatch(said, -1) {
		ms, err := strconv.Atoi(found[1] + found[2])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ms)
	}
	if len(all) == 0 {
		t.Fatal("no change was told")
	}
	slices.Sort(all)
	t.Logf("%d changes were told, after a median of %d ms and at most %d ms", len(all), all[len(all)/2], all[len(all)-1])
}

// seen waits until the inventory that a guest shows is as wanted.
func seen(t *testing.T, show func() api.Inventory, what string, ok func(*api.Inventory) bool) api.Inventory {
	t.Helper()
	for {
		if i := show(); ok(&i) {
			return i
		}
		if t.Context().Err() != nil {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// count counts the virtual functions of a card.
func count(i *api.Inventory, physical string) (n int) {
	for _, f := range i.PCI {
		if f.Physical == physical {
			n++
		}
	}
	return n
}

// checkFirst holds the guest's inventory against the machine that was asked for.
func checkFirst(t *testing.T, i *api.Inventory) {
	t.Helper()
	if len(i.NetDevices) != 1 || i.NetDevices[0].Driver != "igb" || i.NetDevices[0].MAC != "02:00:00:00:10:00" || i.NetDevices[0].PTP == "" || i.NetDevices[0].PCI == "" {
		t.Fatalf("network: %+v", i.NetDevices)
	}
	if len(i.Nodes) != 2 || len(i.Nodes[0].HugePages) != 1 || len(i.Nodes[1].Distances) != 2 || i.Nodes[1].Distances[0] != 21 {
		t.Errorf("nodes: %+v", i.Nodes)
	}
	if i.CPU == nil || i.CPU.Threads != 2 || i.CPU.Isolated != "1" {
		t.Errorf("processors: %+v", i.CPU)
	}
	if len(i.Disks) != 2 || i.Disks[0].Bus != "nvme" || i.Disks[0].Serial != "first" || i.Disks[0].Wear == nil {
		t.Fatalf("disks: %+v", i.Disks)
	}
	// The serial number comes from the disk's own answer alone. The emulated one watches itself, and tells no wear.
	if d := i.Disks[1]; d.Bus != "sata" || d.Serial != "third" || d.Rotational || d.Wear != nil || len(d.Faults) > 0 {
		t.Errorf("the disk on SATA: %+v", d)
	}
	if len(i.Watchdogs) != 1 || i.Watchdogs[0].Identity == "" {
		t.Errorf("watchdogs: %+v", i.Watchdogs)
	}
	var bridged bool
	for _, f := range i.PCI {
		bridged = bridged || f.Address == i.NetDevices[0].PCI && f.Bridge != "" && f.IOMMUGroup != nil && f.MaxVirtualFunctions == 7
	}
	if !bridged || len(i.Sensors) == 0 {
		t.Errorf("the card below its bridge: %+v, sensors %+v", i.PCI, i.Sensors)
	}
}
