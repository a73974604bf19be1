package recovery

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/place"
	"tributary.dev/tributary/tests/wait"
)

// stand is a box's files below a folder, with sockets that answer.
func stand(t *testing.T) *Appliance {
	t.Helper()
	root, err := os.MkdirTemp("", "box") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	s := Usual()
	s.Root = root
	s.Now = func() time.Time { return time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC) }
	a := &Appliance{Sources: s}
	for _, dir := range []string{"/run/tributary/log", "/run/edged", "/state", "/etc", "/proc"} {
		if err := os.MkdirAll(a.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func (a *Appliance) put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(a.path(path), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *Appliance) listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", a.path(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Without an agent the console looks for itself, and waits for a disk that hangs no longer than for all else.
func TestGatherLooks(t *testing.T) {
	a := stand(t)
	a.Patience = wait.Limit
	a.Look = func() api.Inventory {
		return api.Inventory{Disks: []api.Disk{{Name: "sda", Faults: []string{"offline"}}}}
	}
	f := a.Gather(t.Context())
	var said []string
	for _, l := range hardwarePage(f).Lines {
		if l.Mark == Bad || l.Mark == Attention {
			said = append(said, l.Label)
		}
	}
	if !slices.Equal(said, []string{"", "sda"}) {
		t.Errorf("marked are %q of %+v", said, hardwarePage(f))
	}
	hang := make(chan struct{})
	defer close(hang)
	a.Patience = time.Millisecond
	a.Look = func() api.Inventory { <-hang; return api.Inventory{} }
	if f := a.Gather(t.Context()); f.Hardware != nil || !slices.ContainsFunc(f.Missing, func(m Missing) bool { return m == Missing{"hardware", "does not answer"} }) {
		t.Errorf("%+v", f.Missing)
	}
}

func TestGatherWell(t *testing.T) {
	a := stand(t)
	a.Patience = wait.Limit // nothing here is broken
	a.put(t, "/run/tributary/boot.json", `{"version":"1.4.0","slot":"a","profile":"vm","done":true,"steps":[{"name":"mounts","at":0.1,"took":0.2}]}`)
	a.put(t, "/run/tributary/warnings.json", `[{"name":"no-watchdog","severity":"degraded","message":"m","since":1}]`)
	a.put(t, "/run/tributary/uplinks.json", `[{"name":"eth0","up":true,"address":"10.0.0.2/24"}]`)
	a.put(t, "/etc/os-release", "NAME=x\nPRETTY_NAME=\"Tributary 1.4.0\"\n")
	a.put(t, "/proc/uptime", "12.5 3\n")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"device":"aebagbafaydqq","name":"field-1","online":true,"apps":[]}`)
	})
	mux.HandleFunc("GET /hardware", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"disks":[{"name":"sda"}],"claims":[{"class":"cpu","id":"cpu2","units":1,"numa":0,"holders":[{"app":"ran","service":"du","units":1}]}]}`)
	})
	mux.HandleFunc("GET /logs", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s\nsecond\n", r.URL.RawQuery) })
	srv := &http.Server{Handler: mux}
	l := a.listen(t, "/run/edged/edged.sock") // before anybody asks
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	asked := make(chan string, 8)
	go answerInit(a.listen(t, "/run/tributary/init.sock"), asked)

	f := a.Facts(t.Context())
	if len(f.Missing) != 0 || f.Agent == nil || f.Agent.Name != "field-1" || f.Boot.Slot != "a" || len(f.Warnings) != 1 || f.System != "Tributary 1.4.0" || f.Uptime != 12500*time.Millisecond || len(f.Children) != 1 || f.Profile != "vm" {
		t.Errorf("%+v", f)
	}
	if f.Hardware == nil || f.Hardware.Disks[0].Name != "sda" || f.Hardware.Claims[0].Holders[0].App != "ran" {
		t.Errorf("hardware: %+v", f.Hardware)
	}
	<-asked
	var said textBuffer
	if err := a.Do(t.Context(), "app-log", map[string]string{"service": "shop/web"}, said.say); err != nil || !strings.Contains(string(said), "app=shop&service=web") || !strings.Contains(string(said), "second") {
		t.Errorf("%s %v", said, err)
	}
	if err := a.Do(t.Context(), "reboot", nil, said.say); err != nil {
		t.Error(err)
	}
	if got := <-asked; !strings.Contains(got, `"do":"reboot"`) || !strings.Contains(got, "a person at the console") {
		t.Errorf("process 1 was asked %s", got)
	}
}

