package sriov

import (
	"io/fs"
	"net"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
)

// tree is a sysfs with a card of two functions, the second in a container, made by hand
// after what a guest with QEMU's igb shows.
func tree() fstest.MapFS {
	m := fstest.MapFS{}
	file := func(pci, name, text string) { m[pciRoot+"/"+pci+"/"+name] = &fstest.MapFile{Data: []byte(text + "\n")} }
	link := func(pci, name, to string) {
		m[pciRoot+"/"+pci+"/"+name] = &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink}
	}
	for name, text := range map[string]string{"class": "0x020000", "vendor": "0x8086", "device": "0x10c9", "sriov_totalvfs": "7", "sriov_numvfs": "2", "sriov_drivers_autoprobe": "0", "numa_node": "1", "net/eth0/speed": "1000"} {
		file("0000:01:00.0", name, text)
	}
	link("0000:01:00.0", "driver", "../../../../bus/pci/drivers/igb")
	file("0000:02:00.0", "class", "0x010802") // NVMe has virtual functions, which are no network's
	file("0000:02:00.0", "sriov_totalvfs", "4")
	for i, pci := range []string{"0000:01:10.0", "0000:01:10.2"} {
		link("0000:01:00.0", "virtfn"+string(rune('0'+i)), "../"+pci)
		link(pci, "driver", "../../../../bus/pci/drivers/igbvf")
		link(pci, "iommu_group", "../../../../kernel/iommu_groups/"+string(rune('7'+i)))
		file(pci, "numa_node", "-1")
		file(pci, "driver_override", "(null)")
		file(pci, "class", "0x020000")
		m["sys/kernel/iommu_groups/"+string(rune('7'+i))+"/devices/"+pci] = &fstest.MapFile{}
	}
	return m
}

func TestLook(t *testing.T) {
	links := []netlink.Link{
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}},
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0", ParentDev: "0000:01:00.0", MTU: 1500, Flags: net.FlagUp, OperState: netlink.OperUp, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
			Vfs: []netlink.VfInfo{{ID: 1, Mac: net.HardwareAddr{2, 0, 0, 0, 0, 3}, Vlan: 100, Qos: 5, VlanProto: 0x8100, Spoofchk: true, LinkState: 2, MaxTxRate: 50, Trust: 1}, {ID: 0, Mac: make(net.HardwareAddr, 6)}}}},
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth1", ParentDev: "0000:01:10.0", MTU: 1400}},
	}
	s := Look(tree(), func() []netlink.Link { return links })
	if len(s.Cards) != 1 {
		t.Fatalf("%+v", s)
	}
	c := s.Cards[0]
	if c.Name != "eth0" || c.Driver != "igb" || c.ID != "8086:10c9" || c.Most != 7 || c.Node != 1 || c.Probe || !c.Up || !c.Carrier || c.Speed != 1000 || len(c.Functions) != 2 {
		t.Errorf("%+v", c)
	}
	one, two := c.Functions[0], c.Functions[1]
	if one.PCI != "0000:01:10.0" || one.Name != "eth1" || one.MTU != 1400 || one.MAC != "" || one.Group != 7 || one.Driver != "igbvf" || one.Override != "" {
		t.Errorf("%+v", one)
	}
	if want := (Settings{MAC: "02:00:00:00:00:03", VLAN: 100, QoS: 5, Trust: true, Spoof: true, MaxRate: 50, Link: "off"}); two.Settings != want || two.Name != "" {
		t.Errorf("%+v", two)
	}
	if !slices.Equal(s.Groups[8], []Member{{PCI: "0000:01:10.2", Driver: "igbvf"}}) {
		t.Errorf("%+v", s.Groups)
	}
	if s.RDMAConnections || len(one.RDMA) != 0 {
		t.Errorf("RDMA: %t, %q", s.RDMAConnections, one.RDMA)
	}
	if empty := Look(fstest.MapFS{}, nil); len(empty.Cards) != 0 {
		t.Errorf("%+v", empty)
	}
}

// still is a machine that is as it is.
type still State

func (s still) Look() State   { return State(s) }
func (s still) Do(Step) error { return nil }

// A function's own RDMA device goes into the container of a service that asks for RDMA, with the file for connections
// where the box has one. The tree is made by hand after the kernel's words (Documentation/ABI/stable/sysfs-class-infiniband,
// "infiniband_verbs"); no card with RDMA was there to try.
func TestRDMA(t *testing.T) {
	for _, connections := range []bool{false, true} {
		m := tree()
		m[pciRoot+"/0000:01:10.2/infiniband_verbs/uverbs3/abi_version"] = &fstest.MapFile{Data: []byte("1\n")}
		want := []string{"/dev/infiniband/uverbs3"}
		if connections {
			m["dev/infiniband/rdma_cm"], want = &fstest.MapFile{}, append(want, "/dev/infiniband/rdma_cm")
		}
		room := manager(t, still(Look(m, nil)), &memory{}, "one")
		list := room.Claimables()
		if len(list) != 2 || list[0].Facts["rdma"] != "false" || list[1].Facts["rdma"] != "true" {
			t.Fatalf("%+v", list)
		}
		for asked, want := range map[string][]string{"true": want, "": nil} {
			e, err := room.Prepare(t.Context(), list[1].ID, 1, api.Claim{Class: api.ClaimVF, Options: map[string]string{"rdma": asked}})
			var got []string
			for _, n := range e.Nodes {
				got = append(got, n.Path)
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("asked %q: %q, %v", asked, got, err)
			}
		}
	}
}
