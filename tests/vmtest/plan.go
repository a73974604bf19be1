package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// scenario is one test of a package.
type scenario struct {
	Package string `json:"package"`
	Name    string `json:"name"`
}

// verdict is how a scenario ended.
type verdict string

const (
	passed  verdict = "PASS"
	failed  verdict = "FAIL"
	skipped verdict = "SKIP"
	notRun  verdict = "NOT RUN"
)

// result is what became of a scenario; Version and With are what it ran with.
type result struct {
	scenario
	Verdict verdict `json:"verdict"`
	Seconds float64 `json:"seconds"`
	Version string  `json:"version"`
	With    string  `json:"with"`
	// Words are what a person reads first: parts that failed or were skipped, and why.
	Words []string `json:"words,omitempty"`
}

// results are the last of each scenario, of any version.
type results struct {
	path string
	Last []result
}

func (r results) last(c scenario) result {
	for _, o := range r.Last {
		if o.scenario == c {
			return o
		}
	}
	return result{scenario: c}
}

// passed tells whether a scenario has nothing left to show in a version.
func (r results) passed(c scenario, version, with string) bool {
	o := r.last(c)
	return o.Verdict == passed && o.Version == version && o.With == with && version != ""
}

// order puts first what took longest, so that the lanes end together; what never ran may take long, and comes before.
func order(list []scenario, known results) []scenario {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b scenario) int {
		x, y := known.last(a), known.last(b)
		if (x.Verdict == "") != (y.Verdict == "") {
			return cmp.Compare(len(x.Verdict), len(y.Verdict))
		}
		return cmp.Compare(y.Seconds, x.Seconds)
	})
	return list
}

// left tells how long the rest takes: waiting scenarios, and running ones by how long they run already, from what each
// took the last time, or else from what scenarios took on average, unless that were to stand for most of them.
func left(waiting []scenario, running map[scenario]time.Duration, known results, lanes int) string {
	var sum, longest, mean float64
	for _, o := range known.Last {
		mean += o.Seconds / float64(len(known.Last))
	}
	guessed := 0
	took := func(c scenario) float64 {
		if o := known.last(c); o.Verdict != "" {
			return o.Seconds
		}
		guessed++
		return mean
	}
	for _, c := range waiting {
		s := took(c)
		sum, longest = sum+s, max(longest, s)
	}
	for c, already := range running {
		s := max(0, took(c)-already.Seconds())
		sum, longest = sum+s, max(longest, s)
	}
	if all := len(waiting) + len(running); mean == 0 || 2*guessed > all { // an average of few, or of short ones, tells nothing
		return fmt.Sprintf("no telling how long: %d of %d never ran here", guessed, all)
	}
	text := fmt.Sprintf("some %s left", time.Duration(max(sum/float64(max(lanes, 1)), longest)*float64(time.Second)).Round(time.Minute))
	text = strings.Replace(text, "m0s", "m", 1)
	if guessed > 0 {
		text += fmt.Sprintf(" (%d never ran here: taken for the average)", guessed)
	}
	return text
}

var (
	// ended is a line of go test: how a test or a part of one ended.
	ended = regexp.MustCompile(`(?m)^( *)--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)$`)
	// said is a line of a test's own log.
	said = regexp.MustCompile(`^ +\S+_test\.go:\d+: `)
)

// read tells a scenario's end from what it said and whether its process ended well. A process that ended without a word
// of its test has not passed.
func read(c scenario, text string, well bool) (v verdict, words []string) {
	v = failed
	for _, m := range ended.FindAllStringSubmatch(text, -1) {
		switch {
		case m[1] == "" && m[3] == c.Name && (well || m[2] == string(failed)):
			v = verdict(m[2])
		case m[2] != string(passed):
			words = append(words, m[2]+" "+m[3])
		}
	}
	if v == passed {
		return v, words
	}
	// What a test said last before it ended stands nearest to the cause.
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\n"); said.MatchString(line) || strings.HasPrefix(line, "panic:") {
			lines = append(lines, shortened(strings.TrimSpace(line)))
		}
	}
	lines = lines[max(0, len(lines)-3):]
	if len(lines) == 0 {
		lines = []string{"its process ended without a word of it"}
	}
	return v, append(words, lines...)
}

func shortened(line string) string {
	if len(line) > 200 {
		return line[:200] + "…"
	}
	return line
}
