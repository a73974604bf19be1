package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/rescue"
	"tributary.dev/tributary/pkg/edge/recovery/owner"
	"tributary.dev/tributary/pkg/edge/recovery/presence"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/unlock"
	waiting "tributary.dev/tributary/tests/wait"
)

// site is a core and a box that it owns, whose state is closed: the box has what is kept
// outside of it.
type site struct {
	root   string
	device api.DeviceID
	ca     *ca.CA
	desk   *rescue.Desk
	noted  []api.Event
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{root: t.TempDir(), device: api.DeviceID{1, 2, 3}}
	var err error
	if s.ca, err = ca.Open(t.TempDir(), ca.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"run/tributary", "config", "efivars", "state", "proc"} {
		if err := os.MkdirAll(filepath.Join(s.root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.root, "run/tributary/slot"), []byte("a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, said, err := s.ca.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := unlock.Kept{Trust: s.ca.Trust().Encode(), Key: said, Device: s.device}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	root := identity.Fingerprint(s.ca.Trust().Root)
	box := newDesk(s.root, s.root, s.root, s.root, "").box
	if err := errors.Join(box.Outside.Write(kept), box.Anchor.Write(root[:])); err != nil {
		t.Fatal(err)
	}
	s.desk = rescue.New(rescue.Config{
		Keys: s.ca.UnlockKeys, Event: "device.unlock", Now: time.Now,
		Answered: func(_ context.Context, _ api.DeviceID, id string) (bool, error) {
			return strings.Contains(s.subjects(), id), nil
		},
		Note: func(_ context.Context, _ api.DeviceID, _ string, e api.Event) error {
			s.noted = append(s.noted, e)
			return nil
		},
	})
	return s
}

func (s *site) subjects() (out string) {
	for _, e := range s.noted {
		out += e.Subject + " "
	}
	return out
}

// processOne answers on the socket of process 1, and tells what it was asked.
func (s *site) processOne(t *testing.T) (asked func() string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(s.root, "run/tributary/init.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var mu sync.Mutex
	var all strings.Builder
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n') // who asks nothing is answered too
			mu.Lock()
			all.WriteString(line)
			mu.Unlock()
			_, _ = io.WriteString(c, "{}\n")
			c.Close()
		}
	}()
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}

var shown = regexp.MustCompile(`(?:[0-9A-HJKMNP-TV-Z]{4,5}\s+){15}`)

// TestUnlockOnTerminal plays it all on a serial line by script: the challenge is read off the
// screen, answered by the core, and typed; the shell is root's, on a terminal and in a session
// of its own; what it leaves behind is ended with it; the same answer opens nothing more.
func TestUnlockOnTerminal(t *testing.T) {
	s := newSite(t)
	asked := s.processOne(t)
	x := newTerminal(t, 0, 0)
	begin(t, "--tty", x.path, "--root", s.root)
	x.expect("Press Enter for the console.")
	x.send("\r")
	x.expect("drawn screen: ")
	x.send("shell\r")
	if page := x.expect("1  Show a challenge"); !strings.Contains(page, "Locked. There is no password") {
		t.Errorf("%q", page)
	}
	x.expect("go back: ")
	x.send("1\r")
	x.expect("Done.")
	page := x.expect("Challenge ")
	challenge := shown.FindString(page)
	if challenge == "" {
		t.Fatalf("no challenge on the page: %q", page)
	}
	x.expect("####") // the code
	x.expect("go back: ")
	a, err := s.desk.Answer(t.Context(), s.device, "box", challenge, "ann")
	if err != nil {
		t.Fatal(err)
	}
	if a.Proven {
		t.Error("a box with a closed state proves who it is")
	}
	answer := func(text string) {
		t.Helper()
		x.send("1\r")
		x.expect("do not count: ")
		x.send(text + "\r")
	}
	wrong := []byte(a.Text)
	if wrong[0], wrong[1] = wrong[1], wrong[0]; wrong[0] == wrong[1] {
		wrong[0] = map[bool]byte{true: '0', false: 'Z'}[wrong[0] == 'Z']
	}
	answer(string(wrong))
	x.expect("FAILED: mistyped")
	x.expect("go back: ")
	answer(unlock.Text(make([]byte, unlock.AnswerBytes), 6))
	x.expect("FAILED: that is not the answer")
	x.expect("go back: ")
	answer(strings.ToLower(strings.ReplaceAll(a.Text, "-", " ")))
	x.expect(`"exit" locks it again.`)
	if !strings.Contains(asked(), `"shut"`) {
		t.Errorf("the TPM is not shut before there is a shell: process 1 was asked %s", asked())
	}
	x.send("echo in as $(id -u) on $(tty); echo sid-$(cut -d' ' -f6 /proc/$$/stat); echo pid-$$\n")
	x.expect("pid-") // the echo of what was typed
	x.expect("in as ")
	in := x.expect("pid-")
	pid := strings.TrimSpace(x.expect("\n"))
	if !strings.Contains(in, "on /dev/pts/") || strings.Contains(in, x.path+"\r") {
		t.Errorf("the shell is on another's terminal: %q", in)
	}
	if !strings.Contains(in, "sid-"+pid+"\r") {
		t.Errorf("the shell, process %s, is in another's session: %q", pid, in)
	}
	x.send("sleep 1000 & echo left-$!\n")
	x.expect("left-")
	x.expect("left-") // the echo of what was typed came first
	left := strings.TrimSpace(x.expect("\n"))
	x.send("exit\n")
	x.expect("Locked.")
	x.expect("drawn screen: ")
	waiting.Seen(t, "what the shell left in the background is gone", func() (any, bool) {
		text, err := os.ReadFile("/proc/" + left + "/stat")
		return string(text), err != nil || strings.Contains(string(text), ") Z ")
	})
	// Single use: neither the answer nor the challenge is good for more.
	x.send("shell\r")
	x.expect("1  Show a challenge")
	x.expect("go back: ")
	if _, err := s.desk.Answer(t.Context(), s.device, "box", challenge, "ann"); api.CodeOf(err) != api.Conflict {
		t.Errorf("the core answers a challenge twice: %v", err)
	}
	x.send("1\r")
	x.expect("go back: ")
	answer(a.Text)
	x.expect("FAILED: that is not the answer")
	x.expect("go back: ")
	x.send("\r\x04")

	var told []string
	err = owner.Take(func(e owner.Entry) error {
		told = append(told, e.What)
		if e.What == "opened" && (e.Challenge != a.Challenge || e.Where == "") {
			t.Errorf("%+v", e)
		}
		return nil
	}, filepath.Join(s.root, "state"))
	if got := strings.Join(told, " "); err != nil || got != "challenge refused opened closed challenge refused" {
		t.Errorf("the box tells: %s, %v", got, err)
	}
}

// TestUnlockDrawn: on a drawn screen the code is there, and the shell takes the terminal over
// and gives it back.
func TestUnlockDrawn(t *testing.T) {
	s := newSite(t)
	x := newTerminal(t, 80, 24)
	f, err := os.OpenFile(x.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("TERM", "xterm")
	ended := make(chan error, 1)
	go func() { ended <- run(t.Context(), []string{"--stdio", "--root", s.root}, f, f, os.Stderr) }()
	x.expect("\x1b[?1049h")
	x.expect("power")
	x.send("\x1b[A\x1b[A") // up twice from the first page
	x.expect("Show a challenge")
	x.send("1")
	x.expect("Done.")
	x.send("\r")
	x.expect("Type the answer")
	// What is drawn comes in pieces; the box's own word for what stands is plainer to read.
	x.send("p")
	x.expect("drawn screen: ")
	x.send("shell\r")
	page := x.expect("Challenge ")
	x.expect("q to stop)")
	x.send("q\r")
	x.expect("go back: ")
	a, err := s.desk.Answer(t.Context(), s.device, "box", shown.FindString(page), "ann")
	if err != nil {
		t.Fatalf("%v: %q", err, page)
	}
	x.send("\r")
	x.expect("drawn screen: ")
	x.send("s\r")
	x.expect("\x1b[?1049h")
	x.expect("power")
	x.send("\x1b[A\x1b[A")
	x.expect("Type the answer")
	x.send("1")
	x.expect("18 characters")
	x.send(a.Text + "\r")
	x.expect("locks it again.")
	x.send("stty size; exit\n")
	x.expect("24 80")
	x.expect("Locked.")
	x.expect("\x1b[?1049h")
	x.expect("power")
	x.send("q")
	wait(t, ended)
}

// TestShellEndsInTime: a shell that a person forgot is ended, and so is one whose line is
// gone.
func TestShellEndsInTime(t *testing.T) {
	for name, end := range map[string]func(*terminal, context.CancelFunc){
		"time": func(*terminal, context.CancelFunc) {},
		"line": func(_ *terminal, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			x := newTerminal(t, 80, 24)
			f, err := os.OpenFile(x.path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			most := time.Hour
			if name == "time" {
				most = 2 * time.Second
			}
			ended := make(chan error, 1)
			go func() {
				ended <- shell(ctx, line{in: newPump(f), out: f, size: func() (int, int) { return 80, 24 }}, []string{"/bin/sh", "-c", "trap '' HUP TERM INT; echo begun; while :; do sleep 1; done"}, most)
			}()
			if name == "line" { // in two seconds a busy machine may not begin
				x.expect("begun")
			}
			end(x, cancel)
			wait(t, ended)
			x.expect("Locked.")
		})
	}
}

// TestNoShellElsewhere: on a machine that is no appliance the console opens nothing.
func TestNoShellElsewhere(t *testing.T) {
	box := appliance(t.TempDir(), "here")
	if box.Desk != nil {
		t.Error("there is a desk")
	}
	if err := box.Do(t.Context(), "shell-challenge", nil, func(string) {}); err == nil {
		t.Error("a challenge is made")
	}
	if err := box.Do(t.Context(), "shell-answer", nil, func(string) {}); err == nil {
		t.Error("an answer is taken")
	}
}

// TestButton: where the profile says so, the power button opens the shell, for a person at a
// terminal of the box and for nobody who comes over a socket.
func TestButton(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.root, "usr/lib/tributary")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "profile.json"), []byte(`{"physicalPresence":{"proof":["button"],"shell":true,"window":60}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{bySocket, byVsock} {
		if box := appliance(s.root, where); box.Desk.Look().Button || box.Desk.Press(t.Context(), func(string) {}) == nil {
			t.Errorf("by %s the button is an answer", where)
		}
	}
	x := newTerminal(t, 0, 0)
	begin(t, "--tty", x.path, "--root", s.root)
	x.expect("Press Enter for the console.")
	x.send("\r")
	x.expect("drawn screen: ")
	x.send("shell\r")
	x.expect("2  Open by the power button")
	x.expect("go back: ")
	x.send("2\r")
	x.expect("Press the box's power button")
	waiting.Until(t, "somebody asks for the button", func() bool { return presence.Pressed(filepath.Join(s.root, "run/tributary"), bootTime()) })
	x.expect("locks it again.")
	x.send("exit\n")
	x.expect("Locked.")
	x.expect("drawn screen: ")
	x.send("\x04")
}
