package pool

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// This test's own binary, under the name of NVIDIA's program, speaks as that does: -f stays
// and serves the folder of its pipes; without, it passes on what it reads, a command a line,
// and prints the answer. How the real one behaves in a container is unproven: there is none here.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == controlProgram {
		folder := os.Getenv("CUDA_MPS_PIPE_DIRECTORY")
		if err := control(folder, len(os.Args) > 1 && os.Args[1] == "-f"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	wait.Leaks(m)
}

func control(folder string, serve bool) error {
	door := filepath.Join(folder, "control")
	if !serve {
		line, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		c, err := net.Dial("unix", door)
		if err != nil {
			return err
		}
		if _, err := c.Write(line); err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, c)
		return err
	}
	if err := os.RemoveAll(door); err != nil {
		return err
	}
	l, err := net.Listen("unix", door)
	if err != nil {
		return err
	}
	heard, err := os.OpenFile(filepath.Join(os.Getenv("CUDA_MPS_LOG_DIRECTORY"), "heard"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// It meets its clients in memory that nobody else shares.
	if err := os.WriteFile("/dev/shm/daemon", []byte("here"), 0o600); err != nil {
		return err
	}
	fmt.Fprintln(heard, "begins for", os.Getenv("CUDA_VISIBLE_DEVICES"))
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return err
		}
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.Contains([]string{"get_server_list", "set_default_device_pinned_mem_limit", "set_default_active_thread_percentage", "quit"}, word) {
			fmt.Fprintln(c, "Unrecognized command")
		}
		fmt.Fprint(heard, line)
		c.Close()
		if word == "quit" {
			return nil
		}
	}
}

// mpsBox is a box whose driver has the program.
func mpsBox(t *testing.T) (*box, func() string) {
	if os.Getuid() != 0 {
		t.Skip("needs root: a card's clients have shared memory of their own")
	}
	b := newBox(t, 1)
	me, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(b.root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(me, filepath.Join(b.root, "usr/bin", controlProgram)); err != nil {
		t.Fatal(err)
	}
	b.policy(api.Sharing{Mode: api.SharingMPS, Replicas: 4})
	t.Cleanup(func() {
		b.mps.wait()
		var n note // of a daemon that the test left behind
		if raw, err := os.ReadFile(filepath.Join(b.root, "run/mps-state/GPU-0", noteFile)); err == nil && json.Unmarshal(raw, &n) == nil && n.PID > 1 {
			_ = syscall.Kill(n.PID, syscall.SIGKILL)
		}
		if err := unshareMemory(filepath.Join(b.root, "run/mps-shm/GPU-0")); err != nil {
			t.Error(err)
		}
	})
	return b, func() string {
		raw, _ := os.ReadFile(filepath.Join(b.root, "run/mps-state/GPU-0/log/heard"))
		return string(raw)
	}
}

func mpsClaim(options ...string) api.Claim {
	c := api.Claim{Class: api.ClaimGPU, Count: 1, Options: map[string]string{"sharing": "mps"}}
	for i := 0; i < len(options); i += 2 {
		c.Options[options[i]] = options[i+1]
	}
	return c
}

// The control daemon runs while a service holds a card under MPS, limits every client, is
// found again by another edged and started again when it dies; then the card is as it was.
func TestMPS(t *testing.T) {
	b, heard := mpsBox(t)
	one, edits, err := b.take(mpsClaim("threads", "10", "memory-limit", "2000"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=10", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=2000M", "CUDA_MPS_PIPE_DIRECTORY=/run/tributary/mps"} {
		if !slices.Contains(edits.Env, want) {
			t.Errorf("no %s in %v", want, edits.Env)
		}
	}
	two, edits, err := b.take(mpsClaim())
	if err != nil || one != two || !slices.Contains(edits.Env, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=10240M") {
		t.Fatalf("%s, %s, %v, %v", one, two, edits.Env, err)
	}
	want := "begins for GPU-0\nget_server_list\nset_default_device_pinned_mem_limit 0 10240M\nset_default_active_thread_percentage 25\n"
	if got := heard(); !strings.HasSuffix(got, want) {
		t.Errorf("the daemon heard\n%s", got)
	}
	for _, m := range edits.Mounts { // what the container finds there is what the daemon does
		met := m.ContainerPath == "/dev/shm" && m.HostPath != "/dev/shm"
		if _, err := os.Stat(filepath.Join(m.HostPath, "daemon")); met != (err == nil) {
			t.Errorf("the daemon's memory at %+v: %v", m, err)
		}
	}
	if exists("/dev/shm/daemon") {
		t.Error("the daemon has the box's own shared memory")
	}
	if got := b.cards.list[0].Details["compute_mode"]; got != "Exclusive_Process" {
		t.Errorf("the compute mode is %s", got)
	}
	pid := func() int {
		raw, _ := os.ReadFile(filepath.Join(b.root, "run/mps-state/GPU-0", noteFile))
		var n note
		_ = json.Unmarshal(raw, &n) // none while it is written
		return n.PID
	}
	first := pid()
	b.mps.wait() // edged ends, and another begins
	b.begin()
	b.Look(t.Context())
	if pid() != first || strings.Count(heard(), "begins") != 1 {
		t.Errorf("the daemon of the edged before is not taken on: %d, %d", first, pid())
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, "the daemon runs again, set up", func() bool {
		return pid() != first && strings.Count(heard(), "set_default_active_thread_percentage 25") == 2
	})
	b.give(one)
	if _, err := startOf(pid()); err != nil {
		t.Error("one of two gave the card back, and the daemon is gone")
	}
	last := pid()
	b.give(two)
	if _, err := startOf(last); err == nil {
		t.Error("the daemon runs on")
	}
	for _, dir := range []string{"run/mps/GPU-0", "run/mps-state/GPU-0", "run/mps-shm/GPU-0"} {
		if exists(filepath.Join(b.root, dir)) {
			t.Errorf("%s is left", dir)
		}
	}
	if b.cards.list[0].Details["compute_mode"] != "Default" {
		t.Errorf("the card is not as it was found: %v", b.cards.list[0].Details)
	}
}

// A claim may have less than the policy gives, and not more.
func TestMPSLimits(t *testing.T) {
	b, _ := mpsBox(t)
	for _, c := range []api.Claim{mpsClaim("threads", "26"), mpsClaim("memory-limit", "10241")} {
		if _, _, err := b.take(c); api.CodeOf(err) != api.Invalid || err == nil {
			t.Errorf("%v is given: %v", c.Options, err)
		}
		b.holders = nil
	}
}

func TestWithoutTheProgram(t *testing.T) {
	b := newBox(t, 1)
	b.policy(api.Sharing{Mode: api.SharingMPS, Replicas: 2})
	if id, _, err := b.take(mpsClaim()); err == nil || !strings.Contains(err.Error(), controlProgram) {
		t.Errorf("%s, %v", id, err)
	}
}

// TestRefusals: without the checks the tests above fail.
func TestRefusals(t *testing.T) {
	mutation.Prove(t, mutation.Marked(t, "^TestMPSLimits$", "give.go")...)
}