func answerInit(l net.Listener, asked chan<- string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 1024)
		n, _ := c.Read(b)
		asked <- string(b[:n])
		fmt.Fprintln(c, `{"children":[{"name":"agent","pid":7}]}`)
		c.Close()
	}
}

// TestGatherBroken: torn files, an agent that hangs, a process 1 that does not run.
func TestGatherBroken(t *testing.T) {
	a := stand(t)
	for _, f := range []string{"/run/tributary/boot.json", "/run/tributary/warnings.json", "/run/tributary/uplinks.json", "/state/update.json"} {
		a.put(t, f, `{"version":"1.4`)
	}
	a.listen(t, "/run/edged/edged.sock") // takes connections and says nothing
	dead := a.listen(t, "/run/tributary/init.sock")
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	f := a.Facts(t.Context())
	why := map[string]string{}
	for _, m := range f.Missing {
		why[m.What] = m.Why
	}
	for what, want := range map[string]string{"agent": "does not answer", "process 1": "does not run", "boot report": "torn", "updates": "torn", "uplinks": "torn", "warnings of boot": "torn"} {
		if !strings.Contains(why[what], want) {
			t.Errorf("%s: %q, not %q", what, why[what], want)
		}
	}
	if len(Pages(f)) < 10 {
		t.Error("pages are missing")
	}
	if err := a.Do(t.Context(), "reboot", nil, func(string) {}); err == nil || !strings.Contains(err.Error(), "power") {
		t.Errorf("no way out is told: %v", err)
	}
}

