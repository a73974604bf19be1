package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// TestMain is also the program of a package of scenarios: one passes, one fails in a part, one is skipped, one ends
// without a word, one hangs.
func TestMain(m *testing.M) {
	if os.Getenv("VMTEST_SAMPLE") == "" {
		os.Exit(m.Run())
	}
	flag.Parse()
	if err := os.WriteFile(filepath.Join(os.TempDir(), "disk.raw"), []byte(os.Getenv("TRIBUTARY_VMTEST")), 0o644); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	switch flag.Lookup("test.run").Value.String() {
	case "^TestGood$":
		fmt.Print("=== RUN   TestGood\n--- PASS: TestGood (0.10s)\nPASS\n")
	case "^TestBad$":
		fmt.Print("    bad_test.go:7: the box does not come up\n--- FAIL: TestBad (0.10s)\n    --- PASS: TestBad/one (0.00s)\n    --- FAIL: TestBad/two (0.00s)\nFAIL\n")
		os.Exit(1)
	case "^TestLeft$":
		fmt.Print("    left_test.go:7: needs a radio\n--- SKIP: TestLeft (0.00s)\nPASS\n")
	case "^TestHangs$":
		select {}
	}
}

// sample is a suite of that program.
func sample(t *testing.T) (s *suite, pkg string, out func() string) {
	t.Helper()
	t.Setenv("VMTEST_SAMPLE", "1")
	t.Setenv("TMPDIR", t.TempDir())
	var mu sync.Mutex
	var said strings.Builder
	s = &suite{version: "v1", out: t.TempDir(), lanes: 2, limit: time.Minute, say: func(format string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&said, format+"\n", a...)
	}}
	s.results.path = filepath.Join(s.out, "results.json")
	pkg = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, s.program(pkg)); err != nil {
		t.Fatal(err)
	}
	return s, pkg, func() string { mu.Lock(); defer mu.Unlock(); return said.String() }
}

// Each scenario's end is told as it was, is kept, and leaves no folder; the count is honest.
func TestPlay(t *testing.T) {
	s, pkg, out := sample(t)
	all := []scenario{{pkg, "TestGood"}, {pkg, "TestBad"}, {pkg, "TestLeft"}, {pkg, "TestMute"}, {pkg, "TestLater"}}
	done := s.play(t.Context(), all[:4])
	want := []verdict{passed, failed, skipped, failed}
	for i, v := range want {
		if got := done[all[i]]; got.Verdict != v {
			t.Errorf("%s: %+v", all[i].Name, got)
		}
	}
	if got := done[all[1]].Words; !reflect.DeepEqual(got, []string{"FAIL TestBad/two", "bad_test.go:7: the box does not come up"}) {
		t.Errorf("of what failed it says %q", got)
	}
	if err := s.table(all, done); err == nil || !strings.Contains(out(), "1 passed, 2 failed, 1 skipped, 1 not run, of 5") {
		t.Errorf("%v:\n%s", err, out())
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("it left %v behind: %v", left, err)
	}
	known, err := load(s.results.path)
	if err != nil || !known.passed(all[0], "v1", "") || known.passed(all[0], "v2", "") || known.passed(all[0], "v1", "TRIBUTARY_BOOTS=1") || known.passed(all[1], "v1", "") {
		t.Errorf("kept were %+v, %v", known, err)
	}
	if err := s.table(all[:1], nil); err != nil || !strings.Contains(out(), "passed before, in this version") {
		t.Errorf("what passed before is told as %v:\n%s", err, out())
	}
}

// What is ended from outside has neither passed nor failed, and parts of a scenario do not stand for the whole.
func TestNotKept(t *testing.T) {
	s, pkg, _ := sample(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan map[scenario]result, 1)
	go func() { ended <- s.play(ctx, []scenario{{pkg, "TestHangs"}}) }()
	wait.Until(t, "it hangs", func() bool {
		disks, _ := filepath.Glob(filepath.Join(os.TempDir(), "vmtest-*", "disk.raw"))
		return len(disks) == 1
	})
	cancel()
	if done := wait.For(t, "its end", ended); len(done) > 0 {
		t.Errorf("what was ended is told as %+v", done)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("it left %v behind: %v", left, err)
	}
	s.within = "part"
	s.play(t.Context(), []scenario{{pkg, "TestGood"}})
	if _, err := os.Stat(s.results.path); err == nil {
		t.Error("a part was kept as the whole")
	}
}

func TestOrder(t *testing.T) {
	a, b, c, d := scenario{"p", "A"}, scenario{"p", "B"}, scenario{"p", "C"}, scenario{"p", "D"}
	known := results{Last: []result{{scenario: a, Verdict: passed, Seconds: 60}, {scenario: b, Verdict: failed, Seconds: 300}, {scenario: d, Verdict: passed, Seconds: 240}}}
	if got := order([]scenario{a, b, c, d}, known); !reflect.DeepEqual(got, []scenario{c, b, d, a}) {
		t.Errorf("the order is %v", got)
	}
	for _, l := range []struct {
		waiting []scenario
		running map[scenario]time.Duration
		want    string
	}{
		{[]scenario{b, d, a}, nil, "some 5m left"},
		{[]scenario{b}, map[scenario]time.Duration{d: 2 * time.Minute}, "some 5m left"},
		{[]scenario{a, c}, map[scenario]time.Duration{a: time.Hour}, "some 3m left (1 never ran here: taken for the average)"},
		{[]scenario{a, c}, map[scenario]time.Duration{{"p", "E"}: time.Hour}, "no telling how long: 2 of 3 never ran here"},
	} {
		if got := left(l.waiting, l.running, known, 2); got != l.want {
			t.Errorf("%v, %v: %q, not %q", l.waiting, l.running, got, l.want)
		}
	}
	if got := left([]scenario{c}, nil, results{}, 2); got != "no telling how long: 1 of 1 never ran here" {
		t.Errorf("of what never ran it says %q", got)
	}
}

// A program that ends with 0 and says nothing of its scenario, as one does that holds no such test, has not passed it.
func TestRead(t *testing.T) {
	c := scenario{"p", "TestX"}
	for text, want := range map[string]verdict{
		"PASS\n":                                        failed,
		"--- PASS: TestX (1.00s)\nPASS\n":               passed,
		"    --- PASS: TestX (1.00s)\n":                 failed,
		"testing: warning: no tests to run\nPASS\n":     failed,
		"panic: test timed out after 2h0m0s\n":          failed,
		"--- SKIP: TestX (0.00s)\nPASS\n":               skipped,
		"--- PASS: TestXY (1.00s)\nPASS\n":              failed,
		"--- FAIL: TestX (1.00s)\nFAIL\n":               failed,
		"some guest said --- PASS: TestX (1.00s)\nPASS": failed,
	} {
		if got, _ := read(c, text, true); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
	if got, _ := read(c, "--- PASS: TestX (1.00s)\n", false); got != failed {
		t.Errorf("a process that failed after its test: %s", got)
	}
}

func TestSettings(t *testing.T) {
	if got := settings([]string{"HOME=/", "TRIBUTARY_GUESTS=2", "TRIBUTARY_BOOTS=60"}); got != "TRIBUTARY_BOOTS=60 TRIBUTARY_GUESTS=2" {
		t.Errorf("%q", got)
	}
	r := result{scenario: scenario{"p", "TestX"}, Verdict: passed}
	if text, err := json.Marshal(r); err != nil || !strings.Contains(string(text), `"name":"TestX"`) {
		t.Errorf("%s, %v", text, err)
	}
}
