package hardware_test

import (
	"encoding/json"
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/hardware/hwtest"
	"tributary.dev/tributary/pkg/report"
)

// go test ./pkg/edge/hardware -run TestRecord -record FILE records this machine.
var record = flag.String("record", "", "write what this machine is made of to a file")

func TestRecord(t *testing.T) {
	r := hwtest.Record(hardware.Host(t.TempDir()))
	want, got := hardware.Look(hardware.Host(t.TempDir())), hardware.Look(r.Source())
	for i := range want.Sensors { // they go on meanwhile
		for k := range want.Sensors[i].Sensors {
			want.Sensors[i].Sensors[k].Value = nil
		}
	}
	for i := range got.Sensors {
		for k := range got.Sensors[i].Sensors {
			got.Sensors[i].Sensors[k].Value = nil
		}
	}
	if want.CPU == nil || !reflect.DeepEqual(got.PCI, want.PCI) || !reflect.DeepEqual(got.CPU, want.CPU) {
		t.Errorf("recorded\n%+v\nseen\n%+v", got, want)
	}
	if *record == "" {
		return
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err == nil {
		err = os.WriteFile(*record, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// recordings are those of testdata, by name.
func recordings(t testing.TB) map[string]*hwtest.Recording {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	out := map[string]*hwtest.Recording{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r, err := hwtest.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[strings.TrimSuffix(filepath.Base(file), ".json")] = r
	}
	return out
}

// sound tells what is wrong with an inventory, whatever it is of.
func sound(i *api.Inventory) string {
	at := map[string]bool{}
	for _, f := range i.PCI {
		if at[f.Address] || len(f.ID) != 9 || len(f.Class) != 6 {
			return "a PCI function: " + f.Address
		}
		at[f.Address] = true
	}
	for _, d := range i.NetDevices {
		if d.PCI != "" && strings.Count(d.PCI, ":") != 2 {
			return "an interface: " + d.Name
		}
	}
	for _, d := range i.Disks {
		if d.Bytes < 0 || d.Wear != nil && *d.Wear < 0 {
			return "a disk: " + d.Name
		}
	}
	entries, err := report.SplitInventory(i)
	if err != nil {
		return err.Error()
	}
	size := 0
	for k, v := range entries {
		size += len(k) + len(v)
	}
	if size > 400<<10 { // of the 512 KiB that a device may report
		return "it is too large to be told"
	}
	back, bad := report.JoinInventory(entries)
	if len(bad) > 0 || len(back.PCI) != len(i.PCI) || len(back.NetDevices) != len(i.NetDevices) || len(back.Disks) != len(i.Disks) {
		return "it does not come back whole"
	}
	return ""
}

// Whatever a file of a machine says, the look ends, within bounds, and what it saw can be told.
func TestAnyTree(t *testing.T) {
	all := recordings(t)
	names := slices.Sorted(maps.Keys(all))
	rapid.Check(t, func(t *rapid.T) {
		r := *all[rapid.SampledFrom(names).Draw(t, "machine")]
		r.Files, r.Dirs, r.Links = maps.Clone(r.Files), maps.Clone(r.Dirs), maps.Clone(r.Links)
		garbage := rapid.SampledFrom([]string{"", "-1", "0", "1", "99999999999999999999", "0x7fffffffffffffff", "\x00\xff\xfe", "a:b=c", strings.Repeat("x", 5000), "1-", "255"})
		files := slices.Sorted(maps.Keys(r.Files))
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			switch rapid.IntRange(0, 3).Draw(t, "change") {
			case 0:
				delete(r.Files, rapid.SampledFrom(files).Draw(t, "gone"))
			case 1:
				r.Files[rapid.SampledFrom(files).Draw(t, "file")] = garbage.Draw(t, "says")
			case 2:
				r.Links[rapid.SampledFrom(slices.Sorted(maps.Keys(r.Links))).Draw(t, "link")] = rapid.SampledFrom([]string{"", "..", "/", "../../../../../..", "x", "0000:00:00.0", "../../devices/virtual/net/x"}).Draw(t, "leads to")
			case 3:
				dir := rapid.SampledFrom(slices.Sorted(maps.Keys(r.Dirs))).Draw(t, "folder")
				r.Dirs[dir] = append(slices.Clone(r.Dirs[dir]), rapid.SampledFrom([]string{"cpu", "cpu7", "node99999", "0000:00:1f.7", "nvme", "nvmen", "hwmon-", "temp_input", "temp1_input", "\xff"}).Draw(t, "entry"))
			}
		}
		i := hardware.Look(r.Source())
		if fault := sound(&i); fault != "" {
			t.Fatal(fault)
		}
	})
}

func FuzzLook(f *testing.F) {
	f.Add("igb", []byte("1"), uint(3))
	f.Add("0x1", []byte("DRIVER=x\nPCI_ID=8086:10C9\nPCI_CLASS=20000"), uint(0))
	all := recordings(f)
	names := slices.Sorted(maps.Keys(all))
	f.Fuzz(func(t *testing.T, to string, text []byte, which uint) {
		r := *all[names[int(which%uint(len(names)))]]
		r.Files, r.Links = maps.Clone(r.Files), maps.Clone(r.Links)
		for n, file := range slices.Sorted(maps.Keys(r.Files)) {
			if uint(n)%7 == which%7 {
				r.Files[file] = string(text)
			}
		}
		for n, link := range slices.Sorted(maps.Keys(r.Links)) {
			if uint(n)%5 == which%5 {
				r.Links[link] = to
			}
		}
		r.NVMe, r.ATA = map[string][]byte{"nvme0": text}, map[string]hardware.ATA{"sda": {Identity: text, SMART: text, Endurance: text}}
		i := hardware.Look(r.Source())
		if fault := sound(&i); fault != "" {
			t.Fatal(fault)
		}
	})
}

func TestTheVirtioGuest(t *testing.T) {
	i := hardware.Look(recordings(t)["guest-virtio"].Source())
	if len(i.PCI) != 6 || i.PCI[3].ID != "1af4:1041" || i.PCI[3].Class != "020000" || i.PCI[3].Driver != "virtio-pci" {
		t.Errorf("PCI: %+v", i.PCI)
	}
	if len(i.NetDevices) != 1 || i.NetDevices[0].PCI != "0000:00:03.0" || i.NetDevices[0].Driver != "virtio_net" || i.NetDevices[0].Link.State != api.LinkUp || !slices.Contains(i.NetDevices[0].Offloads, "rx-gro-hw") {
		t.Errorf("network: %+v", i.NetDevices)
	}
	if i.CPU == nil || i.CPU.Cores != 2 || i.CPU.Online != "0-1" || len(i.Nodes) != 1 || i.Nodes[0].MemoryMiB == 0 {
		t.Errorf("processors: %+v, nodes %+v", i.CPU, i.Nodes)
	}
	if len(i.Disks) != 1 || i.Disks[0].Name != "vda" || i.Disks[0].Bus != "virtio" || i.Disks[0].Bytes != 256<<30 {
		t.Errorf("disks: %+v", i.Disks)
	}
}

// TestAccelerators looks at a tree made by hand after what amdgpu, i915 and NVIDIA's driver show.
func TestAccelerators(t *testing.T) {
	tree := fstest.MapFS{}
	put := func(address, render string, files map[string]string) {
		where := "devices/pci0000:00/" + address
		tree["sys/bus/pci/devices/"+address] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../../../" + where)}
		tree["sys/class/drm/"+render] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../../" + where + "/drm/" + render)}
		for name, text := range files {
			tree["sys/"+where+"/"+name] = &fstest.MapFile{Data: []byte(text + "\n")}
		}
	}
	put("0000:c3:00.0", "renderD129", map[string]string{"numa_node": "1", "mem_info_vram_total": "68702699520", "product_name": "AMD Instinct MI210", "uevent": "DRIVER=amdgpu\nPCI_CLASS=38000\nPCI_ID=1002:740F"})
	put("0000:03:00.0", "renderD128", map[string]string{"numa_node": "-1", "uevent": "DRIVER=i915\nPCI_CLASS=38000\nPCI_ID=8086:56C0"})
	put("0000:04:00.0", "renderD130", map[string]string{"uevent": "DRIVER=nvidia\nPCI_CLASS=30200\nPCI_ID=10DE:20B0"})
	put("0000:05:00.0", "renderD131", map[string]string{"uevent": "DRIVER=virtio-pci\nPCI_CLASS=38000\nPCI_ID=1AF4:1050"})
	got := map[string]api.Accelerator{}
	for _, a := range hardware.Look(hardware.Source{Root: tree}).Accelerators {
		got[a.Vendor] = a
	}
	if a := got["intel"]; a.Driver != "i915" || a.NUMA != -1 || a.Model != "8086:56c0" || !slices.Equal(a.Nodes, []string{"/dev/dri/renderD128"}) {
		t.Errorf("%+v", a)
	}
	if a := got["amd"]; a.ID != "0000:c3:00.0" || a.NUMA != 1 || a.MemoryMiB != 65520 || a.Model != "AMD Instinct MI210" || !slices.Equal(a.Nodes, []string{"/dev/dri/renderD129"}) {
		t.Errorf("%+v", a)
	}
	if len(got) != 3 || got["nvidia"].Driver != "nvidia" {
		t.Errorf("%+v", got)
	}
}

// BenchmarkLook is a look at this machine: what an idle box does every half minute.
func BenchmarkLook(b *testing.B) {
	s := hardware.Host(b.TempDir())
	b.ReportAllocs()
	for b.Loop() {
		hardware.Look(s)
	}
}
