package recovery

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// setBox has two ports in a bond, a modem that costs and a wireless network.
const setBox = `{"phase":"kept","settings":{"proxy":"http://joe:hunter2@p:1","bonds":[{"name":"bond0","mode":"802.3ad","ports":[{"name":"enp1s0f*"}]}],
	"uplinks":[{"match":{"name":"bond0"},"addresses":["10.0.0.5/24"],"gateway":"10.0.0.1","vlan":12,"metric":7},{"match":{"driver":"cdc_ether"},"dhcp":true,"cost":10},
		{"match":{"name":"wlan0"},"dhcp":true,"wifi":{"ssid":"site","passphrase":"the right words"}}]}}`

// TestNetworkFormKeeps: what the form does not ask for stays, and is shown; a person may drop it.
func TestNetworkFormKeeps(t *testing.T) {
	a := stand(t)
	for _, dir := range []string{"enp1s0f0/device", "enp1s0f1/device", "wlan0/device", "enp9s0/device"} {
		if err := os.MkdirAll(a.path("/sys/class/net", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a.put(t, "/sys/class/net/wlan0/uevent", "DEVTYPE=wlan\n")
	a.put(t, "/state/network.json", setBox)
	var was struct{ Settings api.NetworkSettings }
	if err := json.Unmarshal([]byte(setBox), &was); err != nil {
		t.Fatal(err)
	}
	set := func(fields map[string]string) (*api.NetworkSettings, error) {
		t.Helper()
		_ = os.Remove(a.path("/run/tributary/network-wish.json")) // a refusal leaves none
		if err := a.Do(t.Context(), "network-set", fields, func(string) {}); err != nil {
			return nil, err
		}
		var w Wanted
		if err := readJSON(a.path("/run/tributary/network-wish.json"), &w); err != nil {
			t.Fatal(err)
		}
		return w.Settings, nil
	}
	s, err := set(map[string]string{"link": "bond0", "mode": "fixed", "address": "10.0.0.9/24", "vlan": "0", "others": "keep"})
	want := was.Settings
	want.Uplinks = slices.Clone(want.Uplinks)
	want.Uplinks[0] = api.Uplink{Match: api.UplinkMatch{Name: "bond0"}, Addresses: []string{"10.0.0.9/24"}, DNS: s.Uplinks[0].DNS, Metric: 7}
	if err != nil || !reflect.DeepEqual(*s, want) {
		t.Errorf("another address of the bond: %v\ngot  %+v\nwant %+v", err, s, want)
	}
	s, err = set(map[string]string{"link": "enp9s0", "mode": "dhcp"}) // a script that says nothing of the others drops nothing
	if err != nil || !reflect.DeepEqual(s.Uplinks[1:], was.Settings.Uplinks) || !reflect.DeepEqual(s.Bonds, was.Settings.Bonds) || s.Proxy != was.Settings.Proxy || s.Uplinks[0].Match.Name != "enp9s0" {
		t.Errorf("another card: %v %+v", err, s)
	}
	for card, name := range map[string]string{"enp1s0f1": "a port of a bond", "wlan0": "a wireless card", "enp1s0f*": "a pattern"} {
		if _, err := set(map[string]string{"link": card, "others": "keep"}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	s, err = set(map[string]string{"link": "enp1s0f1", "mode": "dhcp", "others": "drop", "proxy": "none"})
	if err != nil || len(s.Bonds) != 0 || len(s.Uplinks) != 1 || s.Proxy != "" {
		t.Errorf("others dropped: %v %+v", err, s)
	}
	if s, err = set(map[string]string{"link": "bond0", "mode": "dhcp", "others": "drop"}); err != nil || len(s.Bonds) != 1 || len(s.Uplinks) != 1 {
		t.Errorf("others dropped, but the bond itself: %v %+v", err, s)
	}
	if err := a.Do(t.Context(), "wifi-join", map[string]string{"link": "wlan0", "ssid": "other"}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	var w Wanted
	if err := readJSON(a.path("/run/tributary/network-wish.json"), &w); err != nil || !reflect.DeepEqual(w.Settings.Bonds, was.Settings.Bonds) || len(w.Settings.Uplinks) != 3 {
		t.Errorf("a wireless network joined: %v %+v", err, w.Settings)
	}
	showsSettings(t, a)
}

// showsSettings: the page and its form tell what is set, and no secret; nor does the bundle.
func showsSettings(t *testing.T, a *Appliance) {
	t.Helper()
	f := a.Facts(t.Context())
	page := networkPage(f)
	text := fmt.Sprint(page.Lines, page.Deeds)
	for _, want := range []string{"bond bond0 of enp1s0f* (802.3ad)", "bond0 in VLAN 12", "cdc_ether", `wlan0 in the network "site"`, "keep or drop", "none takes it away"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q: %s", want, text)
		}
	}
	var bundle bytes.Buffer
	if err := a.Bundle(t.Context(), &bundle); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&bundle)
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", "the right words"} {
		if strings.Contains(text, secret) || bytes.Contains(all, []byte(secret)) {
			t.Errorf("%q is told", secret)
		}
	}
}

// Whatever is set: the form's interface gets what the form says, no other loses or gets an address, and nothing else changes.
func TestNetworkFormOnAnything(t *testing.T) {
	links := []Link{{Name: "eth0", Driver: "igb"}, {Name: "eth1", Driver: "igb"}, {Name: "eth2", Driver: "e1000e"}, {Name: "eth3", Driver: "e1000e"}, {Name: "wlan0", Kind: wireless}}
	matches := []api.UplinkMatch{{}, {Name: "eth*"}, {Name: "eth0"}, {Name: "eth1"}, {Driver: "igb"}, {Driver: "e1000e"}, {Name: "bond0"}, {Name: "eth9"}}
	rapid.Check(t, func(t *rapid.T) {
		now := &api.NetworkSettings{Proxy: rapid.SampledFrom([]string{"", "http://p:1"}).Draw(t, "proxy")}
		if rapid.Bool().Draw(t, "bond") {
			now.Bonds = []api.Bond{{Name: "bond0", Ports: []api.UplinkMatch{{Driver: "e1000e"}}}}
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "uplinks") {
			u := api.Uplink{Match: rapid.SampledFrom(matches).Draw(t, "match"), DHCP: true, VLAN: rapid.Int64Range(0, 1).Draw(t, "vlan"), Cost: rapid.Int64Range(0, 1).Draw(t, "cost")}
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0:
				u = api.Uplink{Match: api.UplinkMatch{Name: "wlan0"}, DHCP: true, WiFi: &api.WiFi{SSID: fmt.Sprint("site", i)}}
			case 1, 2:
				u.DHCP, u.Addresses = false, []string{fmt.Sprintf("10.0.%d.1/24", i)}
			}
			now.Uplinks = append(now.Uplinks, u)
		}
		raw, _ := json.Marshal(now) // plain fields
		all := ways(now, links)
		var names []string
		for _, l := range all {
			if l.Kind != wireless {
				names = append(names, l.Name)
			}
		}
		link, vlan := rapid.SampledFrom(names).Draw(t, "link"), rapid.Int64Range(0, 2).Draw(t, "form's vlan")
		fields := map[string]string{"link": link, "mode": "fixed", "address": "192.0.2.1/24", "vlan": fmt.Sprint(vlan), "others": "keep"}
		if rapid.Bool().Draw(t, "form's dhcp") {
			fields["mode"] = "dhcp"
		}
		next, err := changed(now, links, fields)
		if err != nil {
			t.Fatal(err)
		}
		if after, _ := json.Marshal(now); string(after) != string(raw) {
			t.Fatalf("the settings in force were written to: %s, were %s", after, raw)
		}
		if !reflect.DeepEqual(next.Bonds, now.Bonds) || next.Proxy != now.Proxy {
			t.Fatalf("bonds or proxy: %+v", next)
		}
		type way struct {
			name string
			vlan int64
		}
		carry := func(list []api.Uplink) map[way]string {
			out := map[way]string{}
			for i, names := range carriers(list, all) {
				for _, n := range names {
					u := list[i]
					out[way{n, u.VLAN}] = fmt.Sprint(u.DHCP, u.Addresses, u.Cost, u.WiFi != nil)
				}
			}
			return out
		}
		before, after := carry(now.Uplinks), carry(next.Uplinks)
		if got := after[way{link, vlan}]; !strings.HasPrefix(got, fmt.Sprint(fields["mode"] == "dhcp", map[bool]string{true: " [] ", false: " [192.0.2.1/24] "}[fields["mode"] == "dhcp"])) {
			t.Fatalf("the form's: %q in %+v", got, next.Uplinks)
		}
		others := func(w way, _ string) bool { return w.name == link }
		maps.DeleteFunc(before, others)
		maps.DeleteFunc(after, others)
		if !maps.Equal(before, after) {
			t.Fatalf("others were %v, are %v: %+v", before, after, next.Uplinks)
		}
	})
}
