package recovery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"
	"rsc.io/qr"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/unlock"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, got)
	}
}

func wellBox() Facts {
	now := time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)
	f := Facts{Now: now, Uptime: 49*time.Hour + 3*time.Second, Hostname: "tributary-1a2b3c4d", Kernel: "6.12.90+deb13-amd64", Machine: "Acme Field 100", Serial: "F100-0042",
		CPUs: 4, Memory: Amount{700 << 20, 2 << 30}, Load: "0.42", System: "Tributary 1.4.0", Profile: "generic-amd64", Slot: "a", Parent: "https://core.example:8443",
		Boot:     &Boot{Version: "1.4.0", Slot: "a", Disk: "sda", Done: true, Steps: []BootStep{{Name: "mounts"}, {Name: "zram", Error: "no such module"}}},
		Children: []Child{{Name: "containerd", PID: 210}, {Name: "agent", PID: 233, Restarts: 1, LastEnd: "exit status 2"}},
		Rollback: true,
		Agent: &Agent{Device: api.DeviceID{1, 2, 3, 4, 5, 6, 7, 8}, Name: "field-1", Tenant: "default", Version: "1.4.0", Parent: "relay-1", Online: true, Epoch: 1, Desired: 12, Applied: 12,
			Apps:     []api.AppStatus{{Name: "shop", State: api.Running, Services: []api.ServiceStatus{{Name: "web", State: api.Running}, {Name: "cache", State: api.Backoff, Restarts: 3, Message: "exit 1"}}}},
			Warnings: []api.Warning{{Name: "disk-full", Severity: api.Critical, Message: "DATA is 96 % full", Remedy: "remove an app or enlarge the disk"}}},
		Uplinks:   []Uplink{{Name: "eth0", Up: true, DHCP: true, Address: "10.0.0.7/24", Gateway: "10.0.0.1"}},
		Links:     []Link{{Name: "eth0", MAC: "52:54:00:12:34:56", State: "up", Speed: "1000 Mb/s", Addresses: []string{"10.0.0.7/24"}}, {Name: "eth1", MAC: "52:54:00:12:34:57", State: "down"}},
		Resolvers: []string{"10.0.0.1"}, Volumes: []Volume{{Name: "data", Amount: Amount{96 << 30, 100 << 30}}, {Name: "system", Amount: Amount{290 << 20, 290 << 20}, ReadOnly: true}},
		Sticks: []Stick{{Node: "/dev/sdb1", Label: "", Model: "Flash Disk", Bytes: 8 << 30}}, Update: &Update{Phase: "idle", Good: "a"},
		Warnings: []api.Warning{{Name: "state-key-unsealed", Severity: api.Degraded, Message: "the key of this box's encrypted state lies beside it on the disk: who takes the disk can read it", Remedy: "use a box with a TPM 2.0"}}}
	f.Hardware = someHardware()
	f.Update.Slots = map[string]struct {
		Version string `json:"version"`
		Counter uint64 `json:"counter"`
	}{"a": {Version: "1.4.0"}, "b": {Version: "1.3.2"}}
	c := unlock.Challenge{Device: f.Agent.Device, Proven: true, Owner: [4]byte{1, 2, 3, 4}, Fresh: sha256.Sum256(nil)}
	f.Shell = &Shell{Challenge: c.String(), ID: c.ID(), Code: testCode(c.String()), Left: 14*time.Minute + 30*time.Second, Device: f.Agent.Device.String()}
	return f
}

