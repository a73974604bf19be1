package hwprofiles

import (
	"errors"
	"io/fs"
	"reflect"
	"testing"
	"testing/fstest"
)

// What the builder writes is what a box reads, for every profile.
func TestInstalled(t *testing.T) {
	for _, p := range all(t) {
		b, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Installed(fstest.MapFS{InstalledFile: {Data: b}})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, p) {
			t.Errorf("%s comes back as\n%+v\nfrom\n%+v", p.Name, got, p)
		}
	}
	if _, err := Installed(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, bad := range [][]byte{nil, []byte("{"), make([]byte, maxInstalled+1)} {
		if _, err := Installed(fstest.MapFS{InstalledFile: {Data: bad}}); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

func TestNICPolicy(t *testing.T) {
	p := Profile{NICs: []NIC{{Drivers: []string{"ice"}, Role: Fronthaul}, {Drivers: []string{"igb", "e1000e"}, Role: Site, VirtualFunctions: 2}, {Role: Uplink}}}
	for driver, want := range map[string]string{"ice": Fronthaul, "igb": Site, "e1000e": Site, "virtio_net": Uplink, "": Uplink} {
		if n, ok := p.NIC(driver); !ok || n.Role != want {
			t.Errorf("%s: %+v", driver, n)
		}
	}
	if n, ok := (Profile{NICs: p.NICs[:1]}).NIC("igb"); ok {
		t.Errorf("no policy fits: %+v", n)
	}
}
