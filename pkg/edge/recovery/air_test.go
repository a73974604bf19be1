package recovery

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/wait"
)

// airBox is a box with a wireless card whose joining stands at state.
func airBox(state string) Facts {
	f := wellBox()
	f.WiFi = true
	f.Links = append(f.Links, Link{Name: "wlan0", MAC: "02:00:00:00:00:01", State: "down", Kind: wireless})
	f.Uplinks = append(f.Uplinks, Uplink{Name: "wlan0", DHCP: true, WiFi: &Joining{"site", state}})
	return f
}

// TestJoinWiFi: a wireless network comes behind the cables that there are, in the place of
// another on its card, and the proxy stays.
func TestJoinWiFi(t *testing.T) {
	root := t.TempDir()
	a := &Appliance{Sources: Usual()}
	a.Root = root
	for _, dir := range []string{a.Run, a.State} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	join := func(fields map[string]string) (s api.NetworkSettings) {
		t.Helper()
		if err := a.Do(t.Context(), "wifi-join", fields, func(string) {}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, a.Run, "network-wish.json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("who may read it: %v %v", info, err)
		}
		var w struct{ Settings api.NetworkSettings }
		if err := json.Unmarshal(text, &w); err != nil {
			t.Fatal(err)
		}
		return w.Settings
	}
	fields := map[string]string{"link": "wlan0", "ssid": "site", "passphrase": "the right words", "hidden": "no", "country": "de"}
	s := join(fields)
	if len(s.Uplinks) != 2 || !s.Uplinks[0].DHCP || s.Uplinks[0].WiFi != nil || *s.Uplinks[1].WiFi != (api.WiFi{SSID: "site", Passphrase: "the right words", Country: "DE"}) {
		t.Fatalf("%+v", s)
	}
	kept := `{"phase":"kept","settings":{"proxy":"http://p:1","uplinks":[{"addresses":["10.0.0.2/24"]},{"match":{"name":"wlan0"},"wifi":{"ssid":"old"}},{"match":{"name":"wlan1"},"wifi":{"ssid":"other"}}]}}`
	if err := os.WriteFile(filepath.Join(root, a.State, "network.json"), []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	s = join(fields)
	if len(s.Uplinks) != 3 || s.Proxy != "http://p:1" || s.Uplinks[0].Addresses == nil || s.Uplinks[1].WiFi.SSID != "other" || s.Uplinks[2].WiFi.SSID != "site" {
		t.Fatalf("%+v", s)
	}
	for _, wrong := range []map[string]string{{"link": "../x", "ssid": "site"}, {"link": "wlan0"}, {"link": "wlan0", "ssid": "site", "passphrase": "short"}, {"link": "wlan0", "ssid": "site", "country": "Germany"}} {
		if err := a.Do(t.Context(), "wifi-join", wrong, func(string) {}); err == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
}

// TestSearch tells what a search hears in words.
func TestSearch(t *testing.T) {
	a := &Appliance{Sources: Usual(), Listen: func(_ context.Context, card string) ([]Network, error) {
		if card != "wlan0" {
			t.Errorf("it listens with %q", card)
		}
		return []Network{{"near", -50, true, false}, {"open", -70, false, false}, {"office", -85, true, true}}, nil
	}}
	var said []string
	if err := a.Do(t.Context(), "wifi-scan", map[string]string{"link": "wlan0"}, func(line string) { said = append(said, line) }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(said[1:], "\n"); got != "strong   near\nfair     open (open to all)\nweak     office (wants what this system does not do)" {
		t.Error(got)
	}
}

// TestWiFiWarnings: what keeps a box out of a wireless network is a named warning with what
// to do, and what others follow from stands first.
func TestWiFiWarnings(t *testing.T) {
	for state, want := range map[string]string{refused: "wifi-refused", absent: "wifi-absent", joined: "", "looking": ""} {
		found := ""
		for _, w := range warnings(airBox(state)) {
			if strings.HasPrefix(w.Name, "wifi-") && w.Remedy != "" {
				found += w.Name
			}
		}
		if found != want {
			t.Errorf("%s: %q", state, found)
		}
	}
	f := wellBox()
	f.Agent = nil
	f.Links = f.Links[1:]
	f.Warnings = append(f.Warnings, api.Warning{Name: "no-owner", Severity: api.Critical}, api.Warning{Name: "strange", Severity: "odd"})
	var names []string
	for _, w := range warnings(f) {
		names = append(names, w.Name)
	}
	if got := strings.Join(names, " "); got != "agent-silent no-cable no-owner state-key-unsealed strange" {
		t.Error(got)
	}
}

// TestSecretIsNotShown: a passphrase is not on either face as it is typed, and yet taken.
func TestSecretIsNotShown(t *testing.T) {
	deed := Deed{ID: "x", Title: "X", Fields: []Field{{Name: "a", Question: "open"}, {Name: "p", Question: "closed", Secret: true}, {Name: "b", Question: "open again"}}}
	s := NewScreen(wellBox())
	s.begin(deed)
	var w Wish
	for _, key := range []string{"v", "i", "s", "enter", "h", "u", "s", "h", "enter"} {
		w = s.Key(key)
		if view := s.View(80, 24); strings.Contains(view, "hush") || strings.Contains(view, "> hu") {
			t.Errorf("after %q:\n%s", key, view)
		}
	}
	if view := s.View(80, 24); !strings.Contains(view, "p: ****") || !strings.Contains(view, "a: vis") {
		t.Errorf("\n%s", view)
	}
	if w = s.Key("enter"); w.Fields["p"] != "hush" {
		t.Errorf("%+v", w)
	}

	in, typed := io.Pipe()
	var out bytes.Buffer
	p := &plain{cfg: PlainConfig{In: in, Out: &out, Width: 80, Echo: true}, lines: make(chan string), ended: make(chan struct{})}
	stop := make(chan struct{})
	defer close(stop)
	go p.read(stop)
	shows := func(text string) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return strings.Contains(out.String(), text)
	}
	var values map[string]string
	var err error
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		values, err = p.fields(context.Background(), deed)
	}()
	for _, step := range [][2]string{{"open: ", "vis\r"}, {"closed: ", "hush\r"}, {"again: ", "ible\r"}} {
		wait.Until(t, "it asks "+step[0], func() bool { return shows(step[0]) })
		if _, err := io.WriteString(typed, step[1]); err != nil {
			t.Fatal(err)
		}
	}
	wait.For(t, "the answers", asked)
	if err != nil || values["p"] != "hush" || values["b"] != "ible" {
		t.Fatalf("%v %v", values, err)
	}
	if shows("hush") || !shows("****") {
		t.Error("the passphrase is shown, or not even that something is typed")
	}
}
