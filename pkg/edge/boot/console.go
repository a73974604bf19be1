package boot

import (
	"context"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// consoles are where boot's lines go: each console of the kernel, and the kernel's ring for
// whoever asks later. A line never waits for a terminal that takes nothing.
type consoles struct {
	mu      sync.Mutex
	fds     []int
	ring    *os.File
	verbose bool // children's logs too
	quiet   bool // the recovery shell has the terminals now
}

func (b *booter) openConsoles(context.Context) error {
	text, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return err
	}
	// The kernel drops lines of a busy writer otherwise (printk.devkmsg).
	_ = os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0) // some kernels fix it on the command line
	ring, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	b.out.mu.Lock()
	defer b.out.mu.Unlock()
	b.out.ring = ring
	for _, name := range strings.Fields(string(text)) {
		if fd, err := unix.Open("/dev/"+name, unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			b.out.fds = append(b.out.fds, fd)
		}
	}
	return err
}

func (c *consoles) print(text string) {
	text = strings.TrimRight(text, "\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ring != nil {
		// Level 6, informational: a kernel that is told to be quiet does not print it a
		// second time.
		_, _ = c.ring.WriteString("<6>edged: " + strings.ReplaceAll(text, "\n", "; ") + "\n")
	}
	if c.quiet {
		return
	}
	for _, fd := range c.fds {
		_, _ = unix.Write(fd, []byte(strings.ReplaceAll(text, "\n", "\r\n")+"\r\n"))
	}
}

// Write takes whole lines, of a slog handler.
func (c *consoles) Write(line []byte) (int, error) {
	c.print(string(line))
	return len(line), nil
}

func (c *consoles) hush(quiet bool) {
	c.mu.Lock()
	c.quiet = quiet
	c.mu.Unlock()
}
