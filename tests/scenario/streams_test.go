package scenario

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// streams asks a field device three hops down, and a relay, for all that a person may
// want of them at once; each leaves an audit record. A device that is cut off is told so.
func streams(ctx context.Context, t *testing.T, s *story.Story) {
	work(ctx, t, s, "shell", `
services:
  box:
    image: cache
    entrypoint: [/bin/busybox, sh, -c, "echo here I am; exec sleep 100000"]
    stop_grace_period: 1s
`)
	for _, what := range []struct {
		name string
		does func(context.Context, *testing.T, *story.Story)
	}{{"logs", logs}, {"exec", commands}, {"exec -it", terminal}, {"port-forward", forwarded}, {"top", top}} {
		what.does(ctx, t, s)
		s.Say("%s works", what.name)
	}
	must(t, running(ctx, s, "agg-1", "shell"))
	if out, err := s.Lab.Edgectl(ctx, "", "logs", "agg-1", "shell"); err != nil || !strings.Contains(out, "stdout here I am") {
		t.Errorf("logs of a relay's own app: %q, %v", out, err)
	}
	if out, err := s.Lab.Edgectl(ctx, "", "exec", "agg-1", "shell/box", "--", "hostname"); err != nil || out != "box\n" {
		t.Errorf("exec on a relay: %q, %v", out, err)
	}
	audited(ctx, t, s)
	s.Say("all of it is audited")
	cutOff(ctx, t, s)
}

func logs(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	out, err := s.Lab.Edgectl(ctx, "", "logs", "field-1", "demo/web", "--tail", "500")
	if err != nil || !strings.Contains(out, "visit ") {
		t.Errorf("logs: %q, %v", out, err)
	}
	if out, err = s.Lab.Edgectl(ctx, "", "logs", "field-1", "demo"); err != nil || !strings.Contains(out, "visit ") || !strings.Contains(out, "Ready to accept connections") {
		t.Errorf("logs of all services: %.300q, %v", out, err)
	}
	for what, args := range map[string][]string{
		"no app none":       {"logs", "field-1", "none/web"},
		"no service none":   {"logs", "field-1", "demo/none"},
		"no device field-9": {"logs", "field-9", "demo/web"},
	} {
		if _, err := s.Lab.Edgectl(ctx, "", args...); err == nil || !strings.Contains(err.Error(), "→") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Following: what the app writes now comes now.
	cmd, err := s.Lab.EdgectlCommand(ctx, "logs", "-f", "--tail", "0", "field-1", "demo/web")
	must(t, err)
	lines, end := follow(t, cmd)
	must(t, lab.Until(ctx, "logs -f shows a visit", s.Wait, func(ctx context.Context) error {
		if err := s.Answers(ctx, "field-1", "visits: "); err != nil {
			return err
		}
		select {
		case line := <-lines:
			if !strings.Contains(line, "visit ") {
				return fmt.Errorf("it shows %q", line)
			}
			return nil
		case <-time.After(time.Second):
			return errNothing
		}
	}))
	end()
}

// follow starts a command and gives its lines as they come; end interrupts it.
func follow(t *testing.T, cmd *exec.Cmd) (lines <-chan string, end func()) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	ch := make(chan string, 1024)
	go func() {
		defer close(ch)
		in := bufio.NewScanner(out)
		for in.Scan() {
			select {
			case ch <- in.Text():
			default: // the test has seen enough
			}
		}
	}()
	return ch, func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // interrupted: its exit code says so
	}
}

func commands(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	out, err := s.Lab.Edgectl(ctx, "", "exec", "field-1", "demo/cache", "--", "redis-cli", "ping")
	if err != nil || out != "PONG\n" {
		t.Errorf("exec: %q, %v", out, err)
	}
	_, err = s.Lab.Edgectl(ctx, "", "exec", "field-1", "demo/cache", "--", "sh", "-c", "echo to the side >&2; exit 7")
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "to the side") {
		t.Errorf("exit 7 came back as %v", err)
	}
	if _, err = s.Lab.Edgectl(ctx, "", "exec", "field-1", "demo/cache", "--", "nonesuch"); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("a program that is not there: %v", err)
	}
	var input strings.Builder // more than any window on the way
	for rng := rand.New(rand.NewPCG(1, 2)); input.Len() < 3<<20; {
		fmt.Fprintf(&input, "%x\n", rng.Uint64())
	}
	if out, err = s.Lab.Edgectl(ctx, input.String(), "exec", "-i", "field-1", "demo/cache", "--", "cat"); err != nil || out != input.String() {
		t.Errorf("cat gave %d of %d bytes back, %v", len(out), input.Len(), err)
	}
}

