package cli_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"tributary.dev/tributary/cmd/edgectl/cli"
	"tributary.dev/tributary/tests/wait"
)

// openTerminal makes a pseudoterminal (pts(4)): what is written to ours is typed at theirs.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/ptmx: %v", err)
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skipf("needs pseudoterminals: %v", err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/pts: %v", err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// exec -it sets the terminal raw, tells its size and every change of it, passes keys
// and the exit code on, and leaves the terminal as it was.
func TestExecTerminal(t *testing.T) {
	ours, theirs := openTerminal(t)
	core, err := startCore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer core.stop()
	resize := func(columns, rows uint16) {
		if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
			t.Fatal(err)
		}
	}
	resize(80, 24)
	before, err := term.GetState(int(theirs.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"EDGECTL_SERVER": core.url, "EDGECTL_TOKEN": core.token, "EDGECTL_CA": core.caFile, "EDGECTL_CONFIG": t.TempDir() + "/none"}
	code := make(chan int, 1)
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), wait.Limit)
	defer cancel()
	go func() {
		code <- cli.Main(ctx, []string{"exec", "field-1", "shop/web", "-it", "--", "sizes"}, cli.Streams{In: theirs, Out: w, Err: w}, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || strings.TrimRight(lines.Text(), "\r") != want {
			t.Fatalf("got %q (%v), want %q", lines.Text(), lines.Err(), want)
		}
	}
	expect("tty true 80x24")
	resize(100, 30)
	// The signal comes by itself for a process's own terminal alone.
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	expect("now 100x30")
	if _, err := ours.Write([]byte("q")); err != nil { // raw: no line end needed
		t.Fatal(err)
	}
	if got := <-code; got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
	after, err := term.GetState(int(theirs.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *after != *before {
		t.Error("the terminal is not as it was")
	}
}

// On a terminal a push shows a bar, and nothing of it is left on standard output.
func TestPushBar(t *testing.T) {
	ours, theirs := openTerminal(t)
	dir := t.TempDir()
	core, err := startCore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer core.stop()
	if err := writeImages(dir); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 100, Row: 24}); err != nil {
		t.Fatal(err)
	}
	var bar strings.Builder
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(&bar, ours) // ends with an error when the last holder closes the other side
	}()
	env := map[string]string{"EDGECTL_SERVER": core.url, "EDGECTL_TOKEN": core.token, "EDGECTL_CA": core.caFile, "EDGECTL_CONFIG": dir + "/none"}
	var out strings.Builder
	code := cli.Main(t.Context(), []string{"app", "push", dir + "/layout", "web:1"}, cli.Streams{In: strings.NewReader(""), Out: &out, Err: theirs}, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	theirs.Close()
	<-drained
	if code != 0 || !strings.HasPrefix(out.String(), "default/web@sha256:") || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("exit code %d, output %q", code, out.String())
	}
	if !strings.Contains(bar.String(), "pushing default/web:1") || !strings.Contains(bar.String(), "%") {
		t.Errorf("bar: %q", bar.String())
	}
}