// someHardware has something to tell of every part.
func someHardware() *api.Inventory {
	node, used, spare, hot := 0, 93, 100, int64(91000)
	return &api.Inventory{
		CPU:   &api.CPU{Threads: 8, Cores: 8, MinMHz: 800, MaxMHz: 3100, Isolated: "2-7", RealTime: true},
		Nodes: []api.Node{{CPUs: "0-7", MemoryMiB: 32 << 10, HugePages: []api.HugePages{{SizeKiB: 1 << 20, Count: 8}}}},
		PCI:   []api.PCIFunction{{Address: "0000:03:00.0", Driver: "ice", VirtualFunctions: 8, MaxVirtualFunctions: 64, Node: &node}},
		NetDevices: []api.NetDevice{{Name: "eth0", Driver: "ice", PCI: "0000:03:00.0", PTP: "ptp0", Link: api.Link{State: api.LinkUp, Speed: 25000}},
			{Name: "eth1", Driver: "igb", Link: api.Link{State: api.LinkDown}}, {Name: "eth2", Driver: "igb", Link: api.Link{State: api.LinkOff}}},
		Accelerators: []api.Accelerator{{ID: "GPU-5d4e", Vendor: "nvidia", Model: "A100-PCIE-40GB", PCI: "0000:3b:00.0", MemoryMiB: 40 << 10, Driver: "nvidia", Findings: []api.AcceleratorFinding{{Warning: api.Warning{Message: "XID 79: it fell off the bus"}}}}},
		Disks:        []api.Disk{{Name: "nvme0n1", Bus: "nvme", Model: "Flash 960", Bytes: 960 << 30, Wear: &used, Spare: &spare}, {Name: "nvme1n1", Bus: "nvme", Bytes: 960 << 30, MediaErrors: 3, Faults: []string{"read only"}}},
		TPMs:         []api.TPMDevice{{Name: "tpm0", Version: "2.0", Device: "MSFT0101:00"}}, Watchdogs: []api.Watchdog{{Name: "watchdog0", Identity: "iTCO_wdt", Timeout: 30, Active: true, Fired: true}},
		Sensors: []api.SensorChip{{ID: "coretemp", Sensors: []api.Sensor{{Label: "Package id 0", Kind: "temperature", State: "critical", Value: &hot}, {Label: "Core 0", Kind: "temperature"}}}},
		Claims: []api.DeviceUse{
			{Claimable: api.Claimable{Class: api.ClaimCPU, ID: "cpu2", Units: 1}, Holders: []api.DeviceHolder{{App: "ran", Service: "du", Units: 1}}},
			{Claimable: api.Claimable{Class: api.ClaimCPU, ID: "cpu3", Units: 1}},
			{Claimable: api.Claimable{Class: api.ClaimHugePages, ID: "1G@0", Units: 8, Facts: map[string]string{"size": "1G"}}, Holders: []api.DeviceHolder{{App: "ran", Service: "du", Units: 4}}},
			{Claimable: api.Claimable{Class: api.ClaimGPU, ID: "GPU-5d4e", Units: 1, Fault: "XID 79"}},
		},
	}
}

// testCode is the challenge as edged-console makes it.
func testCode(text string) (out [][]bool) {
	code, err := qr.Encode(strings.ReplaceAll(text, "-", ""), qr.L)
	if err != nil {
		panic(err) // the text is of this file
	}
	for y := range code.Size {
		line := make([]bool, code.Size)
		for x := range line {
			line[x] = code.Black(x, y)
		}
		out = append(out, line)
	}
	return out
}

// brokenBox is what is left when everything is.
func brokenBox() Facts {
	f := Facts{Now: time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC)}
	for _, what := range []string{"agent", "boot report", "process 1", "uplinks", "updates", "warnings of boot"} {
		f.Missing = append(f.Missing, Missing{what, "is not there"})
	}
	return f
}

type testBox struct {
	facts Facts
	did   []string
	fail  error
}

func (b *testBox) Facts(context.Context) Facts { return b.facts }

func (b *testBox) Do(_ context.Context, id string, fields map[string]string, say func(string)) error {
	b.did = append(b.did, fmt.Sprint(id, " ", fields))
	say("said by " + id + " \x1b[31mred\x07")
	return b.fail
}

// plainTalk answers with lines and returns what was shown.
func plainTalk(t *testing.T, box Box, width, height int, lines ...string) string {
	t.Helper()
	var out bytes.Buffer
	err := RunPlain(t.Context(), PlainConfig{In: strings.NewReader(strings.Join(lines, "\n") + "\n"), Out: &out, Width: width, Height: height}, box)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(out.String(), "\r\n", "\n")
}

var sizes = [][2]int{{80, 24}, {40, 12}}

var boxes = map[string]func() Facts{"well": wellBox, "broken": brokenBox}

func TestPlainGolden(t *testing.T) {
	for name, facts := range boxes {
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%s-%dx%d", name, size[0], size[1]), func(t *testing.T) {
				var all strings.Builder
				for i := range Pages(facts()) {
					answers := []string{fmt.Sprint(i + 1)}
					if size[1] < 24 { // Enter goes on past the first stop of a long page, or back
						answers = append(answers, "")
					}
					all.WriteString(plainTalk(t, &testBox{facts: facts()}, size[0], size[1], answers...))
				}
				got := all.String()
				for _, line := range strings.Split(got, "\n") {
					if len(line) > size[0]+len("Page 1-11, q to leave, Enter to look again: ")*3 {
						t.Errorf("a line of %d: %q", len(line), line)
					}
				}
				if i := strings.IndexFunc(got, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
					t.Errorf("not plain at %d: %q", i, got[max(0, i-20):i+5])
				}
				golden(t, fmt.Sprintf("plain-%s-%dx%d.txt", name, size[0], size[1]), got)
			})
		}
	}
}

