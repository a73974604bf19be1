package api

import (
	"strings"
	"testing"
)

// What a claim of a virtual function says of addresses is read whole, and refused by name.
func TestClaimLinks(t *testing.T) {
	good := map[string]string{"interface": "fast0", "address": "192.0.2.10/24,2001:db8::10/64", "routes": "198.51.100.0/24 via 192.0.2.1, 203.0.113.0/24, ::/0 via fe80::1", "mtu": "9000", "link": "up", "card": "0000:3b:*"}
	if e := CheckClaim(&Claim{Class: ClaimVF, Count: 1, Options: good}); e != nil {
		t.Errorf("a sound claim: %v", e)
	}
	if e := CheckClaim(&Claim{Class: ClaimVF, Count: 4, Options: map[string]string{"range": "192.0.2.32/27 of 192.0.2.0/24", "routes": "0.0.0.0/0 via 192.0.2.1"}}); e != nil {
		t.Errorf("a range for several: %v", e)
	}
	for _, c := range []struct {
		driver, option, value, words string
		count                        int
	}{
		{"", "address", "192.0.2.10", "no address", 1}, {"", "address", "127.0.0.1/8", "no address", 1}, {"", "address", "192.0.2.10/24", "several", 2},
		{"", "interface", "a name that is long", "no value", 1}, {"", "interface", "fast0", "several", AllOfThem}, {"", "mtu", "big", "no value", 1},
		{"", "interface", "lo", "loopback", 1}, {"", "mtu", "67", "no MTU", 1}, {"", "mtu", "65536", "no MTU", 1},
		{"", "range", "198.51.100.0/27 of 192.0.2.0/24", "no part", 1}, {"", "range", "192.0.2.0/27", "no value", 1}, {"", "range", "192.0.0.0/16 of 192.0.2.0/24", "no part", 1},
		{"", "routes", "0.0.0.0/0 via 192.0.2.1", "reaches", 1}, {"", "routes", "0.0.0.0/0 via ::1", "no route", 1}, {"", "routes", "via", "no route", 1},
		{"", "link", "yes", "no value", 1}, {DriverVFIO, "address", "192.0.2.10/24", "no interface", 1}, {"", "speeed", "1", "no option", 1},
	} {
		e := CheckClaim(&Claim{Class: ClaimVF, Count: c.count, Driver: c.driver, Options: map[string]string{c.option: c.value}})
		if e == nil || !strings.Contains(e.Message, c.words) || e.Field != "options."+c.option {
			t.Errorf("%s %s: %v", c.option, c.value, e)
		}
	}
	if e := CheckClaim(&Claim{Class: ClaimGPU, Count: 2, IDs: []string{"a", "a"}}); e == nil || e.Field != "device_ids" {
		t.Errorf("a device twice: %v", e)
	}
	plain, vfio := Claim{Class: ClaimVF, Count: 1}, Claim{Class: ClaimVF, Count: 1, Driver: DriverVFIO}
	kernel, user := Claimable{Class: ClaimVF, Driver: "igbvf"}, Claimable{Class: ClaimVF, Driver: DriverVFIO}
	if plain.Fits(&kernel) != "" || plain.Fits(&user) == "" || vfio.Fits(&kernel) == "" || vfio.Fits(&user) != "" {
		t.Error("a function that vfio-pci serves is for those alone that ask for it")
	}
}
