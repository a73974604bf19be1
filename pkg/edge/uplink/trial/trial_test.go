package trial

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func address(a string) *api.NetworkSettings {
	return &api.NetworkSettings{Uplinks: []api.Uplink{{Addresses: []string{a}}}}
}

// worked is a box whose settings have reached the parent.
func worked(s *api.NetworkSettings) Trial { return Fresh(s).Tick(Proof, true) }

func TestNewSettingsAreKept(t *testing.T) {
	x := worked(address("10.0.0.2/24")).Offer(address("10.0.0.3/24"), "ann")
	if x.Phase != OnTrial || x.Settings.Uplinks[0].Addresses[0] != "10.0.0.3/24" {
		t.Fatalf("%+v", x)
	}
	x = x.Tick(Silence-time.Second, false).Tick(time.Second, true).Tick(Silence-time.Second, false)
	if x.Phase != OnTrial {
		t.Fatalf("a parent that came and went: %+v", x)
	}
	x = x.Tick(Proof, true)
	if x.Phase != Kept || x.Last != nil {
		t.Fatalf("%+v", x)
	}
	if x = x.Tick(time.Hour, false); x.Phase != Kept {
		t.Errorf("what has worked is not blamed for a cut: %+v", x)
	}
}

func TestSilentSettingsAreTakenBack(t *testing.T) {
	x := worked(address("10.0.0.2/24")).Offer(address("10.9.9.9/24"), "ann").Tick(Silence, false)
	if x.Phase != Reverted || x.Settings.Uplinks[0].Addresses[0] != "10.0.0.2/24" || !strings.Contains(x.Reason, "ann") {
		t.Fatalf("%+v", x)
	}
	if w := x.Warnings(); len(w) != 1 || w[0].Remedy == "" {
		t.Errorf("%+v", w)
	}
	// The same may be tried again by a person.
	if x = x.Offer(address("10.9.9.9/24"), "ann"); x.Phase != OnTrial || x.Last.Uplinks[0].Addresses[0] != "10.0.0.2/24" {
		t.Errorf("%+v", x)
	}
}

func TestNothingToGoBackTo(t *testing.T) {
	x := Fresh(nil).Offer(address("10.0.0.3/24"), "ann").Tick(24*time.Hour, false)
	if x.Phase != Unproven || x.Settings == nil {
		t.Errorf("a box that never reached its parent keeps what a person gave: %+v", x)
	}
}

// TestConfigIsTriedOnce: settings of CONFIG that were taken back are not tried at the next
// boot, until they change.
func TestConfigIsTriedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network.json")
	if err := worked(nil).Save(path); err != nil {
		t.Fatal(err)
	}
	load := func(config *api.NetworkSettings) Trial {
		x, err := Load(path, config)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	x := load(address("10.9.9.9/24"))
	if x.Phase != OnTrial || x.By != "CONFIG" {
		t.Fatalf("%+v", x)
	}
	x = x.Tick(4*time.Minute, false)
	if err := x.Save(path); err != nil {
		t.Fatal(err)
	}
	// A reboot does not begin the five minutes anew.
	if x = load(address("10.9.9.9/24")).Tick(time.Minute, false); x.Phase != Reverted || x.Settings != nil {
		t.Fatalf("%+v", x)
	}
	if err := x.Save(path); err != nil {
		t.Fatal(err)
	}
	if x = load(address("10.9.9.9/24")); x.Phase != Reverted {
		t.Errorf("tried again: %+v", x)
	}
	if x = load(address("10.0.0.9/24")); x.Phase != OnTrial {
		t.Errorf("a change is not tried: %+v", x)
	}
}

// TestTrialHolds: whatever happens, settings that never reached the parent are left only
// for ones that did, and a box on trial always knows those.
func TestTrialHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := []*api.NetworkSettings{nil, address("10.0.0.1/24"), address("10.0.0.2/24"), address("10.0.0.3/24")}
		x := Fresh(nil)
		proven := map[*api.NetworkSettings]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			before := x
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				x = x.Offer(rapid.SampledFrom(all).Draw(t, "settings"), "x")
			case 1:
				x = x.Tick(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds"))*time.Second, rapid.Bool().Draw(t, "online"))
			case 2:
				x = x.Boot(rapid.SampledFrom(all).Draw(t, "config"))
			}
			if x.Phase == Kept {
				proven[x.Settings] = true
			}
			if x.Phase == Reverted && !proven[x.Settings] {
				t.Fatalf("gone back to what never worked: %+v -> %+v", before, x)
			}
			if x.Phase == OnTrial && !proven[x.Last] {
				t.Fatalf("nothing proven to go back to: %+v", x)
			}
			if x.Silent >= Silence && x.Phase == OnTrial {
				t.Fatalf("silent for too long: %+v", x)
			}
		}
	})
}

func TestTornFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network.json")
	if err := os.WriteFile(path, []byte(`{"phase":"tri`), 0o600); err != nil {
		t.Fatal(err)
	}
	x, err := Load(path, address("10.0.0.2/24"))
	if err == nil || x.Phase != Unproven || x.Settings == nil {
		t.Errorf("%+v %v", x, err)
	}
}

func TestShown(t *testing.T) {
	run := t.TempDir()
	if Shown(run) != nil {
		t.Error("warnings without a trial")
	}
	x := worked(nil).Offer(address("10.9.9.9/24"), "ann").Tick(Silence, false)
	if err := x.Show(run, time.Now()); err != nil {
		t.Fatal(err)
	}
	if w := Shown(run); len(w) != 1 || w[0].Name != "network-reverted" || w[0].Since == 0 || !strings.Contains(w[0].Message, "ann") {
		t.Errorf("%+v", w)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"phase":"trial","settings":{"uplinks":[{"addresses":["10.0.0.2/24"],"vlan":7}]},"silent":1000000000}`))
	f.Add([]byte(`{"phase":"reverted","reason":"x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := Decode(text)
		if err != nil {
			return
		}
		if x.Silent < 0 || x.Silent > Silence || x.Settings != nil && x.Settings.Validate("") != nil {
			t.Errorf("%+v", x)
		}
	})
}
