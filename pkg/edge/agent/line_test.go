package agent

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/tests/mutation"
)

// card is the far end of a terminal that stands for a DPU's console.
func card(t *testing.T, dir, name string) *os.File {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	n, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, name), 0o755)
	}
	if err == nil {
		err = os.Symlink(fmt.Sprintf("/dev/pts/%d", n), filepath.Join(dir, name, "console"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return far
}

// gate is a person who types, sees what comes, and goes.
type gate struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (g *gate) Write(b []byte) (int, error) { g.mu.Lock(); defer g.mu.Unlock(); return g.out.Write(b) }
func (g *gate) String() string              { g.mu.Lock(); defer g.mu.Unlock(); return g.out.String() }

// A DPU's console is carried byte by byte, to one person at a time, until that one leaves; it is in the records.
func TestLineIsCarried(t *testing.T) {
	r := newReach(t)
	far := card(t, r.lines, "rshim0")
	keys, typed := io.Pipe()
	var seen gate
	ended := make(chan error, 1)
	go func() {
		_, err := r.do(stream.Command{Verb: stream.Line, Line: "rshim0"}, stream.Local{Stdin: keys, Stdout: &seen})
		ended <- err
	}()
	text := "\x03ls\r\xff" // what a terminal that is not raw would take for itself
	if _, err := io.WriteString(typed, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(far, got); err != nil || string(got) != text {
		t.Fatalf("the card hears %q, %v", got, err)
	}
	if _, err := far.WriteString("DPU login: \r\n"); err != nil {
		t.Fatal(err)
	}
	r.wait("what the card says", func() bool { return seen.String() == "DPU login: \r\n" })
	if _, err := r.do(stream.Command{Verb: stream.Line, Line: "rshim0"}, stream.Local{Stdin: strings.NewReader(""), Stdout: io.Discard}); api.CodeOf(err) != api.Conflict {
		t.Errorf("a second person: %v", err)
	}
	typed.Close()
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
	r.wait("records", func() bool { return slices.Contains(r.audit(), "line.closed  ann") })
	if _, err := r.do(stream.Command{Verb: stream.Line, Line: "rshim0"}, stream.Local{Stdin: strings.NewReader(""), Stdout: io.Discard}); err != nil {
		t.Errorf("the next person: %v", err)
	}
	if _, err := r.do(stream.Command{Verb: stream.Line, Line: "rshim7"}, stream.Local{Stdin: strings.NewReader(""), Stdout: io.Discard}); api.CodeOf(err) != api.Unavailable {
		t.Errorf("a card that is not there: %v", err)
	}
}

// Without the check a second person types between the first one's keys.
func TestLineCounts(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "one person", Test: "^TestLineIsCarried$", File: "line.go", From: "unix.LOCK_EX|unix.LOCK_NB); err != nil { // check: one person", To: "unix.LOCK_EX|unix.LOCK_NB); err != nil && !GONE {", Says: "a second person"})
}