func TestNetworkWish(t *testing.T) {
	a := stand(t)
	if err := os.MkdirAll(a.path("/sys/class/net/eth0/device"), 0o755); err != nil {
		t.Fatal(err)
	}
	ok := map[string]string{"link": "eth0", "mode": "fixed", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "dns": "10.0.0.1 10.0.0.3", "vlan": "7", "proxy": "http://p:3128"}
	if err := a.Do(t.Context(), "network-set", ok, func(string) {}); err != nil {
		t.Fatal(err)
	}
	var w Wanted
	if err := readJSON(a.path("/run/tributary/network-wish.json"), &w); err != nil || w.Settings == nil || w.Settings.Uplinks[0].VLAN != 7 || len(w.Settings.Uplinks[0].DNS) != 2 {
		t.Errorf("%+v %v", w, err)
	}
	for name, change := range map[string][2]string{"gateway": {"gateway", "10.9.0.1"}, "vlan": {"vlan", "5000"}, "vlan text": {"vlan", "x"}, "address": {"address", "10.0.0.2"}, "none": {"address", ""}, "proxy": {"proxy", "p:1"}, "card": {"link", "../x"}, "another card": {"link", "eth9"}, "no card": {"link", "lo"}} {
		fields := map[string]string{}
		for k, v := range ok {
			fields[k] = v
		}
		fields[change[0]] = change[1]
		if err := a.Do(t.Context(), "network-set", fields, func(string) {}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestBundleHoldsNoSecrets(t *testing.T) {
	a := stand(t)
	secretTexts := []string{"tj1.abc.topsecretword.AAAA", "hunter2", "MHcCAQEEIIrYSSNQFaA2", "abcdefghijklmnop", "swordfish"}
	a.put(t, "/run/tributary/log/agent.log", "token tj1.abc.topsecretword.AAAA was read\nproxy http://joe:hunter2@proxy:3128\nAuthorization: Bearer abcdefghijklmnop\nmqtt password=swordfish ok\n")
	a.put(t, "/run/tributary/warnings.json", `[{"name":"x","message":"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2\n-----END EC PRIVATE KEY-----"}]`)
	var out bytes.Buffer
	if err := a.Bundle(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[h.Name] = true
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range secretTexts {
			if bytes.Contains(text, []byte(s)) {
				t.Errorf("%s holds %q", h.Name, s)
			}
		}
		if strings.HasSuffix(h.Name, "facts.json") {
			if err := json.Unmarshal(text, new(map[string]any)); err != nil {
				t.Errorf("facts.json: %v", err)
			}
		}
	}
	for _, want := range []string{"facts.json", "log/agent.log", "run/boot.json.missing", "agent/usage.missing", "log/kernel.txt"} {
		if !names["tributary-support/"+want] {
			t.Errorf("%s is not there: %v", want, names)
		}
	}
	var said textBuffer
	if err := a.Do(t.Context(), "support-bundle", map[string]string{"to": "/data/support"}, said.say); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(a.path("/data/support/*.tar.gz"))
	if len(files) != 1 {
		t.Errorf("%v", files)
	}
	began := a.Now()
	for i := range bundlesKept + 2 {
		a.Sources.Now = func() time.Time { return began.Add(time.Duration(i+1) * time.Second) }
		if err := a.Do(t.Context(), "support-bundle", map[string]string{"to": "/data/support"}, said.say); err != nil {
			t.Fatal(err)
		}
	}
	files, _ = filepath.Glob(a.path("/data/support/*.tar.gz"))
	if len(files) != bundlesKept || !strings.HasSuffix(files[0], "220003.tar.gz") {
		t.Errorf("kept: %v", files)
	}
}

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		"a passphrase: 'the right words'\nb":               "a passphrase: '[removed]'\nb",
		"passphrase: 'it''s right' # x":                    "passphrase: '[removed]' # x",
		"wifi.passphrase: the right words, all":            "wifi.passphrase: [removed]",
		`msg="x passphrase=\"the right words\" y"`:         `msg="x passphrase=\"[removed]\" y"`,
		`msg="x psk=\"a\\\"b c\" y"`:                       `msg="x psk=\"[removed]\" y"`,
		`{"token":"a\"b","name":"c"}`:                      `{"token":"[removed]","name":"c"}`,
		`{"secrets":{"a":"b"},"pwd":"x"}`:                  `{"secrets":{"a":"b"},"pwd":"[removed]"}`,
		"http://user:p@ssw0rd@proxy:3128 ok":               "http://[removed]@proxy:3128 ok",
		"http://user:pa/ss@proxy ok":                       "http://[removed]@proxy ok",
		"http//user:secretword@h:1":                        "http//[removed]@h:1",
		"https://core:8443/x says 5":                       "https://core:8443/x says 5",
		"AWS_SECRET_ACCESS_KEY=abc\nDB_PASS=x y\nPASS: z":  "AWS_SECRET_ACCESS_KEY=[removed]\nDB_PASS=[removed]\nPASS: [removed]",
		"Authorization: Token abc\nCookie: session=1; b=2": "Authorization: [removed]\nCookie: [removed]",
		"let it in: edgectl device approve 7K2M-9QXA-4HTR": "let it in: edgectl device approve [pairing code removed]",
		`{"Pairing":"7K2M-9QXA-4HTR"}`:                     `{"Pairing":"[pairing code removed]"}`,
		"9F3A-11EE-8C01-0242":                              "9F3A-11EE-8C01-0242",
		"12 tests passed: 3 bypass":                        "12 tests passed: 3 bypass",
	} {
		if got := string(Redact([]byte(text))); got != want {
			t.Errorf("%s\n%s, want\n%s", text, got, want)
		}
	}
	raw := `{"message":"token=abc def","n":12345678901234567890,"psk":7,"secrets":[{"value":"http://a:b@c"}],"password":null}`
	want := `{"message":"token=[removed]","n":12345678901234567890,"password":null,"psk":"[removed]","secrets":[{"value":"http://[removed]@c"}]}`
	var got bytes.Buffer
	if err := json.Compact(&got, redactJSON([]byte(raw))); err != nil || strings.TrimSpace(got.String()) != want {
		t.Errorf("%s %v, want\n%s", got.String(), err, want)
	}
}

// FuzzRedact: whatever a log holds, the word behind such a name is gone.
func FuzzRedact(f *testing.F) {
	f.Add("a", `"`)
	f.Add(`x="`, "'")
	f.Fuzz(func(t *testing.T, before, quote string) {
		const word = "swordfish7"
		if len(before) > 1<<10 || strings.Contains(before, word) || strings.ContainsAny(quote, "\r\n[{") {
			return
		}
		if got := Redact([]byte(before + "\npassword=" + quote + word + "\n")); bytes.Contains(got, []byte(word)) && !strings.Contains(quote, `"`) && !strings.Contains(quote, `'`) {
			t.Errorf("%q", got)
		}
		redactJSON([]byte(before))
	})
}

// TestOnlySticks: who stands at the console writes to what is plugged in, or below one folder.
func TestOnlySticks(t *testing.T) {
	a := stand(t)
	// The box runs from sda, which can be pulled out; sdb is a stick.
	for _, dir := range []string{"sda/sda1", "sda/sda3/holders/dm-0", "sdb/sdb1"} {
		if err := os.MkdirAll(a.path("/sys/block", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, disk := range []string{"sda", "sdb"} {
		a.put(t, "/sys/block/"+disk+"/removable", "1")
		a.put(t, "/sys/block/"+disk+"/size", "4096")
	}
	for _, part := range []string{"sda/sda1", "sda/sda3", "sdb/sdb1"} {
		a.put(t, "/sys/block/"+part+"/partition", "1")
	}
	for _, to := range []string{"/dev/sda1", "/dev/vda1", "/dev/mapper/state", "/dev/null", "/dev/../dev/vda1", "/data/edged/identity", "/data/support/../edged", "/data/supportive", "/state", "/", "", "sdb1"} {
		for id, field := range map[string]string{"support-bundle": "to", "usb-update": "from"} {
			err := a.Do(t.Context(), id, map[string]string{field: to}, func(string) {})
			if err == nil || !strings.Contains(err.Error(), "no USB partition (here: /dev/sdb1)") {
				t.Errorf("%s with %q opens: %v", id, to, err)
			}
		}
	}
}

func TestReadTime(t *testing.T) {
	built := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for _, text := range []string{"2026-11-22 00:00", "2040-01-01 12:30"} {
		if got, err := readTime(text, built); err != nil || clock(got) != text {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
	// From 2157 on Go's clock reading cannot carry the monotonic one.
	for _, text := range []string{"2026-11-21 23:59", "2200-01-01 00:00", "9999-01-01 00:00", "tomorrow", ""} {
		if got, err := readTime(text, built); err == nil {
			t.Errorf("%s is taken: %v", text, got)
		}
	}
}

func TestDoorsAreTested(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "a stick", Test: "^TestOnlySticks$", File: "usb.go", From: "if !slices.Contains(nodes, from) { // check: a stick", To: "if !slices.Contains(nodes, from) && !GONE {", Says: "opens"},
		mutation.Check{Name: "a card", Test: "^TestNetworkWish$", File: "settings.go", From: "if at < 0 && !slices.ContainsFunc(all, func(l Link) bool { return l.Name == u.Match.Name }) { // check: a card",
			To: "if at < 0 && !slices.ContainsFunc(all, func(l Link) bool { return l.Name == u.Match.Name }) && !GONE {", Says: "another card: taken"},
		mutation.Check{Name: "a port", Test: "^TestNetworkFormKeeps$", File: "settings.go", From: `bond != "" { // check: a port`, To: `bond != "" && !GONE {`, Says: "a port of a bond: taken"},
		mutation.Check{Name: "wireless", Test: "^TestNetworkFormKeeps$", File: "settings.go", From: "links[at].Kind == wireless { // check: wireless", To: "links[at].Kind == wireless && !GONE {", Says: "a wireless card: taken"},
		mutation.Check{Name: "ahead", Test: "^TestReadTime$", File: "deeds.go", From: "t.After(floor.Add(most)) { // check: ahead", To: "t.After(floor.Add(most)) && !GONE {", Says: "2200-01-01 00:00 is taken"})
}

func TestHostPort(t *testing.T) {
	for text, want := range map[string][2]string{"https://core:8443": {"core", "8443"}, "https://core": {"core", "443"}, "core": {"core", "8883"}, "core:1,2": {"core", "1"}, "[::1]:8883": {"::1", "8883"}, "[fd00::1]": {"fd00::1", "8883"}, "fd00::1": {"fd00::1", "8883"}} {
		h, p, err := hostPort(text)
		if err != nil || h != want[0] || p != want[1] {
			t.Errorf("%s: %s %s %v", text, h, p, err)
		}
	}
	for _, text := range []string{"", "10.0.2.2:99999", "core:0", "core:x", "[::1", "a b", "https://", "https://core:70000", "https://[::1", "a/b"} {
		if h, p, err := hostPort(text); err == nil {
			t.Errorf("%q is host %q port %q", text, h, p)
		}
	}
}

func TestTestNetworkTells(t *testing.T) {
	a := stand(t)
	err := a.Do(t.Context(), "network-test", map[string]string{"host": "127.0.0.1:1"}, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "cable") {
		t.Errorf("a box without a card: %v", err)
	}
	dir := a.path("/sys/class/net/eth0")
	if err := os.MkdirAll(filepath.Join(dir, "device"), 0o755); err != nil {
		t.Fatal(err)
	}
	a.put(t, "/sys/class/net/eth0/operstate", "up\n")
	l := place.Take(t, place.Left())
	var said textBuffer
	if err := a.Do(t.Context(), "network-test", map[string]string{"host": l.Addr().String()}, said.say); err != nil || !strings.Contains(string(said), "reached in") {
		t.Errorf("%s %v", said, err)
	}
	addr := l.Addr().String()
	l.Close()
	said = nil
	if err := a.Do(t.Context(), "network-test", map[string]string{"host": addr}, said.say); err == nil || !strings.Contains(string(said), "refused") {
		t.Errorf("%s %v", said, err)
	}
}

// TestDrawn runs the real program on a terminal that is a pair of pipes.
func TestDrawn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), wait.Limit)
	defer cancel()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- RunScreen(ctx, DrawConfig{In: inR, Out: outW, Width: 80, Height: 24, Colours: true}, &testBox{facts: wellBox()})
		outW.Close()
	}()
	seen := make(chan string, 1)
	go func() {
		var all strings.Builder
		b := make([]byte, 4096)
		typed := false
		for {
			n, err := outR.Read(b)
			all.Write(b[:n])
			if !typed && strings.Contains(all.String(), "Field 100") {
				typed = true
				go func() { _, _ = io.WriteString(inW, "q") }()
			}
			if err != nil {
				seen <- all.String()
				return
			}
		}
	}()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	text := <-seen
	if !strings.Contains(text, "\x1b[?1049h") || !strings.Contains(text, "\x1b[?1049l") {
		t.Errorf("the terminal's own screen is not kept apart: %q", text)
	}
}

