package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What the firmware keeps is listed by it for long: the agent answers before, and the consoles,
// which show it, start after.
func TestFirmwareIsShownBetween(t *testing.T) {
	var names []string
	for _, s := range (&booter{}).list() {
		names = append(names, s.name)
	}
	agent, firmware, children := slices.Index(names, "agent"), slices.Index(names, "firmware"), slices.Index(names, "children")
	if agent < 0 || firmware < agent || children < firmware {
		t.Errorf("%q", names)
	}
}

// Controllers are turned on by one word, and each by its own where the kernel does not take that.
func TestControl(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cgroup.subtree_control")
	if err := control(dir, []string{"cpu", "io", "memory"}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "+cpu +io +memory" {
		t.Errorf("%q, %v", text, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := control(dir, nil); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(file, 0o755); err != nil { // nothing can be written there
		t.Fatal(err)
	}
	err := control(dir, []string{"cpu", "io"})
	if err == nil || !strings.Contains(err.Error(), "cpu: ") || !strings.Contains(err.Error(), "io: ") {
		t.Errorf("%v", err)
	}
}