// TestCaptures keeps screens for people to look at, where docs/recovery.md shows them.
func TestCaptures(t *testing.T) {
	s := NewScreen(wellBox())
	for _, page := range s.pages {
		view := s.View(80, 24)
		switch page.Name {
		case "health", "network", "slots", "hardware", "shell":
			golden(t, filepath.Join("../../../../docs/recovery", page.Name+".txt"), trimmed(view)+"\n")
		}
		s.Key("down")
	}
}

func TestScreenGolden(t *testing.T) {
	for name, facts := range boxes {
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%s-%dx%d", name, size[0], size[1]), func(t *testing.T) {
				s := NewScreen(facts())
				var all strings.Builder
				for range s.pages {
					view := s.View(size[0], size[1])
					checkView(t, view, size[0], size[1])
					all.WriteString(trimmed(view) + "\n" + strings.Repeat("=", size[0]) + "\n")
					s.Key("down")
				}
				golden(t, fmt.Sprintf("screen-%s-%dx%d.txt", name, size[0], size[1]), all.String())
			})
		}
	}
}

func trimmed(view string) string {
	lines := strings.Split(ansi.Strip(view), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func checkView(t interface{ Errorf(string, ...any) }, view string, width, height int) {
	lines := strings.Split(view, "\n")
	if len(lines) != height {
		t.Errorf("%d lines on a screen of %d:\n%s", len(lines), height, view)
	}
	for _, l := range lines {
		if w := ansi.StringWidth(l); w > width {
			t.Errorf("a line of %d cells on a screen of %d: %q", w, width, l)
		}
	}
}

// TestScreenHolds: whatever is typed on whatever size, the screen keeps its size, and
// nothing is done that was not confirmed.
func TestScreenHolds(t *testing.T) {
	keys := []string{"up", "down", "tab", "enter", "esc", "pgdown", "pgup", "space", "1", "2", "3", "r", "x", "backspace", "t", "ctrl+u", "j", "k", "é"}
	rapid.Check(t, func(t *rapid.T) {
		f := boxes[rapid.SampledFrom([]string{"well", "broken"}).Draw(t, "box")]()
		s := NewScreen(f)
		for range rapid.IntRange(1, 60).Draw(t, "keys") {
			w := s.Key(rapid.SampledFrom(keys).Draw(t, "key"))
			if w.Do != nil {
				if w.Do.Confirm != "" {
					t.Fatalf("%s was done without %q", w.Do.ID, w.Do.Confirm)
				}
				s.Say(rapid.String().Draw(t, "said"))
				if rapid.Bool().Draw(t, "fails") {
					s.Ended(errors.New("it failed"))
				} else {
					s.Ended(nil)
				}
			}
			width, height := rapid.IntRange(20, 120).Draw(t, "width"), rapid.IntRange(6, 50).Draw(t, "height")
			checkView(t, s.View(width, height), width, height)
		}
	})
}

func typeIn(s *Screen, text string) (w Wish) {
	s.Key("ctrl+u")
	for _, r := range text {
		s.Key(string(r))
	}
	return s.Key("enter")
}

func onPage(t *testing.T, s *Screen, name string) {
	t.Helper()
	for range s.pages {
		if s.page().Name == name {
			return
		}
		s.Key("down")
	}
	t.Fatalf("no page %q", name)
}

func TestScreenConfirms(t *testing.T) {
	s := NewScreen(wellBox())
	onPage(t, s, "power")
	s.Key("3")
	if w := typeIn(s, "erase"); w.Do != nil || s.form != nil {
		t.Fatal("half a confirmation was taken")
	}
	s.Key("3")
	w := typeIn(s, "erase field-1")
	if w.Do == nil || w.Do.ID != "factory-reset" {
		t.Fatalf("a whole confirmation was not taken: %+v", w)
	}
	s.Say("keys destroyed")
	s.Ended(errors.New("the disk is gone"))
	if v := trimmed(s.View(80, 24)); !strings.Contains(v, "keys destroyed") || !strings.Contains(v, "FAILED: the disk is gone") {
		t.Errorf("how it went is not shown:\n%s", v)
	}
}

func TestScreenForm(t *testing.T) {
	s := NewScreen(wellBox())
	onPage(t, s, "network")
	s.Key("2")
	typeIn(s, "eth1")
	if typeIn(s, "wrong"); s.form.field != 1 || s.form.fault == "" {
		t.Fatal("a choice that is none was taken")
	}
	typeIn(s, "fixed")
	typeIn(s, "10.0.0.9/24")
	typeIn(s, "10.0.0.1")
	typeIn(s, "")
	typeIn(s, "12")
	typeIn(s, "")
	golden(t, "form-80x24.txt", trimmed(s.View(80, 24))+"\n")
	w := typeIn(s, "try")
	if w.Do == nil {
		t.Fatal("nothing is done")
	}
	n, err := changed(nil, wellBox().Links, w.Fields)
	if err != nil || n.Uplinks[0].VLAN != 12 || n.Uplinks[0].Addresses[0] != "10.0.0.9/24" || n.Uplinks[0].Match.Name != "eth1" {
		t.Errorf("%+v %v", n, err)
	}
}

func TestPlainDeeds(t *testing.T) {
	box := &testBox{facts: wellBox()}
	got := plainTalk(t, box, 80, 0, "power", "1", "no", "1", "reboot", "9", "", "nothing", "3", "2", "eth0", "sideways")
	if len(box.did) != 1 || !strings.HasPrefix(box.did[0], "reboot") {
		t.Errorf("done: %v", box.did)
	}
	for _, want := range []string{"Nothing was done.", "said by reboot ?[31mred?", "Done.", `"9" is not on this page.`, `"nothing" is not on the menu.`, `"sideways" is none of dhcp, fixed.`} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not shown in:\n%s", want, got)
		}
	}
}

