package update

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestChecksCount: in a build without one of the checks, the test that proves it fails.
func TestChecksCount(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package anew")
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go tool")
	}
	dir := t.TempDir()
	overlay := map[string]map[string]string{"Replace": {}}
	marked := regexp.MustCompile(`(?m)^(\s*(?:if|case) )(.*?)( \{|:)( // check: ([a-z ]+))$`)
	var checks []string
	for _, file := range []string{"decide.go", "flash.go"} {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range marked.FindAllStringSubmatch(string(src), -1) {
			checks = append(checks, m[5])
		}
		text := marked.ReplaceAllStringFunc(string(src), func(line string) string {
			m := marked.FindStringSubmatch(line)
			before, cond := "", m[2]
			if at := strings.LastIndex(cond, "; "); at >= 0 {
				before, cond = cond[:at+2], cond[at+2:]
			}
			return m[1] + before + "(" + cond + `) && unchecked != "` + m[5] + `"` + m[3] + m[4]
		})
		text = strings.Replace(text, "package update\n", "package update\n\nimport os__ "+`"os"`+"\n", 1)
		if file == "decide.go" {
			text += "\nvar unchecked = os__.Getenv(\"TRIBUTARY_UNCHECKED\")\n"
		} else {
			text += "\nvar _ = os__.Getpid\n"
		}
		here, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][here] = filepath.Join(dir, file)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "update.test")
	if out, err := exec.Command(goTool, "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tests := "TestStories|TestWrongContent|TestWriteByDelta|TestNeverOverTheFirst"
	run := func(unchecked string) (string, error) {
		cmd := exec.Command(program, "-test.short", "-test.run", tests)
		cmd.Env = append(os.Environ(), "TRIBUTARY_UNCHECKED="+unchecked)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(""); err != nil {
		t.Fatalf("with all checks: %v: %s", err, out)
	}
	for _, want := range []string{"arch", "floor", "order", "root hash", "verity"} {
		if !slices.Contains(checks, want) {
			t.Errorf("nothing is marked as the check of the %s", want)
		}
	}
	for _, check := range checks {
		if out, err := run(check); err == nil {
			t.Errorf("without the check of the %s no test fails:\n%s", check, out)
		}
	}
}

// TestNeverOverTheFirst: the slot that the firmware starts first is not written, even where it is not the one that runs.
func TestNeverOverTheFirst(t *testing.T) {
	w := newWorld(t)
	w.order = []Slot{"b", "a"}
	w.uptime, w.want = 30*60e9, &Want{Digest: "sha256:1"}
	w.settle()
	if w.running != "b" || w.state().Good != "b" {
		t.Fatalf("in slot %s: %+v", w.running, w.state())
	}
}
