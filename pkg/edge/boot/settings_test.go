package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	s, err := ParseSettings([]byte(`
join: {token: tj1.a.b.c, parent: "https://core.example:8443"}
name: box-7
labels: {site: north}
bootstrap: ["https://owner.example:8444"]
network:
  uplinks:
    - match: {name: eth0}
      addresses: [10.0.0.2/24, "fd00::2/64"]
      gateway: 10.0.0.1
      dns: [10.0.0.1]
      vlan: 12
    - {match: {driver: igb}, dhcp: true, metric: 300}
`))
	if err != nil || s.Name != "box-7" || len(s.Network.Uplinks) != 2 || s.Network.Uplinks[0].VLAN != 12 || !s.Network.Uplinks[1].DHCP || len(s.Bootstrap) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for text, says := range map[string]string{
		"naem: x":  "naem",
		"name: -x": "host name",
		"network: {uplinks: [{addresses: [10.0.0.2]}]}":        "prefix length",
		"network: {uplinks: [{vlan: 5000}]}":                   "4094",
		"network: {uplinks: [{gateway: nowhere}]}":             "gateway",
		"join: {parent: 'http://x'}":                           "join.parent",
		"bootstrap: ['http://x']":                              "bootstrap",
		"bootstrap: ['x:8444']":                                "bootstrap",
		"join: {token: 'a b'}":                                 "join token",
		"# " + strings.Repeat("x", MaxSettings):                "bytes",
		"network: {uplinks: [{match: {name: a}, wifi: true}]}": "wifi",
	} {
		if got, err := ParseSettings([]byte(text)); err == nil || !strings.Contains(err.Error(), says) || got.Name != "" {
			t.Errorf("%.60q: %+v, %v", text, got, err)
		}
	}
	if s, err := ParseSettings(nil); err != nil || s.Name != "" {
		t.Errorf("an empty file: %+v, %v", s, err)
	}
}

func TestParentFlag(t *testing.T) {
	for text, want := range map[string]string{
		"https://core.example:8443": "core.example:8883,8443", "https://[fd00::1]": "[fd00::1]:8883,443",
		"10.0.0.1:99,98": "10.0.0.1:99,98", "https://h/": "h:8883,443",
		"ftp://h": "", "https://": "", "https://u@h": "", "a b": "", "https://h/x": "", "https://h,1": "",
	} {
		got, err := ParentFlag(text)
		if got != want || (err == nil) == (want == "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("join: {token: a, parent: 'https://h:1'}\nname: b\nnetwork: {uplinks: [{dhcp: true}]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSettings(text)
		if err == nil && s.Name != "" && !validName(s.Name) {
			t.Fatal(s.Name)
		}
	})
}

func TestBrief(t *testing.T) {
	fault := func(n int) error { return fmt.Errorf("fault %d", n) }
	for want, err := range map[string]error{
		"fault 1":                               fault(1),
		"fault 1\nfault 2\nfault 3\nfault 4":    errors.Join(fault(1), fault(2), fault(3), fault(4)),
		"fault 1\nfault 2\nfault 3\nand 2 more": errors.Join(fault(1), errors.Join(fault(2), fault(3)), fault(4), fault(5)),
	} {
		if got := brief(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A CONFIG that cannot be read is told by a warning with a name.
func TestConfigUnreadable(t *testing.T) {
	node := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(node, bytes.Repeat([]byte("noise"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := readVolume(node, "tributary.yaml")
	if err == nil {
		t.Fatal("noise is a volume")
	}
	if w := unreadable(err); w.Name != "config-unreadable" || w.Remedy == "" || !strings.Contains(w.Message, err.Error()) {
		t.Errorf("%+v", w)
	}
}
