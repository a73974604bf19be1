package cli

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// However devices name their parents, even in loops, each is drawn once, below its
// parent where that is drawn.
func TestTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 9).Draw(t, "n")
		var leaves []leaf
		for i := range n {
			parent := rapid.SampledFrom([]string{"core", "", "gone", "d0", "d1", "d2", "d3", "d8"}).Draw(t, "parent")
			name := fmt.Sprintf("d%d", i)
			leaves = append(leaves, leaf{id: name, parent: parent, name: name, text: name})
		}
		lines := drawTree("core", leaves)
		if lines[0] != "core" {
			t.Fatalf("starts with %q", lines[0])
		}
		for i := range n {
			found := 0
			for _, l := range lines {
				if strings.HasSuffix(l, fmt.Sprintf(" d%d", i)) {
					found++
				}
			}
			if found != 1 {
				t.Fatalf("d%d is drawn %d times:\n%s", i, found, strings.Join(lines, "\n"))
			}
		}
	})
}

// The lines that a diff takes away and adds lead from the old text to the new.
func TestLineDiff(t *testing.T) {
	line := rapid.SampledFrom([]string{"a", "b", "c", ""})
	rapid.Check(t, func(t *rapid.T) {
		old, new := rapid.SliceOfN(line, 1, 8).Draw(t, "old"), rapid.SliceOfN(line, 1, 8).Draw(t, "new")
		var removed, added []string
		for _, d := range lineDiff(strings.Join(old, "\n")+"\n", strings.Join(new, "\n")+"\n") {
			if s, ok := strings.CutPrefix(d, "- "); ok {
				removed = append(removed, s)
			} else {
				added = append(added, strings.TrimPrefix(d, "+ "))
			}
		}
		left, right := slices.Clone(old), slices.Clone(new)
		for from, out := range map[*[]string][]string{&left: removed, &right: added} {
			for _, s := range out {
				i := slices.Index(*from, s)
				if i < 0 {
					t.Fatalf("%q was never there", s)
				}
				*from = slices.Delete(*from, i, i+1)
			}
			slices.Sort(*from)
		}
		if !slices.Equal(left, right) {
			t.Fatalf("what stays differs: %q, %q", left, right)
		}
	})
}

func TestTexts(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "now", 90 * time.Second: "90s", 5 * time.Minute: "5m", 30 * time.Hour: "30h", 80 * time.Hour: "3d", -time.Second: "now"} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1024: "1.0K", 10 << 20: "10M", 1<<64 - 1: "16E"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
	if got := printable("a\x1b[31m\u009bb\tc"); got != "a[31mb\tc" {
		t.Errorf("printable: %q", got)
	}
}

func TestParseForwarding(t *testing.T) {
	for in, want := range map[string]forwarding{
		"80":              {"127.0.0.1:80", 80},
		"8080:80":         {"127.0.0.1:8080", 80},
		":80":             {"127.0.0.1:0", 80},
		"0.0.0.0:8080:80": {"0.0.0.0:8080", 80},
		"[::1]:8080:80":   {"[::1]:8080", 80},
	} {
		if got, err := parseForwarding(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "80:", "8080:0", "8080:70000", "x:80", "::80:"} {
		if got, err := parseForwarding(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

// A fleet that names an app which does not exist shows it, and one without apps does not
// look as if something did not run.
func TestFleetRow(t *testing.T) {
	a := &app{now: time.Now}
	for spec, want := range map[string]string{`{"apps":["web","ghost"]}`: "f - web,ghost(missing) 2 2 1 1 -", `{}`: "f - - 2 2 - 1 -"} {
		o := &api.Object{Kind: api.KindFleet, Metadata: api.Meta{Name: "f"}, Spec: []byte(spec), Status: []byte(`{"devices":2,"current":2,"running":1,"rejected":1,"missing":["ghost"]}`)}
		if got := strings.Join(a.fleetRow(o), " "); got != want {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}

// A device whose app failed is not simply well.
func TestHealthText(t *testing.T) {
	spec := api.DeviceSpec{Approved: true}
	for want, st := range map[string]api.DeviceStatus{
		"ok":                   {Online: true, Apps: []api.AppStatus{{State: api.Running}}},
		"app-failed":           {Online: true, Apps: []api.AppStatus{{State: api.Running}, {State: api.Failed}}},
		"update-rejected":      {Online: true, Apps: []api.AppStatus{{State: api.Running, Rejected: "sha256:1"}}},
		"offline,x,app-failed": {Health: []api.Warning{{Name: "x"}}, Apps: []api.AppStatus{{State: api.Failed}}},
	} {
		if got := healthText(&spec, &st); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Below a device that refuses its release stands why, in plain words and on one line; other warnings take no room.
func TestRefusedUpdateIsExplained(t *testing.T) {
	a := &app{now: time.Now}
	table := a.tableOf(api.KindDevice, getOptions{})
	for name, status := range map[string]string{
		"bad":  `{"online":true,"health":[{"name":"update-refused","severity":"degraded","message":"release v2: the agent ended 4 times,\nat last by exit status 3"}]}`,
		"good": `{"online":true,"health":[{"name":"state-key-unsealed","severity":"degraded","message":"the key lies beside it"}]}`,
	} {
		table.add(&api.Object{Kind: api.KindDevice, Metadata: api.Meta{Name: name}, Spec: []byte(`{"approved":true}`), Status: []byte(status)}, "")
	}
	var out strings.Builder
	table.write(&out, true)
	if text := out.String(); !strings.Contains(text, "\n    update-refused: release v2: the agent ended 4 times, at last by exit status 3\n") || strings.Contains(text, "lies beside") || strings.Count(text, "\n") != 4 {
		t.Errorf("it says\n%s", text)
	}
}
