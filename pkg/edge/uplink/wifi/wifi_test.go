package wifi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// TestStates follows what wpa_supplicant 2.10 says of a wrong passphrase, then a right one.
func TestStates(t *testing.T) {
	s := Looking
	for _, c := range []struct {
		line string
		want State
	}{
		{"Successfully initialized wpa_supplicant", Looking},
		{"wlan0: CTRL-EVENT-NETWORK-NOT-FOUND ", Absent},
		{"wlan0: SME: Trying to authenticate with 02:00:00:00:01:00 (SSID='wlan0: CTRL-EVENT-CONNECTED' freq=2412 MHz)", Absent},
		{"wlan0: CTRL-EVENT-DISCONNECTED bssid=02:00:00:00:01:00 reason=15", Absent},
		{`wlan0: CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="site" auth_failures=1 duration=10 reason=WRONG_KEY`, Refused},
		{"wlan0: CTRL-EVENT-DISCONNECTED bssid=02:00:00:00:01:00 reason=15", Refused},
		{"wlan1: CTRL-EVENT-CONNECTED - Connection to 02:00:00:00:01:00 completed [id=0 id_str=]", Refused},
		{"wlan0: CTRL-EVENT-CONNECTED - Connection to 02:00:00:00:01:00 completed [id=0 id_str=]", Joined},
		{"wlan0: CTRL-EVENT-SUBNET-STATUS-UPDATE status=0", Joined},
		{"wlan0: CTRL-EVENT-DISCONNECTED bssid=02:00:00:00:01:00 reason=3", Looking},
	} {
		if s = s.Next("wlan0", c.line); s != c.want {
			t.Fatalf("after %q: %s, not %s", c.line, s, c.want)
		}
	}
}

// TestSettings: whatever passes validation stands in the file as one value of one network.
func TestSettings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := api.WiFi{SSID: rapid.String().Draw(t, "ssid"), Passphrase: rapid.String().Draw(t, "passphrase"), Country: rapid.SampledFrom([]string{"", "DE", "x\n", "network={"}).Draw(t, "country")}
		if rapid.Bool().Draw(t, "likely") {
			w.Passphrase = rapid.StringMatching(`[ -~]{8,63}`).Draw(t, "likely passphrase")
		}
		n := api.NetworkSettings{Uplinks: []api.Uplink{{WiFi: &w}}}
		if n.Validate("") != nil {
			return
		}
		text := Settings("/run/x", &w)
		lines := strings.Split(text, "\n")
		if got := slices.Index(lines, "network={"); got < 0 || slices.Contains(lines[got+1:], "network={") || lines[len(lines)-2] != "}" {
			t.Fatalf("%q", text)
		}
		if w.Passphrase != "" && !slices.Contains(lines, "\tpsk=\""+w.Passphrase+"\"") {
			t.Fatalf("%q", text)
		}
	})
}

func TestNetworks(t *testing.T) {
	text := "bssid / frequency / signal level / flags / ssid\n" +
		"02:00:00:00:01:00\t2412\t-60\t[WPA2-PSK-CCMP][ESS]\tsite\n" +
		"02:00:00:00:02:00\t5180\t-42\t[WPA2-PSK+SAE-CCMP][ESS]\tsite\n" +
		"02:00:00:00:03:00\t2437\t-30\t[ESS]\tcaf\\xc3\\xa9 \\\"one\\\"\n" +
		"02:00:00:00:04:00\t2437\t-70\t[WPA2-EAP-CCMP][ESS]\toffice\n" +
		"02:00:00:00:05:00\t2437\t-20\t[WPA2-PSK-CCMP][ESS]\t\n" +
		"torn"
	want := []Network{{"café \"one\"", -30, false, false}, {"site", -42, true, false}, {"office", -70, true, true}}
	if got := Networks(text); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

func FuzzNetworks(f *testing.F) {
	f.Add("02:00:00:00:01:00\t2412\t-60\t[WPA2-PSK-CCMP][ESS]\tsite\n")
	f.Add("\t\t1\t\t\\x4\\")
	f.Fuzz(func(t *testing.T, text string) {
		for _, n := range Networks(text) {
			if n.SSID == "" || len(n.SSID) > len(text) {
				t.Errorf("%+v", n)
			}
		}
	})
}

// TestNoProgram: a profile without it says so, and nothing is written down.
func TestNoProgram(t *testing.T) {
	c := Config{Link: "wlan0", Dir: filepath.Join(t.TempDir(), "wifi"), Program: "/nowhere/wpa_supplicant"}
	if err := Join(t.Context(), c, &api.WiFi{SSID: "site"}, func(State) {}); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if _, err := Scan(t.Context(), c); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if _, err := os.Stat(c.Dir); err == nil {
		t.Error("a folder was made")
	}
}

// TestEnds: a supplicant that ends is an error that has its last words; one that is told to
// end is none.
func TestEnds(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho no such card\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Config{Link: "wlan0", Dir: filepath.Join(dir, "run"), Program: program}
	if err := Join(t.Context(), c, &api.WiFi{SSID: "site", Passphrase: "a long secret"}, func(State) {}); err == nil || !strings.Contains(err.Error(), "no such card") {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(c.Dir, "wlan0.conf")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho 'wlan0: CTRL-EVENT-CONNECTED - '\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen []State
	err := Join(ctx, c, &api.WiFi{SSID: "site"}, func(s State) {
		if seen = append(seen, s); s == Joined {
			cancel()
		}
	})
	if err != nil || !slices.Equal(seen, []State{Looking, Joined}) {
		t.Errorf("%v, seen %v", err, seen)
	}
}
