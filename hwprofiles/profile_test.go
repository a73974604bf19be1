package hwprofiles

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"tributary.dev/tributary/pkg/api"
)

func TestEveryProfileLoads(t *testing.T) {
	for _, name := range Names() {
		p, err := Load(name)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if p.Name != name || len(p.Cmdline()) == 0 || !strings.HasPrefix(p.Cmdline()[len(p.Cmdline())-1], "console="+p.Consoles[0].TTY) {
			t.Errorf("%s: %v", name, p.Cmdline())
		}
		if p.Watchdog.Drivers[len(p.Watchdog.Drivers)-1] != "softdog" {
			t.Errorf("%s: a box without a watchdog of its own gets none", name)
		}
	}
	for _, name := range []string{"generic-amd64", "generic-arm64"} {
		if p, err := Load(name); err != nil || len(p.Match) != 0 {
			t.Errorf("%s is the fallback: it has no rules. %v", name, err)
		}
	}
	if _, err := Load("nonesuch"); api.CodeOf(err) != api.NotFound || !strings.Contains(err.Error(), "generic-amd64") {
		t.Errorf("%v", err)
	}
	if _, err := Load("../go"); api.CodeOf(err) != api.Invalid {
		t.Errorf("%v", err)
	}
}

// TestClassesExist: each class that a profile names is a list of the image builder.
func TestClassesExist(t *testing.T) {
	for _, p := range all(t) {
		for dir, classes := range map[string][]string{"modules": p.Modules, "modules/initramfs": p.Initramfs, "firmware": p.Firmware} {
			for _, c := range classes {
				if _, err := os.Stat(filepath.Join("../rootfs", dir, c+".list")); err != nil {
					t.Errorf("%s names the class %s: %v", p.Name, c, err)
				}
			}
		}
	}
}

// TestTheExampleOfTheDocs: docs/hardware.md adds a board by a profile and a probe; that
// works as it stands there, and every field is explained.
func TestTheExampleOfTheDocs(t *testing.T) {
	b, err := os.ReadFile("../docs/hardware.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)```yaml\n# ([^\n]+)\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
		blocks[m[1]] = m[2]
	}
	profiles, err := AllFrom(With(fstest.MapFS{"acme-box-9.yaml": {Data: []byte(blocks["hwprofiles/acme-box-9.yaml"])}}, "boards"))
	if err != nil {
		t.Fatal(err)
	}
	box, err := ReadProbe([]byte(blocks["hwprofiles/testdata/probes/acme-box-9.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	if r := Match(box, profiles); r.Profile != "acme-box-9" || box.Expect != r.Profile {
		t.Errorf("%+v", r)
	}
	if r := Match(box, all(t)); r.Profile != "field-amd64" {
		t.Errorf("without its file the box is %s", r.Profile)
	}
	for _, v := range []any{Profile{}, Rule{}, Kernel{}, Partitions{}, CPU{}, NIC{}, GPU{}, Watchdog{}, Console{}, Relay{}, Power{}, PhysicalPresence{}} {
		for f := range fields(reflect.TypeOf(v)) {
			if !strings.Contains(string(b), "`"+f+"`") && f != "name" {
				t.Errorf("docs/hardware.md does not explain %s of %T", f, v)
			}
		}
	}
}

// fields yields the names of a struct's fields in a file.
func fields(t reflect.Type) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i := range t.NumField() {
			if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); !yield(name) {
				return
			}
		}
	}
}