// terminal is a person at a keyboard: a shell on a pseudoterminal, its size and its end.
func terminal(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	ours, theirs, err := openTerminal()
	must(t, err)
	defer ours.Close()
	must(t, unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 101}))
	cmd, err := s.Lab.EdgectlCommand(ctx, "exec", "-it", "field-1", "demo/cache", "--", "/bin/sh")
	must(t, err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(t, cmd.Start())
	theirs.Close()
	screen := &screen{}
	go func() { _, _ = io.Copy(screen, ours) }() // ends with an error when the other side closes
	typed := func(text, want string) {
		t.Helper()
		must(t, lab.Until(ctx, "the terminal shows "+want, s.Wait, func(context.Context) error {
			if _, err := ours.WriteString(text); err != nil {
				return err
			}
			return lab.Until(ctx, "it answers", 2*time.Second, func(context.Context) error {
				if got := screen.String(); !strings.Contains(got, want) {
					return fmt.Errorf("it shows %q", got)
				}
				return nil
			})
		}))
	}
	typed("busybox stty size\r", "33 101")
	must(t, unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}))
	typed("busybox stty size\r", "40 120")
	typed("busybox tty\r", "/dev/pts/")
	_, err = ours.WriteString("exit 5\r")
	must(t, err)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("exit 5 of the shell came back as %v; the screen: %q", err, screen.String())
	}
}

// openTerminal makes a pseudoterminal (pts(4)).
func openTerminal() (ours, theirs *os.File, err error) {
	if ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	if err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	return ours, theirs, err
}

func forwarded(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	cmd, err := s.Lab.EdgectlCommand(ctx, "port-forward", "field-1", "demo/web", ":8080")
	must(t, err)
	lines, end := follow(t, cmd)
	defer end()
	var address string
	select {
	case line := <-lines: // "forwarding 127.0.0.1:43210 to …"
		if f := strings.Fields(line); len(f) > 1 {
			address = f[1]
		}
	case <-time.After(s.Wait):
		t.Fatal("port-forward says nothing")
	}
	for range 3 { // each connection is a stream of its own
		out, err := s.Lab.CoreCommand(ctx, "curl", "-sSf", "--max-time", "120", "http://"+address+"/")
		if err != nil || !strings.Contains(out, "Tributary demo, version 2") {
			t.Errorf("through %s: %q, %v", address, out, err)
		}
	}
}

func top(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	for box, want := range map[string]string{"field-1": "demo/web", "agg-1": "shell/box", "access-1": "load "} {
		out, err := s.Lab.Edgectl(ctx, "", "top", box, "--once")
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("top %s: %q, %v", box, out, err)
		}
	}
}

// audited waits until the core shows who did what.
func audited(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	for _, want := range []struct{ box, name, subject, message string }{
		{"field-1", "logs.opened", "demo/web", ""}, {"field-1", "exec.opened", "demo/cache", "redis-cli ping"},
		{"field-1", "exec.closed", "demo/cache", "exit 7"}, {"field-1", "forward.opened", "demo/web", "port 8080"},
		{"field-1", "top.opened", "", ""}, {"agg-1", "exec.opened", "shell/box", "hostname"}, {"agg-1", "top.closed", "", ""},
	} {
		if err := happened(ctx, s, want.box, want.name+" is audited", func(e event) bool {
			return e.Audit && e.Event.Name == want.name && e.Event.Subject == want.subject && e.Event.Actor == "admin" && strings.Contains(e.Event.Message, want.message)
		}); err != nil {
			t.Error(err)
		}
	}
	out, err := s.Lab.Edgectl(ctx, "", "events", "field-1")
	if err != nil || !strings.Contains(out, "exec.opened") || !strings.Contains(out, "redis-cli ping") {
		t.Errorf("events: %q, %v", out, err)
	}
}

// cutOff holds the time until a person hears that nobody answers.
func cutOff(ctx context.Context, t *testing.T, s *story.Story) {
	t.Helper()
	box := s.Lab.Boxes["field-2"]
	const patience = time.Minute // ten seconds, and a busy machine
	unanswered := func(how string) {
		began := time.Now()
		_, err := s.Lab.Edgectl(ctx, "", "exec", "field-2", "shell/box", "--", "true")
		took := time.Since(began)
		if err == nil || took > patience || !strings.Contains(err.Error(), "→") ||
			!strings.Contains(err.Error(), "did not answer") && !strings.Contains(err.Error(), "not reachable") {
			t.Errorf("%s: after %s: %v", how, took.Round(time.Millisecond), err)
		}
		t.Logf("%s: after %s: %v", how, took.Round(time.Millisecond), err)
	}
	box.KillEdged() // its parent sees the connection end
	must(t, lab.Until(ctx, "the core sees that field-2 is gone", s.Wait, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err == nil && devices["field-2"].Status.Online {
			err = errors.New("it is still online")
		}
		return err
	}))
	s.Say("the core sees that field-2 is gone")
	unanswered("edged is dead")
	must(t, box.StartEdged(ctx))
	must(t, online(ctx, s, "field-2"))
	s.Say("field-2 is back")
	must(t, box.Uplink.Cut(ctx)) // no end of a connection is seen
	unanswered("the link is cut")
	must(t, box.Uplink.Heal(ctx))
}

// screen collects what a terminal shows.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}
