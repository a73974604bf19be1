// Command vmtest answers: which scenarios on machines pass in this version, and how long do the rest take?
//
// Each scenario is a process of its own, with a folder for its disks that goes with it and a log that stays, so that one
// which hangs, panics or is ended costs itself alone. Two run beside each other, those that took longest the last time
// first. What passed is kept in build/vmtest/results.json: RESUME=1 leaves that out in the same version, after a break of
// the hours that all of them take. It ends with a table; its exit code is 0 if every scenario passed.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// packages hold scenarios on machines, and the tests of what they stand on.
var packages = []string{"tests/vm", "tests/secureboot", "tests/installer", "tests/machines", "image/build", "image/nvidia", withC}

// withC is the one package among them that needs C: its cards are go-nvml's mocks.
const withC = "tests/gpus"

// roomy is what scenarios write at most at a time, two beside each other, with room to spare: an image of 4 GB for each of
// two boxes, and two images that are being built.
const roomy = 16 << 30

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := suite{say: func(format string, a ...any) { fmt.Printf(format+"\n", a...) }}
	flag.StringVar(&s.version, "version", "", "what is tested; one that ends with -dirty is not resumed")
	flag.StringVar(&s.out, "out", "build/vmtest", "folder for logs and results")
	flag.IntVar(&s.lanes, "lanes", 2, "scenarios beside each other")
	flag.DurationVar(&s.limit, "limit", 2*time.Hour, "what one scenario may take")
	run := flag.String("run", "", "scenarios that match, as go test -run")
	resume := flag.Bool("resume", os.Getenv("RESUME") != "", "leave out what passed in this version")
	flag.Parse()
	if err := s.whole(ctx, *run, *resume); err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		os.Exit(1)
	}
}

// whole runs what is asked for, and says an error unless all of it passed.
func (s *suite) whole(ctx context.Context, run string, resume bool) error {
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return err
	}
	if free, err := room(os.TempDir()); err == nil && free < roomy {
		return fmt.Errorf("%s has %.1f GB left, machines' disks need %.0f: make room, or set TMPDIR", os.TempDir(), float64(free)/1e9, float64(roomy)/1e9)
	}
	if _, set := os.LookupEnv("TRIBUTARY_BOOTS"); !set {
		if err := os.Setenv("TRIBUTARY_BOOTS", "60"); err != nil {
			return err
		}
	}
	s.with = settings(os.Environ())
	first, rest, _ := strings.Cut(run, "/")
	only, err := regexp.Compile(first)
	if err != nil {
		return err
	}
	s.within = rest
	if s.results, err = load(filepath.Join(s.out, "results.json")); err != nil {
		return err
	}
	var all []scenario
	s.say("compiling the scenarios of %s", strings.Join(packages, ", "))
	for _, pkg := range packages {
		names, err := s.compile(ctx, pkg)
		if err != nil {
			return err
		}
		for _, n := range names {
			if only.MatchString(n) {
				all = append(all, scenario{pkg, n})
			}
		}
	}
	if len(all) == 0 {
		return fmt.Errorf("no scenario matches %q", run)
	}
	todo := all
	switch {
	case resume && strings.HasSuffix(s.version, "-dirty"):
		s.say("%s is no version to go on with: all of it is run", s.version)
	case resume && rest == "":
		todo = slices.DeleteFunc(slices.Clone(all), func(c scenario) bool { return s.results.passed(c, s.version, s.with) })
	}
	todo = order(todo, s.results)
	s.say("%d scenarios, %d to run, %d beside each other; %s; logs in %s", len(all), len(todo), s.lanes, left(todo, nil, s.results, s.lanes), s.out)
	done := s.play(ctx, todo)
	return s.table(all, done)
}

// settings are what the environment says of how scenarios run: what passed under others is not left out.
func settings(environ []string) string {
	var list []string
	for _, e := range environ {
		if strings.HasPrefix(e, "TRIBUTARY_") {
			list = append(list, e)
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// room is how many bytes a folder's file system has left.
func room(dir string) (uint64, error) {
	var st syscall.Statfs_t
	err := syscall.Statfs(dir, &st)
	return st.Bavail * uint64(st.Bsize), err
}

// compile makes a package's test program, and lists what it holds.
func (s *suite) compile(ctx context.Context, pkg string) (names []string, err error) {
	program := s.program(pkg)
	made := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./"+pkg)
	if pkg == withC {
		made.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -Wno-deprecated-declarations")
	}
	if text, err := made.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", pkg, err, text)
	}
	list := exec.CommandContext(ctx, program, "-test.list", "^Test")
	list.Dir = pkg
	text, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pkg, err)
	}
	for line := range strings.Lines(string(text)) {
		if n := strings.TrimSpace(line); strings.HasPrefix(n, "Test") {
			names = append(names, n)
		}
	}
	return names, nil
}

func (s *suite) program(pkg string) string {
	path, err := filepath.Abs(filepath.Join(s.out, strings.ReplaceAll(pkg, "/", "-")+".test"))
	if err != nil {
		return pkg // without a working folder nothing starts
	}
	return path
}

// load reads what earlier runs left; none is none.
func load(path string) (r results, err error) {
	r.path = path
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r.Last); err != nil {
		return r, fmt.Errorf("%s: %w: remove it", path, err)
	}
	return r, nil
}

// keep writes a scenario's result in the place of its last one.
func (r *results) keep(now result) error {
	r.Last = append(slices.DeleteFunc(r.Last, func(o result) bool { return o.scenario == now.scenario }), now)
	text, err := json.MarshalIndent(r.Last, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(r.path+".new", r.path)
}

// table shows every scenario, why some failed or were skipped, and an honest count.
func (s *suite) table(all []scenario, done map[scenario]result) error {
	count := map[verdict]int{}
	s.say("\n== %s, scenarios with their seconds", s.version)
	for _, c := range all {
		r, ran := done[c]
		switch {
		case !ran && s.results.passed(c, s.version, s.with):
			r = s.results.last(c)
			r.Words = append([]string{"passed before, in this version"}, r.Words...)
		case !ran:
			r = result{scenario: c, Verdict: notRun}
		}
		count[r.Verdict]++
		s.say("%-7s %8.1f  %-10s %s", r.Verdict, r.Seconds, filepath.Base(c.Package), c.Name)
		for _, w := range r.Words {
			s.say("%18s%s", "", w)
		}
		if r.Verdict == failed {
			s.say("%18ssee %s", "", s.log(c))
		}
	}
	s.say("%d passed, %d failed, %d skipped, %d not run, of %d", count[passed], count[failed], count[skipped], count[notRun], len(all))
	if n := len(all) - count[passed] - count[skipped]; n > 0 {
		return fmt.Errorf("%d of %d did not pass; RESUME=1 runs what is left", n, cmp.Or(len(all), n))
	}
	return nil
}
