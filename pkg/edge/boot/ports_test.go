package boot

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
)

// sysfs lays out cards as the kernel shows them.
func sysfs(t *testing.T) string {
	t.Helper()
	sys := t.TempDir()
	for name, c := range map[string]struct {
		device, driver string
		files          map[string]string
	}{
		"enp3s0":   {"0000:03:00.0", "ice", map[string]string{"sriov_totalvfs": "64\n", "sriov_numvfs": "0\n"}},
		"enp3s0v0": {"0000:03:01.0", "iavf", map[string]string{"physfn": ""}},
		"enp4s0":   {"0000:04:00.0", "igb", map[string]string{"sriov_totalvfs": "7\n", "sriov_numvfs": "2\n"}},
		"enp5s0":   {"0000:05:00.0", "igb", map[string]string{"sriov_totalvfs": "1\n", "sriov_numvfs": "0\n"}},
		"enp6s0":   {"0000:06:00.0", "e1000e", nil},
	} {
		dev := filepath.Join(sys, "devices", c.device)
		net, driver := filepath.Join(sys, "class/net", name), filepath.Join(sys, "drivers", c.driver)
		for _, dir := range []string{dev, net, driver} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for link, to := range map[string]string{filepath.Join(net, "device"): dev, filepath.Join(dev, "driver"): driver} {
			if err := os.Symlink(to, link); err != nil {
				t.Fatal(err)
			}
		}
		for f, text := range c.files {
			if err := os.WriteFile(filepath.Join(dev, f), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return sys
}

func TestPorts(t *testing.T) {
	sys := sysfs(t)
	p := hwprofiles.Profile{Name: "x", NICs: []hwprofiles.NIC{
		{Drivers: []string{"igb"}, Role: hwprofiles.Site, VirtualFunctions: 4}, {Drivers: []string{"ice"}, Role: hwprofiles.Fronthaul, VirtualFunctions: 8, Switchdev: true}, {Role: hwprofiles.Uplink, VirtualFunctions: 9}}}
	var got []todo
	for _, d := range portPlan(ports(sys), p) {
		d.port = port{name: d.name}
		got = append(got, d)
	}
	want := []todo{{port{name: "enp3s0"}, true, 8}, {port{name: "enp5s0"}, false, 1}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	b := &booter{out: &consoles{}, facts: Facts{Profile: p}}
	b.setPorts(sys)
	for name, want := range map[string]string{"enp3s0": "8", "enp4s0": "2\n", "enp5s0": "1\n"} {
		if text, err := os.ReadFile(filepath.Join(sys, "class/net", name, "device/sriov_numvfs")); err != nil || string(text)[:1] != want[:1] {
			t.Errorf("%s: %q %v", name, text, err)
		}
	}
}

// A profile whose boxes cannot relay wins over CONFIG; one that can, and none at all, do not.
func TestRelayNotCapable(t *testing.T) {
	for _, c := range []struct {
		name string
		can  bool
		want bool
	}{{"tiny", false, false}, {"big", true, true}, {"", false, true}} {
		b := &booter{out: &consoles{}, facts: Facts{Settings: Settings{Relay: true}, Profile: hwprofiles.Profile{Name: c.name, Relay: hwprofiles.Relay{Capable: c.can}}}}
		if err := b.heedProfile(t.Context()); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, w := range b.warnings {
			names = append(names, w.Name)
			if w.Severity != api.Degraded || w.Remedy == "" {
				t.Errorf("%+v", w)
			}
		}
		if b.facts.Settings.Relay != c.want || (len(names) == 0) != c.want {
			t.Errorf("%+v: relay %v, warnings %v", c, b.facts.Settings.Relay, names)
		}
	}
}
