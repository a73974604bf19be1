package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// suite runs scenarios.
type suite struct {
	version, with, out string
	// within is what -run says of a scenario's parts; what passed of parts alone is not kept.
	within string
	lanes  int
	limit  time.Duration
	say    func(format string, a ...any)

	mu      sync.Mutex
	results results
	waiting []scenario
	running map[scenario]time.Time
	done    map[scenario]result
	total   int
}

// log is the file of what a scenario said.
func (s *suite) log(c scenario) string {
	return filepath.Join(s.out, filepath.Base(c.Package)+"."+c.Name+".log")
}

// play runs scenarios in their order, so many beside each other as there are lanes, until all have ended or the context
// has.
func (s *suite) play(ctx context.Context, todo []scenario) map[scenario]result {
	s.waiting, s.total = todo, len(todo)
	s.running, s.done = map[scenario]time.Time{}, map[scenario]result{}
	var lanes sync.WaitGroup
	for range s.lanes {
		lanes.Go(func() {
			for c, ok := s.next(ctx); ok; c, ok = s.next(ctx) {
				r := s.one(ctx, c)
				if ctx.Err() != nil && r.Verdict != passed {
					return // it was ended from outside
				}
				s.end(r)
			}
		})
	}
	lanes.Wait()
	return s.done
}

func (s *suite) next(ctx context.Context) (c scenario, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 || ctx.Err() != nil {
		return c, false
	}
	c, s.waiting = s.waiting[0], s.waiting[1:]
	s.running[c] = time.Now()
	s.say("        begins    %-10s %s", filepath.Base(c.Package), c.Name)
	return c, true
}

func (s *suite) end(r result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, r.scenario)
	s.done[r.scenario] = r
	if s.within == "" {
		if err := s.results.keep(r); err != nil {
			s.say("%v", err)
		}
	}
	already := maps.Collect(func(yield func(scenario, time.Duration) bool) {
		for c, at := range s.running {
			if !yield(c, time.Since(at)) {
				return
			}
		}
	})
	s.say("%-7s %8.1f  %-10s %s; %d of %d, %s", r.Verdict, r.Seconds, filepath.Base(r.Package), r.Name, len(s.done), s.total, left(s.waiting, already, s.results, s.lanes))
}

// one runs a scenario in a process and a temporary folder of its own, of which nothing is left.
func (s *suite) one(ctx context.Context, c scenario) result {
	began := time.Now()
	r := result{scenario: c, Version: s.version, With: s.with, Verdict: failed}
	well, err := s.process(ctx, c)
	r.Seconds = time.Since(began).Seconds()
	if err != nil {
		r.Words = []string{err.Error()}
		return r
	}
	text, err := os.ReadFile(s.log(c))
	if err != nil {
		r.Words = []string{err.Error()}
		return r
	}
	r.Verdict, r.Words = read(c, string(text), well)
	return r
}

// process tells whether a scenario's program ended with 0.
func (s *suite) process(ctx context.Context, c scenario) (well bool, err error) {
	dir, err := os.MkdirTemp("", "vmtest-")
	if err != nil {
		return false, err
	}
	// Some scenarios do a part as a user without rights.
	if err := os.Chmod(dir, 0o755); err != nil {
		return false, errors.Join(err, os.RemoveAll(dir))
	}
	log, err := os.Create(s.log(c))
	if err != nil {
		return false, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit+time.Minute) // the program itself tells more of where it hangs
	defer cancel()
	pattern := "^" + c.Name + "$"
	if s.within != "" {
		pattern += "/" + s.within
	}
	cmd := exec.CommandContext(ctx, s.program(c.Package), "-test.v", "-test.paniconexit0", "-test.parallel=1", "-test.timeout="+s.limit.String(), "-test.run="+pattern)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Package, log, log
	cmd.Env = append(os.Environ(), "TRIBUTARY_VMTEST=1", "TMPDIR="+dir)
	if !strings.Contains(s.with, "TRIBUTARY_GUESTS=") {
		cmd.Env = append(cmd.Env, "TRIBUTARY_GUESTS=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		_, err = fmt.Fprintf(log, "\n%v\n", exit)
	} else {
		well = err == nil
	}
	return well, errors.Join(err, log.Close(), os.RemoveAll(dir))
}
