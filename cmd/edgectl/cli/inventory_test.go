package cli

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func TestDrawPCI(t *testing.T) {
	node := 1
	i := &api.Inventory{Nodes: []api.Node{{}, {ID: 1}}, PCI: []api.PCIFunction{
		{Address: "0000:00:00.0", ID: "8086:29c0", Class: "060000"},
		{Address: "0000:00:01.0", ID: "1b36:000c", Class: "060400", Driver: "pcieport"},
		{Address: "0000:01:00.0", Bridge: "0000:00:01.0", ID: "8086:10c9", Class: "020000", Driver: "igb", Node: &node, VirtualFunctions: 2, MaxVirtualFunctions: 7, Width: 1, MaxWidth: 4},
		{Address: "0000:01:10.0", Bridge: "0000:00:01.0", ID: "8086:10ca", Class: "020000", Driver: "igbvf", Physical: "0000:01:00.0"},
		{Address: "0000:01:10.2", Bridge: "0000:00:01.0", ID: "8086:10ca", Class: "020000", Driver: "vfio-pci", Physical: "0000:01:00.0"},
	}, NetDevices: []api.NetDevice{{Name: "eth0", PCI: "0000:01:00.0", Link: api.Link{State: api.LinkUp, Speed: 2500}, Offloads: []string{"hw-tc-offload", "rx-checksum"}},
		{Name: "eth1", PCI: "0000:01:10.0", Physical: "0000:01:00.0"}}}
	want := `PCI
├─ 0000:00:00.0 host bridge 8086:29c0
└─ 0000:00:01.0 bridge 1b36:000c, pcieport
   └─ 0000:01:00.0 Ethernet 8086:10c9, igb, eth0, node 1, 1 of 4 lanes, 2 of 7 virtual functions (0000:01:10.0 to 0000:01:10.2)`
	if got := strings.Join(drawPCI(i), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	rows := cards(i).rows
	if got := strings.Join(rows[0], "|"); got != "eth0|2.5 Gbit/s|-|0000:01:00.0|-|2/7|-|-|tc +1" {
		t.Errorf("%s", got)
	}
	if rows[1][5] != "of 0000:01:00.0" {
		t.Errorf("%v", rows[1])
	}
	i.Cards = []api.CardHealth{{Card: "pci/0000:01:00.0", ResetFailed: true, Reporters: []api.HealthReporter{{Name: "fw", Failed: true, Errors: 2, Recoveries: 1}, {Name: "tx", Interface: "eth0"}}}}
	if got := fmt.Sprint(watchers(i).rows); got != "[[pci/0000:01:00.0 its driver failed to begin anew - -] [pci/0000:01:00.0 fw failed 2 1] [pci/0000:01:00.0 tx of eth0 well 0 0]]" {
		t.Errorf("%s", got)
	}
}

func TestWhoHoldsWhat(t *testing.T) {
	cpu := func(id string, holders ...api.DeviceHolder) api.DeviceUse {
		return api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimCPU, ID: id, Units: 1}, Holders: holders}
	}
	du := api.DeviceHolder{App: "ran", Service: "du", Units: 1}
	gone := cpu("cpu9", du)
	gone.Fault = api.DeviceGone
	offline := cpu("cpu5")
	offline.Fault = "it is offline"
	pages := api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimHugePages, ID: "2M@0", Units: 512, Facts: map[string]string{"size": "2M"}}, Holders: []api.DeviceHolder{{App: "ran", Service: "du", Units: 100}}}
	shared := api.DeviceUse{Claimable: api.Claimable{Class: api.ClaimGPU, ID: "GPU-1", Units: 1, Shares: 2}, Holders: []api.DeviceHolder{du}}
	var got []string
	for _, row := range claimable(&api.Inventory{Claims: []api.DeviceUse{cpu("cpu2", du), cpu("cpu3", du), cpu("cpu4"), offline, gone, shared, pages}}).rows {
		got = append(got, strings.Join(row, "|"))
	}
	want := `cpu|3/4|1||
|||ran/du|cpu2 cpu3 cpu9
|||(it is offline)|cpu5
|||(it is gone)|cpu9
gpu|1/1|1||
|||ran/du|GPU-1
hugepages-2M|100/512|412||
|||ran/du|100 × 2M@0`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// Whatever functions say is above them, each is drawn once, and what a device tells breaks no drawing.
func TestDrawAnyPCI(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.SampledFrom([]string{"a", "b", "c", "d", "", "gone"})
		var i api.Inventory
		for _, name := range []string{"a", "b", "c", "d"} {
			i.PCI = append(i.PCI, api.PCIFunction{Address: name, Bridge: address.Draw(t, "bridge"), Class: rapid.SampledFrom([]string{"", "02", "020000", "\u202ex"}).Draw(t, "class"), ID: name + "-id"})
		}
		i.Accelerators = []api.Accelerator{{ID: "g", PCI: address.Draw(t, "at"), MemoryMiB: -1}}
		i.Disks = []api.Disk{{Name: "d", Bytes: -5}}
		drawn := strings.Join(drawPCI(&i), "\n")
		for _, f := range i.PCI {
			if n := strings.Count(drawn, f.ID); n != 1 {
				t.Fatalf("%s is drawn %d times:\n%s", f.Address, n, drawn)
			}
		}
		_ = fmt.Sprint(computing(&i), accelerators(&i), disks(&i), claimable(&i))
	})
}

func TestCardUse(t *testing.T) {
	rows := cardUse([]usageTotal{{App: "shop", Service: "web"},
		{App: "ran", Service: "du", Accelerator: api.AcceleratorUse{HeldMillis: 60_000, SliceMillis: 120_000, MemoryMiBSeconds: 61_440, BusyMillis: 15_000, UnknownMillis: 30_000, EnergyMillijoules: 2_500_000}},
		{App: "ai", Service: "run", Accelerator: api.AcceleratorUse{HeldMillis: 60_000, UnknownMillis: 60_000}}}).rows
	var got []string
	for _, r := range rows {
		got = append(got, strings.Join(r, "|"))
	}
	want := []string{"ran/du|1m0s|2m0s|avg 1.0G|50 %|2.5 kJ", "ai/run|1m0s|0s|avg 0B|unknown|0.0 kJ"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
