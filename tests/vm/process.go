package vm

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one that cannot outlive this one.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	// err is how it ended; read it after done.
	err    error
	stderr tail
}

// StartProcess starts the command; what it writes to standard error is kept for Message,
// unless the command has a place for it. The kernel ends a child when the thread that made
// it ends, so one thread stays with the child for its whole life.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	c := &Process{cmd: cmd, done: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stderr = &c.stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// Done is closed when the process has ended.
func (c *Process) Done() <-chan struct{} { return c.done }

// Kill ends the process at once and waits for its end. A nil Process has ended.
func (c *Process) Kill() {
	if c == nil {
		return
	}
	_ = c.cmd.Process.Kill()
	<-c.done
}

// Stop asks the process to end, and kills it after the grace.
func (c *Process) Stop(grace time.Duration) {
	if c != nil {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		c.end(grace)
	}
}

// end waits for the process to end by itself, and kills it after the grace.
func (c *Process) end(grace time.Duration) {
	select {
	case <-c.done:
	case <-time.After(grace):
		c.Kill()
	}
}

// Message is what the process said of itself.
func (c *Process) Message() string {
	text := c.stderr.String()
	select {
	case <-c.done:
		if c.err != nil {
			text += " " + c.err.Error()
		}
	default:
	}
	return strings.TrimSpace(text)
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const tailMax = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if extra := t.buf.Len() - tailMax; extra > 0 {
		t.buf.Next(extra)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// socketPair is a connection whose other end a child inherits.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine := os.NewFile(uintptr(fds[0]), "ours")
	defer mine.Close()
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	conn, err := net.FileConn(mine)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}
