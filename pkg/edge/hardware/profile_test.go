package hardware

import (
	"reflect"
	"testing"
	"testing/fstest"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
)

func TestBoxOfAServer(t *testing.T) {
	root := fstest.MapFS{
		"sys/class/dmi/id/sys_vendor":                 file("Dell Inc.\n"),
		"sys/class/dmi/id/product_name":               file("PowerEdge XR12\n"),
		"sys/class/dmi/id/product_family":             file("To be filled by O.E.M.\n"),
		"sys/class/dmi/id/chassis_type":               file("23\n"),
		"sys/class/dmi/id/bios_vendor":                file("Dell Inc.\n"),
		"proc/cpuinfo":                                file("processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Gold 6338N\nflags\t\t: fpu vme\n\nprocessor\t: 1\n"),
		"proc/meminfo":                                file("MemTotal: 131072000 kB\n"),
		"proc/cmdline":                                file("roothash=00 tributary.profile=generic-amd64 quiet\n"),
		"sys/bus/pci/devices/0000:51:00.0/vendor":     file("0x8086\n"),
		"sys/bus/pci/devices/0000:51:00.0/device":     file("0x0D5C\n"),
		"sys/bus/pci/devices/0000:51:00.0/class":      file("0x120001\n"),
		"sys/bus/pci/devices/0000:00:00.0/vendor":     file("0x8086\n"),
		"sys/bus/pci/devices/0000:00:00.0/device":     file("0x0998\n"),
		"sys/bus/pci/devices/0000:00:00.0/class":      file("0x060000\n"), // a bridge
		"sys/bus/pci/devices/0000:00:01.0/vendor":     file("rubbish"),
		"sys/bus/pci/devices/0000:00:01.0/driver/x/y": file(""),
	}
	s := Source{Arch: "amd64", Root: root, Links: func() []Link { return links }}
	want := hwprofiles.Probe{Arch: "amd64", DMI: hwprofiles.DMI{Vendor: "Dell Inc.", Product: "PowerEdge XR12", Firmware: "Dell Inc.", Chassis: "rack"},
		CPU: "Intel(R) Xeon(R) Gold 6338N", CPUs: 2, MemoryMiB: 128000, Ports: 2, PCI: []string{"8086:0d5c 1200"}, DeviceTree: hwprofiles.DeviceTree{Compatible: []string{}}}
	if got := Box(s); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	root["proc/cpuinfo"] = file("model name: x\nprocessor: 0\nprocessor: 1\nprocessor: 2\nprocessor: 3\nprocessor: 4\nprocessor: 5\nprocessor: 6\nprocessor: 7\n")
	if running, fitting := Running(s), Fitting(s); running != "generic-amd64" || fitting != "access-amd64" {
		t.Errorf("%s, %s", running, fitting)
	}
	h := Probe(s)
	if h.Profile = Running(s); Labels(h)[api.Reserved+"profile"] != "generic-amd64" {
		t.Errorf("%v", Labels(h))
	}
	delete(root, "proc/cmdline")
	if running := Running(s); running != "" {
		t.Errorf("%s", running)
	}
}

func TestBoxOfABoardAndOfGuests(t *testing.T) {
	for want, s := range map[string]Source{
		"field-arm64":   {Arch: "arm64", Root: fstest.MapFS{"proc/device-tree/compatible": file("acme,box\x00fsl,imx8mp\x00"), "proc/device-tree/model": file("Acme Box\x00")}},
		"vm":            {Arch: "amd64", Root: fstest.MapFS{"sys/class/dmi/id/sys_vendor": file("QEMU\n"), "proc/cpuinfo": file("processor: 0\nflags: fpu hypervisor\n")}},
		"generic-amd64": {Arch: "amd64", Root: fstest.MapFS{"proc/cpuinfo": file("processor: 0\nflags: fpu hypervisor\n")}},
		"generic-arm64": {Arch: "arm64", Root: fstest.MapFS{}},
		"":              {Arch: "riscv64", Root: fstest.MapFS{}},
	} {
		if got := Fitting(s); got != want {
			t.Errorf("%s; want %s", got, want)
		}
	}
	dom0 := Source{Arch: "amd64", Root: fstest.MapFS{"sys/hypervisor/type": file("xen\n"), "proc/xen/capabilities": file("control_d\n"), "proc/cpuinfo": file("processor: 0\nflags: hypervisor\n")}}
	if b := Box(dom0); b.Hypervisor != "" {
		t.Errorf("a host of Xen is taken for a guest of %s", b.Hypervisor)
	}
}

func TestBoxOfThisMachine(t *testing.T) {
	b := Box(Host(t.TempDir()))
	all, err := hwprofiles.All()
	if err != nil {
		t.Fatal(err)
	}
	r := hwprofiles.Match(b, all)
	t.Logf("%s: %s, because %s", b.Describe(), r.Profile, r.Why)
	if (b.Arch == "amd64" || b.Arch == "arm64") && r.Profile == "" {
		t.Errorf("%+v", r)
	}
}
