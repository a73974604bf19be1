package update

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/edge/update/guard"
)

// TestGuard: process 1's verdict is what the old slot tells.
func TestGuard(t *testing.T) {
	file := filepath.Join(t.TempDir(), "update.json")
	g := &guard.Guard{Path: file, Running: "b"}
	if _, on := g.Trial(); on {
		t.Fatal("on trial without a state")
	}
	// A release that cannot open STATE is known by the boot manager's count, and does not stay.
	for _, counted := range []bool{false, true} {
		blind := &guard.Guard{Path: file, Running: "b", Most: 10 * time.Minute, Counted: func() bool { return counted }}
		if _, restart := blind.Tick(9 * time.Minute); restart {
			t.Fatal("judged too early")
		}
		if _, restart := blind.Tick(11 * time.Minute); restart != counted {
			t.Fatalf("counted %v, restart %v", counted, restart)
		}
	}
	trial := State{Format: format, Phase: Armed, Good: "a", Boot: "1", Arms: 1, Target: &Release{Digest: "sha256:2", Version: "1.2", RootHash: "22"},
		Slots: map[Slot]Release{"a": {RootHash: "11", Version: "1.1"}}}
	if err := Save(file, trial); err != nil {
		t.Fatal(err)
	}
	if _, restart := (&guard.Guard{Path: file, Running: "a"}).Tick(time.Hour); restart {
		t.Fatal("the good slot is judged")
	}
	if _, restart := g.Tick(20 * time.Minute); restart {
		t.Fatal("judged before the agent's own deadline")
	}
	for n := 1; n <= guard.Ends; n++ {
		if _, restart := g.AgentEnded("exit status 2"); restart != (n == guard.Ends) {
			t.Fatalf("after %d ends: %v", n, restart)
		}
	}
	s, err := Load(file)
	if err != nil || s.Phase != Armed || s.Slots["a"].Version != "1.1" {
		t.Fatalf("the state was hurt: %+v %v", s, err)
	}
	s, _ = Step(s, Facts{Running: "a", Root: "11", Boot: "3", Uptime: time.Minute}, Default)
	s, _ = Step(s, Facts{Running: "a", Root: "11", Boot: "3", Uptime: time.Minute}, Default)
	r := s.Refusal(&Want{Digest: "sha256:2"}, "11")
	if r == nil || r.Cause != CauseAgent || !strings.Contains(r.Reason, "ended 4 times, at last by exit status 2") {
		t.Fatalf("%+v", s)
	}
	if err := Save(file, trial); err != nil {
		t.Fatal(err)
	}
	if reason, restart := (&guard.Guard{Path: file, Running: "b"}).Tick(26 * time.Minute); !restart || !strings.Contains(reason, "no judgement") {
		t.Fatal(reason)
	}
}
