package hwprofiles

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func all(t testing.TB) []Profile {
	t.Helper()
	list, err := All()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestRecordedProbes holds the probes of real machines against the profiles that they
// are known to need, and reads each back as it was written.
func TestRecordedProbes(t *testing.T) {
	profiles := all(t)
	files, err := filepath.Glob("testdata/probes/*.yaml")
	if err != nil || len(files) < 16 {
		t.Fatalf("%d probes, %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ReadProbe(b)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if p.Source == "" {
			t.Errorf("%s names no source", f)
		}
		if r := Match(p, profiles); r.Profile != p.Expect || p.Expect == "" {
			t.Errorf("%s: %s, want %s\n%+v", f, r.Profile, p.Expect, r)
		}
		if out, err := p.Record(); err != nil || string(out) != string(b) {
			t.Errorf("%s: recorded again it is\n%s%v", f, out, err)
		}
	}
}

// TestKindsOfMachines names what should become of machines of which there is no
// recording: guests, laptops, old and foreign ones, and some that say nothing.
func TestKindsOfMachines(t *testing.T) {
	profiles := all(t)
	for want, probes := range map[string][]Probe{
		"vm": {
			{Arch: "amd64", Hypervisor: "qemu", DMI: DMI{Vendor: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)", Chassis: "desktop"}, PCI: []string{"1af4:1041 0200"}, MemoryMiB: 512},
			{Arch: "amd64", Hypervisor: "amazon", DMI: DMI{Vendor: "Amazon EC2", Product: "m5.24xlarge"}, CPU: "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", CPUs: 96, MemoryMiB: 393216},
			{Arch: "amd64", Hypervisor: "hyperv", DMI: DMI{Vendor: "Microsoft Corporation", Product: "Virtual Machine"}},
			{Arch: "amd64", Hypervisor: "vmware", DMI: DMI{Vendor: "VMware, Inc.", Product: "VMware7,1"}, PCI: []string{"15ad:07b0 0200"}},
			{Arch: "amd64", Hypervisor: "kvm", DMI: DMI{Vendor: "Dell Inc.", Product: "PowerEdge R740", Chassis: "rack"}, CPUs: 64, MemoryMiB: 1 << 17}, // the host's firmware passed through
		},
		"vm-arm64": {{Arch: "arm64", Hypervisor: "qemu", DeviceTree: DeviceTree{Compatible: []string{"linux,dummy-virt"}}}},
		"generic-amd64": {
			{Arch: "amd64"}, // says nothing
			{Arch: "amd64", Hypervisor: "other"},
			{Arch: "amd64", Hypervisor: "virtualbox", DMI: DMI{Vendor: "innotek GmbH", Product: "VirtualBox"}},
			{Arch: "amd64", Hypervisor: "qemu", DMI: DMI{Vendor: "QEMU"}, PCI: []string{"8086:100e 0200"}}, // the card of a real machine
			{Arch: "amd64", DMI: DMI{Vendor: "LENOVO", Product: "20XW", Family: "ThinkPad X1 Carbon Gen 9", Chassis: "laptop"}, CPU: "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", CPUs: 8, MemoryMiB: 16384},
			{Arch: "amd64", DMI: DMI{Vendor: "HP", Product: "HP Stream 11", Chassis: "laptop"}, CPU: "Intel(R) Celeron(R) N4020 CPU @ 1.10GHz", CPUs: 2, MemoryMiB: 4096},
			{Arch: "amd64", DMI: DMI{Vendor: "Dell Inc.", Product: "PowerEdge R210", Family: "PowerEdge", Chassis: "rack"}, CPUs: 4, MemoryMiB: 8192}, // too small to serve others
			{Arch: "amd64", DMI: DMI{Vendor: "Dell Inc.", Product: "Precision 7920 Tower", Chassis: "desktop"}, CPU: "Intel(R) Xeon(R) Gold 6226R", CPUs: 32, MemoryMiB: 1 << 16},
		},
		"generic-arm64": {
			{Arch: "arm64"},
			{Arch: "arm64", Hypervisor: "vmware"},
			{Arch: "arm64", DMI: DMI{Vendor: "Greatwall", Chassis: "desktop"}, CPU: "Phytium D2000/8", CPUs: 8, MemoryMiB: 8192},
		},
		"field-arm64": {
			{Arch: "arm64", DeviceTree: DeviceTree{Model: "Raspberry Pi 4 Model B Rev 1.4", Compatible: []string{"raspberrypi,4-model-b", "brcm,bcm2711"}}, MemoryMiB: 3792},
			{Arch: "arm64", DeviceTree: DeviceTree{Model: "FooCorp Box", Compatible: []string{"foo,box", "fsl,imx8mm"}}},
		},
		"access-amd64": {
			{Arch: "amd64", DMI: DMI{Vendor: "Dell Inc.", Product: "PowerEdge XR12", Family: "PowerEdge", Chassis: "rack"}, CPU: "Intel(R) Xeon(R) Gold 6338N", CPUs: 64, MemoryMiB: 1 << 17},
			{Arch: "amd64", DMI: DMI{Vendor: "Intel", Product: "Coyote Pass", Chassis: "rack"}, CPU: "Intel(R) Xeon(R) Gold 6338N", CPUs: 64, MemoryMiB: 1 << 17, PCI: []string{"8086:0d5c 1200"}},
		},
		"aggregation-arm64": {
			{Arch: "arm64", DMI: DMI{Vendor: "Ampere", Product: "Mt. Jade", Chassis: "rack"}, CPU: "Ampere(R) Altra(R)", CPUs: 160, MemoryMiB: 1 << 19},
			{Arch: "arm64", DMI: DMI{Vendor: "NVIDIA", Product: "P3880", Chassis: "rack"}, CPU: "NVIDIA Grace", CPUs: 72, MemoryMiB: 1 << 18, PCI: []string{"15b3:a2dc 0200", "1a03:2000 0300"}}, // a DPU in its slot
		},
		"dpu-arm64": {
			{Arch: "arm64", DMI: DMI{Vendor: "https://www.mellanox.com", Product: "BlueField-3 SmartNIC Main Card", Family: "BlueField"}, CPUs: 16, MemoryMiB: 1 << 15},
			{Arch: "arm64", CPU: "ARM Cortex-A78AE", CPUs: 16, MemoryMiB: 1 << 15, PCI: []string{"15b3:a2dc 0200"}},
		},
		"aggregation-amd64": {
			{Arch: "amd64", DMI: DMI{Vendor: "Supermicro", Product: "SYS-6029P-WTRT"}, CPU: "Intel(R) Xeon(R) Gold 6226R CPU @ 2.90GHz", CPUs: 32, MemoryMiB: 1 << 18},
			{Arch: "amd64", DMI: DMI{Vendor: "GIGABYTE", Product: "R292-4S0", Chassis: "rack"}, CPU: "AMD EPYC 7543", CPUs: 64, MemoryMiB: 1 << 18},
			{Arch: "amd64", DMI: DMI{Vendor: "ASUSTeK", Product: "ESC4000", Chassis: "rack"}, CPU: "AMD EPYC 7302", CPUs: 32, MemoryMiB: 1 << 16, PCI: []string{"10de:20b5 0302"}},
		},
		"": {{Arch: "riscv64"}, {Arch: "386"}, {}},
	} {
		for _, p := range probes {
			r := Match(p, profiles)
			if r.Profile != want {
				t.Errorf("%s: got %q, want %q (%s)", p.Describe(), r.Profile, want, r.Why)
			}
			if r.Why == "" || len(r.Others)+min(1, len(r.Profile)) != len(profiles) {
				t.Errorf("%s: not every profile is explained: %+v", p.Describe(), r)
			}
			for _, o := range r.Others {
				if o.Why == "" {
					t.Errorf("%s: no reason against %s", p.Describe(), o.Profile)
				}
			}
		}
	}
}

var words = []string{"", "Acme", "acme box 9", "PowerEdge R740", "PowerEdge*", "Intel(R) Xeon(R) D-2146NT", "rack", "QEMU", "*", "fsl,imx8mm", "\x00 Default string", "é"}

func anyProbe(t *rapid.T) Probe {
	word := func(name string) string {
		return rapid.OneOf(rapid.SampledFrom(words), rapid.String()).Draw(t, name)
	}
	return Probe{Arch: rapid.SampledFrom([]string{"amd64", "arm64", "riscv64", ""}).Draw(t, "arch"), Hypervisor: rapid.SampledFrom([]string{"", "", "qemu", "vmware", "other", "nonsense"}).Draw(t, "hypervisor"),
		DMI:        DMI{Vendor: word("vendor"), Product: word("product"), Family: word("family"), Board: word("board"), Firmware: word("firmware"), Chassis: word("chassis")},
		DeviceTree: DeviceTree{Model: word("model"), Compatible: rapid.SliceOfN(rapid.SampledFrom(words), 0, 3).Draw(t, "compatible")},
		CPU:        word("cpu"), CPUs: rapid.Int64().Draw(t, "cpus"), MemoryMiB: rapid.Int64().Draw(t, "memory"), Ports: rapid.Int64().Draw(t, "ports"),
		PCI: rapid.SliceOfN(rapid.SampledFrom([]string{"8086:0d5c 1200", "10de:20b5 0302", "15ad:07b0 0200", "", "x"}), 0, 3).Draw(t, "pci")}
}

// TestEveryMachineGetsAProfile: whatever a box says, it gets a profile of its own
// architecture, always the same, and a reason for every profile.
func TestEveryMachineGetsAProfile(t *testing.T) {
	profiles := all(t)
	arch := map[string]string{}
	for _, p := range profiles {
		arch[p.Name] = p.Arch
	}
	rapid.Check(t, func(t *rapid.T) {
		p := anyProbe(t)
		r := Match(p, profiles)
		if p.Arch == "amd64" || p.Arch == "arm64" {
			if arch[r.Profile] != p.Arch {
				t.Fatalf("%+v got %q", p, r.Profile)
			}
		} else if r.Profile != "" {
			t.Fatalf("%+v got %q", p, r.Profile)
		}
		mixed := slices.Clone(profiles)
		for i := range mixed {
			j := rapid.IntRange(0, i).Draw(t, "swap")
			mixed[i], mixed[j] = mixed[j], mixed[i]
		}
		if again := Match(p, mixed); !reflect.DeepEqual(again, r) {
			t.Fatalf("the order of profiles matters: %+v, then %+v", r, again)
		}
		loud := p
		for _, s := range []*string{&loud.DMI.Vendor, &loud.DMI.Product, &loud.CPU} {
			if u := strings.ToUpper(*s); len(u) == len(*s) && strings.EqualFold(u, *s) {
				*s = u
			}
		}
		if again := Match(loud, profiles); again.Profile != r.Profile {
			t.Fatalf("case matters: %+v got %q, and %+v got %q", p, r.Profile, loud, again.Profile)
		}
	})
}

// TestTheMoreExactWins: a profile made for a box, naming it in full, is taken for it,
// whatever stood there before; and it takes no box that it does not name.
func TestTheMoreExactWins(t *testing.T) {
	profiles := all(t)
	rapid.Check(t, func(t *rapid.T) {
		p := anyProbe(t)
		p.Arch, p.Hypervisor = "amd64", ""
		p.DMI.Product = rapid.StringMatching(`[A-Z][a-z]{2,8} [0-9]{2,4}`).Draw(t, "product")
		own := Profile{Name: "zz-own", Arch: "amd64", Match: []Rule{{Product: []string{p.DMI.Product}}}}
		before := Match(p, profiles)
		if before.Rank == ByName { // it may name the box in more ways than one: so does ours then
			return
		}
		if r := Match(p, append(slices.Clone(profiles), own)); r.Profile != "zz-own" || r.Rank != ByName {
			t.Fatalf("%+v got %+v", p, r)
		}
		other := p
		other.DMI.Product += " x"
		if a, b := Match(other, profiles), Match(other, append(slices.Clone(profiles), own)); a.Profile != b.Profile {
			t.Fatalf("a box that it does not name went from %q to %q", a.Profile, b.Profile)
		}
		// One more condition that holds makes a rule win over the same without it.
		more := own
		more.Name, more.Match = "aa-more", []Rule{{Product: []string{p.DMI.Product}, MinCPUs: 1}}
		less := own
		less.Name = "aa-less"
		p.CPUs = 4
		if r := Match(p, []Profile{less, own, more}); r.Profile != "aa-more" {
			t.Fatalf("got %+v", r)
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"PowerEdge R*", "poweredge r740", true}, {"PowerEdge R", "PowerEdge R740", false}, {"*Xeon*D-21*", "Intel(R) Xeon(R) D-2146NT CPU", true},
		{"*a*b", "xaxbxb", true}, {"*a*b", "xaxbx", false}, {"a*", "", false}, {"*", "x", true}, {"a**b", "ab", true}, {"", "", false}, {"", "a", false},
	} {
		if got := glob(c.pattern, c.text); got != c.want {
			t.Errorf("glob(%q, %q) is %v", c.pattern, c.text, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-c]{0,3}`), 1, 6).Draw(t, "parts")
		fill := rapid.SliceOfN(rapid.StringMatching(`[a-c]{0,3}`), len(parts), len(parts)).Draw(t, "fill")
		var text strings.Builder
		for i, p := range parts {
			text.WriteString(p)
			if i < len(parts)-1 {
				text.WriteString(fill[i])
			}
		}
		if text.Len() > 0 && !glob(strings.Join(parts, "*"), text.String()) {
			t.Fatalf("%q does not fit %q", text.String(), strings.Join(parts, "*"))
		}
	})
}

func TestHypervisor(t *testing.T) {
	for _, c := range []struct {
		d    DMI
		flag bool
		want string
	}{
		{DMI{Vendor: "QEMU", Product: "Standard PC (i440FX + PIIX, 1996)"}, true, "qemu"},
		{DMI{Vendor: "Amazon EC2", Product: "m5.large"}, true, "amazon"},
		{DMI{Vendor: "Amazon EC2", Product: "m5.metal"}, false, ""},
		{DMI{Vendor: "Microsoft Corporation", Product: "Virtual Machine"}, true, "hyperv"},
		{DMI{Vendor: "Microsoft Corporation", Product: "Surface Pro 7"}, true, "other"}, // Windows keeps the processor for itself
		{DMI{Vendor: "Microsoft Corporation", Product: "Surface Pro 7"}, false, ""},
		{DMI{Vendor: "Red Hat", Product: "KVM"}, true, "kvm"},
		{DMI{Vendor: "Google", Product: "Google Compute Engine"}, true, "google"},
		{DMI{Vendor: "Google", Product: "Eve"}, false, ""}, // a laptop
		{DMI{Vendor: "HPE", Product: "ProLiant DL360 Gen10"}, false, ""},
		{DMI{}, true, "other"}, {DMI{}, false, ""},
	} {
		if got := HypervisorOf(c.d, DeviceTree{}, c.flag); got != c.want {
			t.Errorf("%+v, %v: %q, want %q", c.d, c.flag, got, c.want)
		}
	}
}

func TestDMIDecode(t *testing.T) {
	structure := func(title, body string) string {
		return "Handle 0x0001, DMI type 1, 27 bytes\n" + title + "\n\t" + strings.ReplaceAll(body, "\n", "\n\t") + "\n\n"
	}
	head := "# dmidecode 3.3\nSMBIOS 3.0 present.\n\n"
	for name, c := range map[string]struct {
		text string
		want Probe
	}{
		"a server": {head + structure("System Information", "Manufacturer: Acme\nProduct Name: Big 1\nFamily: To be filled by O.E.M.\nSerial Number: secret") +
			structure("Base Board Information", "Manufacturer: Acme\nProduct Name: B1") + structure("Base Board Information", "Product Name: riser") +
			structure("Chassis Information", "Type: Rack Mount Chassis") +
			structure("Processor Information", "Type: Central Processor\nFamily: Xeon\nManufacturer: Intel\nVersion: Xeon  9\nStatus: Populated, Enabled\nThread Count: 16\nCharacteristics:\n\t64-bit capable") +
			structure("Processor Information", "Type: Central Processor\nManufacturer: Intel\nStatus: Populated, Enabled\nThread Count: 16") +
			structure("Processor Information", "Status: Unpopulated") +
			structure("Memory Device", "Size: 16 GB\nType: DDR4") + structure("Memory Device", "Size: 512 MB\nType: DDR4") + structure("Memory Device", "Size: No Module Installed") + structure("Memory Device", "Size: 16 MB\nType: Flash") +
			structure("Onboard Device", "Type: Ethernet\nStatus: Enabled") + structure("Onboard Device", "Type: Ethernet\nStatus: Disabled"),
			Probe{Arch: "amd64", DMI: DMI{Vendor: "Acme", Product: "Big 1", BoardVendor: "Acme", Board: "B1", Chassis: "rack"}, CPU: "Xeon 9", CPUs: 32, MemoryMiB: 16896, Ports: 1}},
		"U-Boot, and little else": {head + structure("BIOS Information", "Vendor: U-Boot"), Probe{Arch: "arm64", DMI: DMI{Firmware: "U-Boot"}}},
		"an old PC":               {head + structure("Processor Information", "Family: Pentium III\nManufacturer: Intel\nSignature: Type 0, Family 6, Model 8, Stepping 3\nVersion: Pentium III"), Probe{Arch: "386", CPU: "Pentium III", CPUs: 1}},
		"a PC that says a wrong family": {head + structure("Processor Information", "Family: Pentium III\nManufacturer: Intel\nSignature: Type 0, Family 6, Model 15, Stepping 6\nVersion: Intel(R) Core(TM)2 CPU"),
			Probe{Arch: "amd64", CPU: "Intel(R) Core(TM)2 CPU", CPUs: 1}},
		"a board without SMBIOS": {"ld.so: ignored\n# dmidecode 3.3\n# No SMBIOS nor DMI entry point found, sorry.\n", Probe{Arch: "arm64"}},
		"RISC-V":                 {head + structure("Processor Information", "Family: RISC-V RV64\nManufacturer: SiFive"), Probe{Arch: "riscv64", CPUs: 1}},
		"ARM, 32 bits":           {head + structure("Processor Information", "Family: ARM\nManufacturer: ARM Limited\nVersion: Cortex-A9"), Probe{Arch: "arm", CPU: "Cortex-A9", CPUs: 1}},
		"a guest": {head + structure("BIOS Information", "Vendor: Unheard Of\nCharacteristics:\n\tSystem is a virtual machine"),
			Probe{Arch: "amd64", Hypervisor: "other", DMI: DMI{Firmware: "Unheard Of"}}},
		"torn off": {head + "Handle 0x0001, DMI type 1, 27 bytes\nSystem Information\n\tManufacturer: Acme\n\tProd", Probe{Arch: "amd64", DMI: DMI{Vendor: "Acme"}}},
	} {
		got, err := ReadProbe([]byte(c.text))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, c.want)
		}
		// Windows' line ends change nothing.
		if again, err := ReadProbe([]byte(strings.ReplaceAll(c.text, "\n", "\r\n"))); err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("%s with \\r\\n: %v %+v", name, err, again)
		}
	}
	for _, text := range []string{"", "# dmidecode 3.3\n", "18:00.0 Ethernet controller: nameless\n", "# dmidecode 3.3\n/dev/mem: Permission denied\n"} {
		if p, err := ParseDMIDecode([]byte(text)); err == nil {
			t.Errorf("%q gave %+v", text, p)
		}
	}
}

func TestClean(t *testing.T) {
	for _, s := range []string{"To be filled by O.E.M.", "Default string", " ", "0123456789", "Not Specified", "\x00", "00000000", "--", "System Product Name", "********"} {
		if got := Clean(s); got != "" {
			t.Errorf("%q gave %q", s, got)
		}
	}
	for s, want := range map[string]string{" Acme\t 9 \n": "Acme 9", "SG": "SG", "20XW": "20XW", "1.0": "1.0"} {
		if got := Clean(s); got != want {
			t.Errorf("%q gave %q", s, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		if once := Clean(s); Clean(once) != once || len(once) > maxText {
			t.Fatalf("%q: %q, then %q", s, once, Clean(once))
		}
	})
}

func FuzzReadProbe(f *testing.F) {
	f.Add([]byte("# dmidecode 3.3\n\nHandle 0x0001, DMI type 1, 27 bytes\nSystem Information\n\tManufacturer: Acme\n\tFeatures:\n\t\tx\n"))
	f.Add([]byte("arch: arm64\ndeviceTree: {compatible: [\"fsl,imx8mm\"]}\npci: [\"8086:0d5c 1200\"]\n"))
	f.Add([]byte("Handle 0x\nMemory Device\n\tSize: 9223372036854775807 TB\n\nHandle 0x\nProcessor Information\n\tThread Count: -1\n"))
	f.Add([]byte("18:00.0 Ethernet controller [0200]: Intel E810-C [8086:1593] (rev 02)\n18:00.1 0200: 8086:1593\n"))
	profiles := all(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ReadProbe(b)
		if err != nil {
			return
		}
		if p.CPUs < 0 || p.MemoryMiB < 0 || p.Ports < 0 || len(p.DMI.Product) > maxText {
			t.Fatalf("%+v", p)
		}
		r := Match(p, profiles)
		if r.Why == "" || (p.Arch == "amd64" || p.Arch == "arm64") && r.Profile == "" {
			t.Fatalf("%+v gave %+v", p, r)
		}
		out, err := p.Record()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseProbe(out); err != nil || fmt.Sprint(again) != fmt.Sprint(p) {
			t.Fatalf("recorded and read again: %v\n%+v\n%+v\n%s", err, p, again, out)
		}
	})
}