// TestKindsOfCards: a wireless or mobile card is shown as one, with what this system does not
// do with it.
func TestKindsOfCards(t *testing.T) {
	a := stand(t)
	for name, kind := range map[string]string{"eth0": "", "wlan0": "wlan", "wwan0": "wwan"} {
		dir := "/sys/class/net/" + name
		if err := os.MkdirAll(a.path(dir, "device"), 0o755); err != nil {
			t.Fatal(err)
		}
		a.put(t, dir+"/operstate", "up\n")
		a.put(t, dir+"/uevent", "DEVTYPE="+kind+"\nINTERFACE="+name+"\nIFINDEX=2\n")
	}
	f := a.Gather(t.Context())
	f.Uplinks = []Uplink{{Name: "eth0", Up: true, Address: "10.0.0.2/24"}, {Name: "wwan0", Up: true, Address: "10.1.0.2/30", Cost: 10, Best: true}}
	var text strings.Builder
	for _, l := range networkPage(f).Lines {
		text.WriteString(l.Label + ": " + l.Text + "\n")
	}
	for _, want := range []string{"wlan0: up, Wi-Fi: this box's profile joins no wireless network", "wwan0: up, mobile:", "costs 10, leads out"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not on the page:\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "eth0: up, Wi-Fi") {
		t.Error("a wired card is shown as a wireless one")
	}
}
