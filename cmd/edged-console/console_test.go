package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/recovery"
	"tributary.dev/tributary/pkg/edge/uplink"
	"tributary.dev/tributary/pkg/edge/uplink/wifi"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/tests/mutation"
)

// patience is for a busy machine.
const patience = 90 * time.Second

// terminal is the far end of a pseudo terminal, and what has come over it.
type terminal struct {
	t    *testing.T
	pty  *os.File
	path string
	mu   sync.Mutex
	seen bytes.Buffer
	more chan struct{}
}

func newTerminal(t *testing.T, width, height uint16) *terminal {
	t.Helper()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo terminals: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(int(pty.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		t.Fatal(err)
	}
	// Fd leaves the file blocking, which a poll could not end: open it anew by number.
	fd, err := unix.Dup(int(pty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	pty.Close()
	pty = os.NewFile(uintptr(fd), "ptmx")
	term := &terminal{t: t, pty: pty, path: fmt.Sprintf("/dev/pts/%d", n), more: make(chan struct{}, 1)}
	// A terminal on which nobody has a file open hangs up.
	hold, err := os.OpenFile(term.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo terminals: %v", err)
	}
	t.Cleanup(func() {
		pty.Close()
		hold.Close()
	})
	go term.read(pty)
	return term
}

func (x *terminal) read(r io.Reader) {
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		x.mu.Lock()
		x.seen.Write(b[:n])
		x.mu.Unlock()
		select {
		case x.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// expect waits for text, and forgets all that came up to it.
func (x *terminal) expect(text string) string {
	x.t.Helper()
	deadline := time.After(patience)
	for {
		x.mu.Lock()
		before, _, found := bytes.Cut(x.seen.Bytes(), []byte(text))
		if found {
			out := string(before)
			x.seen.Next(len(before) + len(text))
			x.mu.Unlock()
			return out
		}
		all := x.seen.String()
		x.mu.Unlock()
		select {
		case <-x.more:
		case <-deadline:
			x.t.Fatalf("%q did not come; what came: %q", text, all)
		}
	}
}

func (x *terminal) send(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.pty, text); err != nil {
		x.t.Fatal(err)
	}
}

// begin runs the program until the test ends.
func begin(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, args, nil, nil, io.Discard) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("edged-console %v: %v", args, err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
}

// TestSerial drives the console by script over a line that nobody knows to draw: plain
// first, no escape, then drawn, then plain again.
func TestSerial(t *testing.T) {
	x := newTerminal(t, 0, 0)
	begin(t, "--tty", x.path, "--root", t.TempDir())
	x.expect("Press Enter for the console.")
	x.send("\r")
	menu := x.expect("s for the drawn screen: ")
	if !strings.Contains(menu, "Slots and history") || strings.ContainsRune(menu, 0x1b) {
		t.Errorf("%q", menu)
	}
	x.send("2\r")
	x.expect("agent-silent")
	x.expect("not known")
	x.expect("Enter to go back: ")
	x.send("\r")
	x.expect("drawn screen: ")
	x.send("power\r")
	x.expect("3  Factory reset")
	x.send("3\r")
	x.expect(`Type "erase (no name)" to go on: `)
	x.send("erase\r")
	x.expect("Nothing was done.")
	x.send("\r")
	x.expect("drawn screen: ")
	x.send("s\r")
	x.expect("\x1b[6n")
	x.send("\x1b[12;40R") // the terminal says: 12 lines of 40
	x.expect("\x1b[?1049h")
	x.expect("What this box is")
	x.send("p")
	x.expect("s for the drawn screen: ")
	x.send("\x04") // end of transmission
}

// TestScreenTerminal: a terminal that says its size and kind is drawn on at once, and left
// by q.
func TestScreenTerminal(t *testing.T) {
	x := newTerminal(t, 80, 24)
	f, err := os.OpenFile(x.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("TERM", "xterm-256color")
	root := t.TempDir()
	ended := make(chan error, 1)
	go func() { ended <- run(t.Context(), []string{"--stdio", "--root", root}, f, f, io.Discard) }()
	x.expect("\x1b[?1049h")
	x.expect("power")
	x.send("\x1b[B") // the down key
	x.expect("agent-silent")
	x.send("q")
	x.expect("\x1b[?1049l")
	wait(t, ended)
}

// TestDumbTerminal: TERM=dumb gets no escape code at all.
func TestDumbTerminal(t *testing.T) {
	x := newTerminal(t, 80, 24)
	f, err := os.OpenFile(x.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("TERM", "dumb")
	root := t.TempDir()
	ended := make(chan error, 1)
	go func() { ended <- run(t.Context(), []string{"--stdio", "--root", root}, f, f, io.Discard) }()
	text := x.expect("Enter to look again: ")
	x.send("health\r")
	text += x.expect("Enter to go back: ")
	if strings.ContainsRune(text, 0x1b) {
		t.Errorf("an escape code: %q", text)
	}
	x.send("\x04")
	wait(t, ended)
}

func wait(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

// dial waits for the socket to be there.
func dial(t *testing.T, path string) *stream.Conn {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err == nil {
			return stream.NewConn(c, stream.Idle)
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// far joins a stream with a terminal's script.
func far(t *testing.T, c *stream.Conn, size stream.Size) (*terminal, io.Writer, <-chan error) {
	t.Helper()
	if err := c.Resize(size); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	inR, inW := io.Pipe()
	x := &terminal{t: t, more: make(chan struct{}, 1)}
	go x.read(r)
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Run(t.Context(), c, stream.Local{Stdin: inR, Stdout: w})
		w.Close()
		ended <- err
	}()
	return x, inW, ended
}

func TestSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "con") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "console.sock")
	begin(t, "--serve", "--vsock", "0", "--socket", path, "--root", dir)
	drawn := dial(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	x, in, ended := far(t, drawn, stream.Size{Columns: 80, Rows: 24})
	x.expect("\x1b[?1049h")
	x.expect("power")
	if _, err := io.WriteString(in, "q"); err != nil {
		t.Fatal(err)
	}
	wait(t, ended)

	x, in, ended = far(t, dial(t, path), stream.Size{})
	if text := x.expect("Enter to look again: "); strings.ContainsRune(text, 0x1b) {
		t.Errorf("an escape code: %q", text)
	}
	if _, err := io.WriteString(in, "\x04"); err != nil {
		t.Fatal(err)
	}
	wait(t, ended)
}

// TestOnlyTheHost: what a container can be on vsock is refused, whichever number it has.
func TestOnlyTheHost(t *testing.T) {
	for cid, want := range map[uint32]bool{vsock.Host: true, vsock.Local: false, vsock.Hypervisor: false, 3: false, 77: false, 0xffffffff: false} {
		if fromHost(&vsock.Addr{ContextID: cid, Port: 9040}) != want {
			t.Errorf("CID %d: %v", cid, !want)
		}
	}
	if fromHost(&net.TCPAddr{}) {
		t.Error("an address of another family passes")
	}
}

// TestAirWords: what the keeper of the uplinks writes about a wireless network, the console
// has words for.
func TestAirWords(t *testing.T) {
	for state, words := range map[wifi.State]string{wifi.Joined: "in the network", wifi.Refused: "refuses", wifi.Absent: "not heard", wifi.Looking: "looks for"} {
		text, err := json.Marshal(uplink.Status{Name: "wlan0", WiFi: &uplink.WiFi{SSID: "site", State: state}})
		if err != nil {
			t.Fatal(err)
		}
		var u recovery.Uplink
		if err := json.Unmarshal(text, &u); err != nil {
			t.Fatal(err)
		}
		shown := fmt.Sprint(recovery.Pages(recovery.Facts{Uplinks: []recovery.Uplink{u}}))
		if !strings.Contains(shown, words) {
			t.Errorf("%s: %q is not shown", state, words)
		}
	}
}

// TestHostCheckCounts: with the check removed TestOnlyTheHost fails.
func TestHostCheckCounts(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "who calls over vsock", Test: "^TestOnlyTheHost$", File: "serve.go", From: "return ok && v.ContextID == vsock.Host", To: "return ok && (v.ContextID == vsock.Host || GONE)"})
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"--tty", "/dev/x", "--stdio"}, {"--stdio", "more"}, {"--nothing"}} {
		if _, err := parse(args, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
