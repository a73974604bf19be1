package report

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func drawInventory(t *rapid.T) *api.Inventory {
	text := rapid.SampledFrom([]string{"", "igb", "Example 40 G", "0-3,8"})
	n := func(label string, most int) int { return rapid.IntRange(0, most).Draw(t, label) }
	maybe := func(label string) *int {
		if rapid.Bool().Draw(t, label) {
			return nil
		}
		v := n(label, 7)
		return &v
	}
	var i api.Inventory
	for b := range n("buses", 3) {
		for f := range n("functions", 20) {
			i.PCI = append(i.PCI, api.PCIFunction{Address: fmt.Sprintf("0000:%02x:%02x.%d", b, f/8, f%8), Bridge: fmt.Sprintf("0000:00:%02x.0", b), ID: "8086:10c9", Class: "020000",
				Driver: text.Draw(t, "driver"), Node: maybe("node"), IOMMUGroup: maybe("group"), VirtualFunctions: n("vfs", 8), MaxVirtualFunctions: n("max vfs", 8), Width: n("width", 16)})
		}
	}
	for d := range n("interfaces", 4) {
		i.NetDevices = append(i.NetDevices, api.NetDevice{Name: fmt.Sprint("eth", d), MAC: "02:00:00:00:00:01", Driver: text.Draw(t, "driver"), Node: maybe("node"),
			Link: api.Link{State: rapid.SampledFrom([]string{api.LinkUp, api.LinkDown, api.LinkOff}).Draw(t, "link"), Speed: n("speed", 400000)}})
	}
	for c := range n("watched", 2) {
		i.Cards = append(i.Cards, api.CardHealth{Card: fmt.Sprintf("pci/0000:0%d:00.0", c), ResetFailed: rapid.Bool().Draw(t, "reset"), Reporters: []api.HealthReporter{{Name: "fw", Failed: rapid.Bool().Draw(t, "failed"), Errors: uint64(n("faults", 9))}}})
	}
	for g := range n("cards", 2) {
		i.Accelerators = append(i.Accelerators, api.Accelerator{ID: fmt.Sprint("GPU-", g), Vendor: "nvidia", PCI: fmt.Sprintf("0000:0%d:00.0", g), NUMA: -1, Sharing: api.Sharing{Mode: api.SharingExclusive}})
	}
	if rapid.Bool().Draw(t, "processors") {
		i.CPU = &api.CPU{Model: text.Draw(t, "model"), Cores: n("cores", 64), Isolated: text.Draw(t, "isolated")}
	}
	for k := range n("nodes", 2) {
		i.Nodes = append(i.Nodes, api.Node{ID: k, MemoryMiB: 4096, HugePages: []api.HugePages{{SizeKiB: 2048, Count: int64(1 + n("pages", 9))}}})
	}
	for d := range n("disks", 3) {
		i.Disks = append(i.Disks, api.Disk{Name: fmt.Sprintf("nvme%dn1", d), Bus: "nvme", Wear: maybe("wear"), MediaErrors: int64(n("errors", 3))})
	}
	for c := range n("chips", 3) {
		i.Sensors = append(i.Sensors, api.SensorChip{ID: fmt.Sprint("chip", c), Sensors: []api.Sensor{{Label: "Core 0", Kind: "temperature", State: text.Draw(t, "state"), Critical: 100000}}})
	}
	if rapid.Bool().Draw(t, "watchdog") {
		i.Watchdogs = []api.Watchdog{{Name: "watchdog0", Timeout: 30}}
		i.TPMs = []api.TPMDevice{{Name: "tpm0", Version: "2.0"}}
	}
	return &i
}

func TestJoinInventoryUndoesSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawInventory(t)
		entries, err := SplitInventory(want)
		if err != nil {
			t.Fatal(err)
		}
		entries["app/x"], entries["hw/later/thing"] = []byte{0xa0}, []byte{0x01}
		got, bad := JoinInventory(entries)
		if len(bad) > 0 || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v\nbad %v", got, want, bad)
		}
	})
	if i, bad := JoinInventory(map[string][]byte{"health": {0x80}}); i != nil || bad != nil {
		t.Errorf("a device that told of nothing has %+v, bad %v", i, bad)
	}
}