func TestCmdline(t *testing.T) {
	p := Profile{Kernel: Kernel{Args: []string{"panic=10"}}, Watchdog: Watchdog{Timeout: 30}, CPU: CPU{Isolate: "2-N", Housekeeping: "0-1", HugePages: []HugePages{{Size: "1G", Count: 4}, {Size: "2M", Count: 64}}},
		Consoles: []Console{{TTY: "ttyS0", Baud: 115200}, {TTY: "tty0"}}}
	want := "panic=10 tributary.watchdog=30 isolcpus=managed_irq,domain,2-N nohz_full=2-N rcu_nocbs=2-N irqaffinity=0-1 default_hugepagesz=1G hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=64 console=tty0 console=ttyS0,115200n8"
	if got := strings.Join(p.Cmdline(), " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// files is a folder of profiles: generic-amd64 as it is, and test.yaml.
func files(t testing.TB, test string) fstest.MapFS {
	t.Helper()
	generic, err := os.ReadFile("generic-amd64.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return fstest.MapFS{"generic-amd64.yaml": {Data: generic}, "test.yaml": {Data: []byte(test)}}
}

func TestBase(t *testing.T) {
	p, err := LoadFrom(files(t, "title: Mine\nbase: generic-amd64\narch: amd64\npartitions: {root: 2048}\nmatch: [{product: [Box 9]}]\nmodules: [base]\n"), "test")
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "test" || p.Title != "Mine" || p.Partitions.Root != 2048 || p.Partitions.ESP != 256 || p.Kernel.Flavour != "full" || len(p.Modules) != 1 || len(p.Match) != 1 || p.Base != "generic-amd64" {
		t.Errorf("%+v", p)
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct{ change, field string }{
		"unknown field":         {"partitions: {rooot: 1}", "line 4: partitions.rooot: there is no such field (did you mean root?)"},
		"unknown deep field":    {"match: [{product: [a], serial: [b]}]", "match[0].serial"},
		"another name":          {"name: other", "name"},
		"no such base":          {"base: nonesuch", "base"},
		"a base that goes back": {"base: test", "base"},
		"a text for a number":   {"partitions: {root: big}", "partitions.root"},
		"a small root":          {"partitions: {root: 100}", "partitions.root"},
		"a small tree":          {"partitions: {root: 4096, verity: 16}", "partitions.verity"},
		"an huge disk":          {"partitions: {data: 99999999}", "partitions.data"},
		"no kernel":             {"kernel: {flavour: zen}", "kernel.flavour"},
		"a shell":               {"kernel: {args: [panic=10, init=/bin/sh]}", "kernel.args[1]"},
		"an emergency":          {"kernel: {args: [panic=10, single]}", "kernel.args[1]"},
		"two in one":            {"kernel: {args: [\"panic=10 init=/bin/sh\"]}", "kernel.args[0]"},
		"a quote":               {"kernel: {args: [panic=10, 'x=\"a']}", "kernel.args[1]"},
		"a line":                {"kernel: {args: [panic=10, \"x\\ny\"]}", "kernel.args[1]"},
		"no lockdown":           {"kernel: {args: [panic=10, lockdown=none]}", "kernel.args[1]"},
		"unsigned modules":      {"kernel: {args: [panic=10, module.sig-enforce=0]}", "kernel.args[1]"},
		"weaker":                {"kernel: {args: [panic=10, mitigations=off]}", "kernel.args[1]"},
		"another's":             {"kernel: {args: [panic=10, tributary.version=9]}", "kernel.args[1]"},
		"another's console":     {"kernel: {args: [panic=10, console=ttyS9]}", "kernel.args[1]"},
		"panics for ever":       {"kernel: {args: [panic=0]}", "kernel.args[0]"},
		"no panic":              {"kernel: {args: [quiet]}", "kernel.args"},
		"too long":              {"kernel: {args: [panic=10, " + strings.Repeat("a=", 1) + strings.Repeat("b", 199) + "]}", "kernel.args[1]"},
		"a tree for a PC":       {"kernel: {deviceTree: rockchip/rk3588-rock-5b.dtb}", "kernel.deviceTree"},
		"a path for a tree":     {"kernel: {deviceTree: ../../etc/x.dtb}", "kernel.deviceTree"},
		"a path for a class":    {"modules: [../../etc]", "modules[0]"},
		"a path for a driver":   {"watchdog: {drivers: [/lib/x.ko]}", "watchdog.drivers[0]"},
		"no watchdog":           {"watchdog: {drivers: []}", "watchdog.timeout"},
		"a path for a console":  {"consoles: [{tty: ../sda}]", "consoles[0].tty"},
		"CPU 0":                 {"cpu: {isolate: 0-3, housekeeping: 4-N}", "cpu.isolate"},
		"half of a split":       {"cpu: {isolate: 2-N}", "cpu"},
		"a rule for all":        {"match: [{virtual: any}]", "match[0]"},
		"a pattern for all":     {"match: [{product: [\"*\"]}]", "match[0].product[0]"},
		"no PCI id":             {"match: [{pci: [\"80860d5c\"]}]", "match[0].pci[0]"},
		"memory turned round":   {"match: [{minMemory: 10, maxMemory: 5}]", "match[0].maxMemory"},
		"an open shell":         {"physicalPresence: {shell: true}", "physicalPresence.shell"},
		"power turned round":    {"power: {idleW: 50, maxW: 10}", "power.maxW"},
		"two documents":         {"---\ntitle: x", "documents"},
	} {
		text := "title: Mine\nbase: generic-amd64\narch: amd64\n" + c.change + "\n"
		if strings.HasPrefix(c.change, "base:") {
			text = "title: Mine\narch: amd64\n" + c.change + "\n"
		}
		if name == "no watchdog" {
			text = strings.Replace(text, "drivers: []", "timeout: 0", 1)
		}
		_, err := LoadFrom(files(t, text), "test")
		if err == nil || !strings.Contains(err.Error(), c.field) && name != "no such base" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, name := range []string{"generic-amd64", "access-amd64", "vm"} {
		b, err := os.ReadFile(name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("base: test"))
	f.Add([]byte("base: generic-amd64\ntitle: x\narch: amd64\nkernel: {args: [panic=10, a=b]}\n"))
	dir := files(f, "")
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := fstest.MapFS{"generic-amd64.yaml": dir["generic-amd64.yaml"], "test.yaml": {Data: b}}
		p, err := LoadFrom(dir, "test")
		if err != nil {
			if api.CodeOf(err) == api.Internal {
				t.Fatal(err)
			}
			return
		}
		line := strings.Join(p.Cmdline(), " ")
		if len(line) > maxArgs || strings.ContainsAny(line, "\n\"'\\$`") || strings.Contains(" "+line, " init=") || p.Partitions.Root < 384 || p.Partitions.Total() < 1000 {
			t.Fatalf("%q %+v", line, p.Partitions)
		}
	})
}

// Words that a person adds to an image's command line are held to what profiles are.
func TestCheckArgument(t *testing.T) {
	for arg, good := range map[string]bool{
		"debug": true, "mem=512M": true, "tributary.install.disk=nvme0n1": true,
		"init=/bin/sh": false, "lockdown=none": false, "roothash=00": false, "module.sig_enforce=0": false,
		"tributary.profile=x": false, "two words": false, "a=b init=/bin/sh": false, "": false, "tributary.install.disk=a init=/bin/sh": false,
	} {
		if err := CheckArgument(arg); (err == nil) != good {
			t.Errorf("%q: %v", arg, err)
		}
	}
}
