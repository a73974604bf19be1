package mutation

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestProve: a test that needs its check passes; one that does not is named, and so are a
// check that is not where it was, a test that is not there, one that fails by something else, and
// a story against which no check stands.
func TestProve(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a small package several times")
	}
	for test, want := range map[string]string{
		"TestGood":  "",
		"TestBad":   `without the check "first" no test of ^TestLength$ fails`,
		"TestMoved": "door.go has changed",
		"TestNone":  "no tests to run",
		"TestOther": `fails, and does not say "it opens"`,
		"TestStory": `against "a short key" stands "length", which is no check`,
	} {
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^"+test+"$", ".")
		cmd.Dir = filepath.Join("testdata", "door")
		out, err := cmd.CombinedOutput()
		if (want == "") != (err == nil) || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v\n%s", test, err, out)
		}
	}
}
