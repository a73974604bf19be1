package machines

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/vm"
)

// consolePort is where edged-console serves the machine's host.
const consolePort = 9040

// hostConsole is the console of a machine as its host sees it over vsock.
type hostConsole struct {
	conn net.Conn
	seen bytes.Buffer
	all  bytes.Buffer
}

// dialConsole waits for the console to be there.
func dialConsole(t *testing.T, ctx context.Context, m *vm.Machine) *hostConsole {
	t.Helper()
	var conn net.Conn
	err := lab.Until(ctx, "the console is there", patience, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		conn, err = m.DialVSock(ctx, consolePort)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &hostConsole{conn: conn}
}

// say types text and waits for what matches pattern.
func (c *hostConsole) say(t *testing.T, text, pattern string) string {
	t.Helper()
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.conn, text); err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(pattern)
	b := make([]byte, 4096)
	for {
		if at := re.FindIndex(c.seen.Bytes()); at != nil {
			return string(c.seen.Next(at[1]))
		}
		n, err := c.conn.Read(b)
		c.seen.Write(b[:n])
		c.all.Write(b[:n])
		if err != nil {
			t.Fatalf("waiting for %q: %v; what came: %q", pattern, err, c.seen.String())
		}
	}
}

// TestConsoleByVSock drives the console of a flashed machine from its host, over vsock: plain
// and drawn, beside whoever is at its serial line; and it is there again after a restart.
func TestConsoleByVSock(t *testing.T) {
	spec := flashed(t, "amd64", "name: box\nnetwork: {uplinks: [{addresses: [10.77.0.1/24]}]}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	spec.VSock, spec.Life = true, 3*patience
	m := power(t, ctx, spec)
	expect(t, ctx, m, up)
	c := dialConsole(t, ctx, m)
	first := c.say(t, "\r", `s for the drawn screen: `)
	if strings.ContainsRune(first, 0x1b) || !strings.Contains(first, "Tributary: box") {
		t.Errorf("the menu: %q", first)
	}
	c.say(t, "box\r", `Slot +A[\s\S]*go back: `)
	c.say(t, "\r", `drawn screen: `)
	c.say(t, "s\r", `\x1b\[6n`)
	c.say(t, "\x1b[24;80R", `\x1b\[\?1049h[\s\S]*What this box is`)
	second := dialConsole(t, ctx, m) // two people at once
	second.say(t, "\r", `drawn screen: `)
	if _, err := m.DialVSock(ctx, consolePort+1); err == nil {
		t.Error("another port answers: what was reached may not be the console")
	}
	c.say(t, "p", `drawn screen: `)
	c.say(t, "power\r", `1  Start the box anew[\s\S]*go back: `)
	c.say(t, "1\r", `Type "reboot" to go on: `)
	c.say(t, "reboot\r", `good order`)
	keepCapture(t, "console-vsock.txt", c.all.String())
	for {
		if _, err := c.conn.Read(make([]byte, 64)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection outlives the system that it led to")
			}
			break
		}
	}
	expect(t, ctx, m, up)
	dialConsole(t, ctx, m).say(t, "\r", `drawn screen: `)
	if bad := failures(m); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
}