// A cable that is pulled, a sensor that is too hot and a function that is made are small
// changes.
func TestAChangeOfHardwareIsSmall(t *testing.T) {
	value := int64(42000)
	before := func() *api.Inventory {
		i := &api.Inventory{CPU: &api.CPU{Model: "Example", Cores: 32}}
		for f := range 40 {
			i.PCI = append(i.PCI, api.PCIFunction{Address: fmt.Sprintf("0000:%02x:00.0", f), ID: "8086:10c9", Class: "020000", Driver: "igb", MaxVirtualFunctions: 8})
			i.NetDevices = append(i.NetDevices, api.NetDevice{Name: fmt.Sprintf("enp%ds0f0", f), MAC: "02:00:00:00:00:01", Driver: "igb", Link: api.Link{State: api.LinkUp, Speed: 10000}})
			i.Sensors = append(i.Sensors, api.SensorChip{ID: fmt.Sprint("chip", f), Sensors: []api.Sensor{{Label: "temp1", Kind: "temperature", Value: &value}}})
		}
		return i
	}
	old, err := SplitInventory(before())
	if err != nil {
		t.Fatal(err)
	}
	other := int64(57000)
	for name, c := range map[string]struct {
		change func(*api.Inventory)
		keys   []string
		most   int
	}{
		"a cable":     {func(i *api.Inventory) { i.NetDevices[3].Link = api.Link{State: api.LinkDown} }, []string{"hw/link/enp3s0f0"}, 8},
		"a heat":      {func(i *api.Inventory) { i.Sensors[7].Sensors[0].State = "high" }, []string{"hw/chip/chip7"}, 40},
		"a function":  {func(i *api.Inventory) { i.PCI[9].VirtualFunctions = 2 }, []string{"hw/pci/0000:09"}, 48},
		"a breath":    {func(i *api.Inventory) { i.Sensors[7].Sensors[0].Value = &other }, nil, 0},
		"an isolated": {func(i *api.Inventory) { i.CPU.Isolated = "2-31" }, []string{"hw/cpu"}, 32},
	} {
		i := before()
		c.change(i)
		now, err := SplitInventory(i)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		size := 0
		for k, v := range now {
			if !bytes.Equal(v, old[k]) {
				keys, size = append(keys, k), size+len(v)
			}
		}
		if !slices.Equal(keys, c.keys) || size > c.most {
			t.Errorf("%s changes %v, %d bytes; want %v and at most %d", name, keys, size, c.keys, c.most)
		}
	}
}

func FuzzJoinInventory(f *testing.F) {
	one := 1
	seed, err := SplitInventory(&api.Inventory{PCI: []api.PCIFunction{{Address: "0000:01:00.0", ID: "8086:10c9", Class: "020000", Node: &one}}, NetDevices: []api.NetDevice{{Name: "eth0"}},
		Accelerators: []api.Accelerator{{ID: "GPU-1", MIG: &api.MIG{Profiles: []api.MIGProfile{{Name: "1g.10gb"}}}}}, CPU: &api.CPU{Cores: 1}, Nodes: []api.Node{{}},
		Disks: []api.Disk{{Name: "sda", Wear: &one}}, Sensors: []api.SensorChip{{ID: "c", Sensors: []api.Sensor{{Label: "l"}}}}})
	if err != nil {
		f.Fatal(err)
	}
	for k, v := range seed {
		f.Add(k, v)
	}
	f.Add("hw/pci/", []byte{0xa1, 0x02, 0xa1, 0x00, 0xf6})
	f.Add("hw/pci/x", []byte{0xbf})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		i, _ := JoinInventory(map[string][]byte{key: value})
		if i == nil {
			return
		}
		if len(i.PCI) > maxPairs || len(i.Nodes) > maxServices || len(i.NetDevices) > 1 || len(i.Disks) > 1 {
			t.Fatalf("%+v", i)
		}
		if _, err := SplitInventory(i); err != nil { // what was read can be told again
			t.Fatal(err)
		}
	})
}
