package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "edged-init")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestExitCodes(t *testing.T) {
	program := build(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for want, argv := range map[int][]string{
		0: {"true"}, 7: {"sh", "-c", "exit 7"}, 128 + 9: {"/bin/sh", "-c", "kill -9 $$"}, 127: {"no-such-program"}, 126: {plain}, 2: {},
	} {
		if got := code(exec.Command(program, argv...).Run()); got != want {
			t.Errorf("%v: exit code %d, want %d", argv, got, want)
		}
	}
}

func TestSignalsReachTheProgram(t *testing.T) {
	cmd := exec.Command(build(t), "sh", "-c", `trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Errorf("the program said %q, want %q", lines.Text(), want)
		}
	}
	next("ready")
	_ = cmd.Process.Signal(syscall.SIGUSR1)
	next("usr1")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	next("term")
	if got := code(cmd.Wait()); got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
}

// As process 1 of a namespace it collects orphans, which `sh -c exec` alone would not.
func TestOrphansAreCollected(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a PID namespace")
	}
	cmd := exec.Command(build(t), "sh", "-c", `(sh -c 'sleep 0.1; echo orphan' &); exec sleep 600`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(pipe).ReadString('\n'); err != nil || line != "orphan\n" {
		t.Fatalf("%q, %v", line, err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		left := below(cmd.Process.Pid)
		if slices.Equal(left, []string{"sleep"}) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left below process 1: %v", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// below lists the names of a process's children, dead ones too (proc(5), stat).
func below(pid int) (names []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		b, _ := os.ReadFile(path)
		head, tail, _ := strings.Cut(string(b), ") ")
		if _, name, ok := strings.Cut(head, " ("); ok && len(tail) > 2 && strings.HasPrefix(tail[2:], strconv.Itoa(pid)+" ") {
			names = append(names, name)
		}
	}
	return names
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		name, list string
		want       []string
	}{
		{"/bin/x", "/usr/bin", []string{"/bin/x"}},
		{"./x", "/usr/bin", []string{"./x"}},
		{"x", "/usr/bin:/bin", []string{"/usr/bin/x", "/bin/x"}},
		{"x", ":/bin", []string{"./x", "/bin/x"}},
		{"x", "", []string{"./x"}},
	} {
		if got := candidates(c.name, c.list); !slices.Equal(got, c.want) {
			t.Errorf("%s in %q: %v, want %v", c.name, c.list, got, c.want)
		}
	}
}
