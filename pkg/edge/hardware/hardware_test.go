package hardware

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

var links = []Link{
	{Name: "lo", Kind: "device", Loopback: true},
	{Name: "eth1", MAC: "02:00:00:00:00:02", Kind: "device"},
	{Name: "eth0", MAC: "02:00:00:00:00:01", Kind: "device"},
	{Name: "up0", MAC: "02:00:00:00:00:03", Kind: "veth"},
	{Name: "vethab12", MAC: "02:00:00:00:00:04", Kind: "veth", Port: true},
	{Name: "app-shop", MAC: "02:00:00:00:00:05", Kind: "bridge"},
	{Name: "tun0", Kind: "tuntap"},
}

func TestProbeX86Server(t *testing.T) {
	got := Probe(Source{Arch: "amd64", Disk: func() int64 { return 500 << 30 }, Links: func() []Link { return links }, Root: fstest.MapFS{
		"sys/class/dmi/id/sys_vendor":     file("Example Servers Inc.\n"),
		"sys/class/dmi/id/product_name":   file("ES 740 xd\n"),
		"sys/class/dmi/id/product_serial": file("To Be Filled By O.E.M.\n"),
		"sys/class/dmi/id/board_serial":   file("BX-77\n"),
		"proc/cpuinfo":                    file("processor\t: 0\nmodel name\t: Fast CPU @ 2.0GHz\n\nprocessor\t: 1\nmodel name\t: Fast CPU @ 2.0GHz\n"),
		"proc/meminfo":                    file("MemTotal:       16334956 kB\nMemFree: 1 kB\n"),
		"proc/sys/kernel/osrelease":       file("6.12.0-1-amd64\n"),
		"etc/os-release":                  file("NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
		"proc/self/mountinfo":             file("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
		"sys/class/net/eth0/address":      file("02:00:00:00:00:01\n"),
		"sys/class/net/eth0/speed":        file("25000\n"),
		"sys/class/net/eth1/address":      file("ff:00:00:00:00:01\n"), // the host's, not ours
		"sys/class/net/eth1/speed":        file("1000\n"),
	}})
	want := api.Hardware{Arch: "amd64", Vendor: "Example Servers Inc.", Product: "ES 740 xd", Serial: "BX-77", CPUs: 2,
		CPUModel: "Fast CPU @ 2.0GHz", MemoryBytes: 16334956 << 10, DiskBytes: 500 << 30, Kernel: "6.12.0-1-amd64",
		OS: "Debian GNU/Linux 12 (bookworm)", Cgroup: 2, NICs: []api.NIC{
			{Name: "eth0", MAC: "02:00:00:00:00:01", Speed: 25000}, {Name: "eth1", MAC: "02:00:00:00:00:02"}, {Name: "up0", MAC: "02:00:00:00:00:03"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	labels := Labels(got)
	for key, want := range map[string]string{"arch": "amd64", "vendor": "Example-Servers-Inc", "product": "ES-740-xd", "cpus": "2", "memory-gib": "16"} {
		if labels[api.Reserved+key] != want {
			t.Errorf("label %s is %q, want %q", key, labels[api.Reserved+key], want)
		}
	}
}

func TestProbeArmBoard(t *testing.T) {
	got := Probe(Source{Arch: "arm64", Root: fstest.MapFS{
		"proc/device-tree/model":         file("Maker Field Board Rev 3\x00"),
		"proc/device-tree/serial-number": file("100000001\x00"),
		"proc/cpuinfo":                   file("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"),
		"proc/self/mountinfo":            file("30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu\n"),
	}})
	want := api.Hardware{Arch: "arm64", Vendor: "Maker", Product: "Maker Field Board Rev 3", Serial: "100000001", CPUs: 1, CPUModel: "ARM part 0xd42", Cgroup: 1}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestProbeOfNothing(t *testing.T) {
	if got := Probe(Source{Arch: "amd64", Root: fstest.MapFS{}}); !reflect.DeepEqual(got, api.Hardware{Arch: "amd64"}) {
		t.Errorf("got %+v", got)
	}
}

func TestProbeOfThisMachine(t *testing.T) {
	got := Probe(Host(t.TempDir()))
	if got.CPUs == 0 || got.MemoryBytes == 0 || got.Kernel == "" || got.DiskBytes == 0 {
		if _, err := os.Stat("/proc/cpuinfo"); err == nil {
			t.Errorf("got %+v", got)
		}
	}
}

func TestLabelValuesAreValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := labelValue(rapid.String().Draw(t, "text"))
		const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
		if len(v) > 63 || strings.Trim(v, alnum+"-_.") != "" || v != "" && (!strings.Contains(alnum, v[:1]) || !strings.Contains(alnum, v[len(v)-1:])) {
			t.Fatalf("%q is no label value", v)
		}
	})
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("processor : 0\nMemTotal: 1 kB\nPRETTY_NAME=x\n1 - cgroup c rw\n"))
	f.Add([]byte("\x00\x00\n:::\nMemTotal: -1 kB"))
	all, err := hwprofiles.All()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		root := fstest.MapFS{}
		for _, name := range []string{"proc/cpuinfo", "proc/meminfo", "etc/os-release", "proc/self/mountinfo", "sys/class/dmi/id/sys_vendor", "proc/device-tree/model",
			"proc/device-tree/compatible", "proc/cmdline", "sys/bus/pci/devices/0000:00:00.0/vendor", "sys/bus/pci/devices/0000:00:00.0/device"} {
			root[name] = &fstest.MapFile{Data: b}
		}
		h := Probe(Source{Root: root})
		if h.MemoryBytes < 0 || h.CPUs < 0 {
			t.Fatalf("%+v", h)
		}
		if h.Profile = hwprofiles.Match(Box(Source{Arch: "amd64", Root: root}), all).Profile; h.Profile == "" {
			t.Fatal("no profile")
		}
		Labels(h)
	})
}
