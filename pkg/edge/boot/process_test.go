package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Waiting for every child, as process 1 does, would take the children of other tests away:
// these tests run in a process of their own, which adopts orphans as process 1 would.
func TestMain(m *testing.M) {
	if os.Getenv("BOOT_TEST_INIT") == "" {
		os.Exit(m.Run())
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := asInit(); err != nil {
		fmt.Println("FAIL:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func TestProcesses(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "BOOT_TEST_INIT=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func asInit() error {
	b := &booter{procs: newProcesses(), out: &consoles{}, leave: make(chan request, 1)}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD)
	go b.listen(signals)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	out, code, err := b.procs.run(ctx, []byte("hello"), "sh", "-c", "cat; echo ' there' >&2; exit 3")
	if code != 3 || err == nil || out != "hello there" || !strings.Contains(err.Error(), "exit status 3: hello there") {
		return fmt.Errorf("run: %q, %d, %v", out, code, err)
	}
	if _, _, err := b.procs.run(ctx, nil, "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("no such program: %v", err)
	}
	short, cut := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cut()
	if _, _, err := b.procs.run(short, nil, "sleep", "1000"); err == nil || !strings.Contains(err.Error(), "signal") {
		return fmt.Errorf("a helper outlives its time: %v", err)
	}

	// An orphan becomes ours, and is reaped.
	out, _, err = b.procs.run(ctx, nil, "sh", "-c", "sleep 0.1 >/dev/null 2>&1 & echo $!")
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat("/proc/" + out); errors.Is(err, os.ErrNotExist) {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("orphan %s is never reaped", out)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return restarts(ctx, b)
}

// restarts: a child that ends is started again, and ended for good when the box goes down.
func restarts(ctx context.Context, b *booter) error {
	c := &child{name: "boot-test", argv: []string{"sh", "-c", "exit 7"}, grace: time.Minute}
	for range 2 {
		if end := b.live(c); end != "exit status 7" {
			return fmt.Errorf("it ended by %q", end)
		}
	}
	c.argv = []string{"sleep", "1000"}
	b.keep(ctx, c)
	for c.status().PID == 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	first := c.status().PID
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		return err
	}
	for s := c.status(); s.Restarts == 0 || s.PID == 0 || s.PID == first; s = c.status() {
		if ctx.Err() != nil {
			return fmt.Errorf("not started again: %+v", s)
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.end()
	if s := c.status(); s.PID != 0 || !strings.Contains(s.LastEnd, "terminated") {
		return fmt.Errorf("not ended: %+v", s)
	}
	return nil
}

// The agent is well when it answers, and not when it listens without answering.
func TestAskAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if askAgent(path) == nil {
		t.Error("nobody listens, and it is well")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		says string
		well bool
	}{{"HTTP/1.0 200 OK\r\n\r\n", true}, {"HTTP/1.0 503 Not now\r\n\r\n", false}, {"", false}} {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var b [64]byte
			_, _ = conn.Read(b[:])
			_, _ = conn.Write([]byte(c.says))
			conn.Close()
		}()
		if err := askAgent(path); (err == nil) != c.well {
			t.Errorf("%q: %v", c.says, err)
		}
	}
}