// person types each of their lines when they were asked, so that what is shown of it stands behind the question.
type person struct {
	mu    sync.Mutex
	asked sync.Cond
	shown bytes.Buffer
	lines []string
}

func newPerson(lines ...string) *person {
	p := &person{lines: lines}
	p.asked.L = &p.mu
	return p
}

func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.asked.Broadcast()
	return p.shown.Write(b)
}

func (p *person) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		return 0, io.EOF
	}
	for !strings.HasSuffix(p.shown.String(), ": ") {
		p.asked.Wait()
	}
	n := copy(b, p.lines[0])
	if p.lines[0] = p.lines[0][n:]; p.lines[0] == "" {
		p.lines = p.lines[1:]
	}
	return n, nil
}

// screen is all that was shown to the person.
func (p *person) screen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown.String()
}

func TestPlainEcho(t *testing.T) {
	p := newPerson("12\x7f\r")
	if err := RunPlain(t.Context(), PlainConfig{In: p, Out: p, Echo: true}, &testBox{facts: wellBox()}); err != nil {
		t.Fatal(err)
	}
	if got := p.screen(); !strings.Contains(got, "12\b \b\r\n") || !strings.Contains(got, "-- What this box is --") {
		t.Errorf("%q", got)
	}
}

// What is typed is text: an umlaut is one character, noise is none.
func TestPlainReadsText(t *testing.T) {
	box := &testBox{facts: wellBox()}
	p := newPerson("power\r", "1\r", "r\xc3\xa9\x7feb\xff\xc3oo\xe2\x80\xa8t\r", "\r", "q\rhealth\r")
	if err := RunPlain(t.Context(), PlainConfig{In: p, Out: p, Echo: true}, box); err != nil {
		t.Fatal(err)
	}
	if len(box.did) != 1 || !strings.Contains(p.screen(), "ré\b \beboot\r\n") {
		t.Errorf("done: %v\n%q", box.did, p.screen())
	}
	if strings.Contains(p.screen(), "-- Health") {
		t.Error("the line goes on when the person has left")
	}
}

func TestPlainOffersDrawing(t *testing.T) {
	err := RunPlain(t.Context(), PlainConfig{In: strings.NewReader("s\n"), Out: io.Discard, Draw: true}, &testBox{facts: wellBox()})
	if !errors.Is(err, ErrDraw) {
		t.Error(err)
	}
}

func TestWrapHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, width := clean(rapid.String().Draw(t, "text")), rapid.IntRange(1, 50).Draw(t, "width")
		var words strings.Builder
		for _, l := range wrap(text, width) {
			if len([]rune(l)) > width {
				t.Fatalf("%q is wider than %d", l, width)
			}
			words.WriteString(strings.ReplaceAll(l, " ", ""))
		}
		if words.String() != strings.Join(strings.Fields(text), "") {
			t.Fatal("something was lost")
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b]0;title\x07\x9b31m\u202eabc")
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range clean(text) {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e {
				t.Fatalf("%U passes", r)
			}
		}
	})
}
