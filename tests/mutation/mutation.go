// Package mutation answers: does the test of a refusal fail once the check that refuses is gone?
//
// A test that passes without the check proves nothing of it. The package under test is built
// once more, with every check behind a variable of the environment, and the test is run in
// turn without each.
package mutation

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Check is one place that refuses.
type Check struct {
	Name string
	// Test is the regular expression of the tests that must fail without the check.
	Test string
	// File holds the check; relative to the folder of the test.
	File string
	// From stands there once. To takes its place, where GONE is true in the run without the check.
	From, To string
	// Says is what the test must say without the check, beside that it failed: that something
	// opens, where any other refusal would fail it too. Empty for anything.
	Says string
}

// variable names the check that is out.
const variable = "TRIBUTARY_WITHOUT_CHECK"

// marked is a condition with a name: "if CONDITION { // check: NAME", or a case of a switch.
var marked = regexp.MustCompile(`(?m)^\s*(if|case) (.*?)( \{|:) // check: ([a-z ]+)$`)

// Marked lists the checks that are marked in files: "if err != nil { // check: digest".
func Marked(t *testing.T, test string, files ...string) []Check {
	t.Helper()
	var checks []Check
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range marked.FindAllStringSubmatch(string(source), -1) {
			line, cond, name := strings.TrimLeft(m[0], " \t\n"), m[2], m[4]
			before := ""
			if at := strings.LastIndex(cond, "; "); at >= 0 {
				before, cond = cond[:at+2], cond[at+2:]
			}
			checks = append(checks, Check{Name: name, Test: test, File: file, From: line, To: m[1] + " " + before + "(" + cond + ") && !GONE" + m[3]})
		}
	}
	return checks
}

// Each gives every story, a subtest of test by its name, the checks of the name that stands beside
// it: those, of the ones given, that keep just this from happening. A story without a name needs
// none. says is what the story says where it did happen.
func Each(t *testing.T, checks []Check, test, says string, stories map[string]string) (each []Check) {
	t.Helper()
	for story, name := range stories {
		found := name == ""
		for _, c := range checks {
			if c.Name == name {
				c.Test, c.Says, found = "^"+test+"$/^"+regexp.QuoteMeta(strings.ReplaceAll(story, " ", "_"))+"$", says, true
				each = append(each, c)
			}
		}
		if !found {
			t.Errorf("against %q stands %q, which is no check", story, name)
		}
	}
	return each
}

// Prove fails the test unless all the checks' tests pass with every check in place, and each
// check's test fails without it. Checks of one name are taken out together. It builds the package
// of the running test: not in the short form.
func Prove(t *testing.T, checks ...Check) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the package once more: not in the short form")
	}
	if len(checks) == 0 {
		t.Fatal("no checks")
	}
	var changes []Change
	tests := map[string]bool{}
	type out struct{ name, test, says string } // once, though it may be several changes
	mutants := map[out]bool{}
	for _, c := range checks {
		gone := fmt.Sprintf("(os__.Getenv(%q) == %q)", variable, c.Name)
		change := Change{File: c.File, From: c.From, To: strings.ReplaceAll(c.To, "GONE", gone)}
		if !slices.Contains(changes, change) {
			changes = append(changes, change)
		}
		whole, _, _ := strings.Cut(c.Test, "/")
		tests[whole], mutants[out{c.Name, c.Test, c.Says}] = true, true
	}
	binary := filepath.Join(t.TempDir(), "without.test")
	build(t.Context(), t, ".", changes, "test", "-c", "-o", binary, ".")
	run := func(test, without string) (string, error) {
		cmd := exec.CommandContext(t.Context(), binary, "-test.short", "-test.timeout", "10m", "-test.run", test)
		cmd.Env = append(os.Environ(), variable+"="+without)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, test := range slices.Sorted(maps.Keys(tests)) {
		if out, err := run(test, ""); err != nil || strings.Contains(out, "no tests to run") {
			t.Fatalf("%s with every check in place: %v\n%s", test, err, out)
		}
	}
	for m := range mutants {
		switch out, err := run(m.test, m.name); {
		case err == nil:
			t.Errorf("without the check %q no test of %s fails", m.name, m.test)
		case !strings.Contains(out, "--- FAIL: "):
			t.Errorf("without the check %q %s ends by something else than a failed test: %v\n%s", m.name, m.test, err, out)
		case !strings.Contains(out, m.says):
			t.Errorf("without the check %q %s fails, and does not say %q:\n%s", m.name, m.test, m.says, out)
		}
	}
}

// Change is a piece of source that stands once in its file (relative to the folder of the
// build), and what takes its place.
type Change struct{ File, From, To string }

// Program builds a program of the checkout at root with changes, and returns its path.
func Program(ctx context.Context, t *testing.T, root, program string, changes ...Change) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(program))
	build(ctx, t, root, changes, "build", "-trimpath", "-tags", "grpcnotrace", "-o", out, "./"+program)
	return out
}

// build runs the go command in a folder, with the changed files in place of those that lie there.
func build(ctx context.Context, t *testing.T, dir string, changes []Change, verb string, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go command")
	}
	texts := map[string]string{}
	for _, c := range changes {
		path, err := filepath.Abs(filepath.Join(dir, c.File))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := texts[path]; !ok {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(b)
		}
		if n := strings.Count(texts[path], c.From); n != 1 {
			t.Fatalf("%s has changed: %q stands there %d times, not once", c.File, c.From, n)
		}
		texts[path] = strings.Replace(texts[path], c.From, c.To, 1)
	}
	tmp, replace := t.TempDir(), map[string]string{}
	for path, text := range texts {
		if strings.Contains(text, "os__.") {
			text = clause.ReplaceAllString(text, "$0\n\nimport os__ \"os\"\n")
		}
		replace[path] = filepath.Join(tmp, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(replace[path], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(tmp, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, tool, append([]string{verb, "-overlay", file}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// clause is a file's package clause.
var clause = regexp.MustCompile(`(?m)^package \w+$`)
