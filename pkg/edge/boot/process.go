package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/boot/slack"
)

// processes starts programs and is the one place that waits for children: as process 1 it
// also reaps the orphans that others leave behind. (os/exec would race with that.)
type processes struct {
	mu   sync.Mutex
	live map[int]chan syscall.WaitStatus
}

func newProcesses() *processes { return &processes{live: map[int]chan syscall.WaitStatus{}} }

// process is a child that was started here.
type process struct {
	pid  int
	done <-chan syscall.WaitStatus // one value, when it has ended
}

// start runs argv with the three files, and env beside what every program gets. cgroup is a
// folder of the unified hierarchy, or empty. The child is a session of its own.
func (p *processes) start(argv []string, files [3]*os.File, cgroup string, env ...string) (*process, error) {
	path, err := lookPath(argv[0])
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Env: append(slices.Clone(environment), env...), Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	p.mu.Lock() // the child must be known before anyone can wait for it
	defer p.mu.Unlock()
	pid := 0
	err = slack.Usual(func() (err error) { // not this process's own, which containers would inherit
		pid, err = syscall.ForkExec(path, argv, attr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	done := make(chan syscall.WaitStatus, 1)
	p.live[pid] = done
	return &process{pid: pid, done: done}, nil
}

// reap takes in all children that have ended; to be called on SIGCHLD.
func (p *processes) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if done, ok := p.live[pid]; ok {
			done <- ws
			delete(p.live, pid)
		}
	}
}

// maxOutput is how much of a helper's output is kept: its end.
const maxOutput = 16 << 10

// run runs a helper to its end. Its output is in the error when it fails. A helper that
// outlives ctx is killed.
func (p *processes) run(ctx context.Context, stdin []byte, argv ...string) (out string, code int, err error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return "", -1, err
	}
	defer null.Close()
	in := null
	if stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return "", -1, err
		}
		defer r.Close()
		if len(stdin) > 32<<10 {
			return "", -1, errors.New("more input than a pipe holds")
		}
		_, err = w.Write(stdin)
		if err = errors.Join(err, w.Close()); err != nil {
			return "", -1, err
		}
		in = r
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", -1, err
	}
	defer r.Close()
	child, err := p.start(argv, [3]*os.File{in, w, w}, "")
	w.Close()
	if err != nil {
		return "", -1, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(child.pid, syscall.SIGKILL) })
	defer stop()
	var text tail
	_, _ = io.Copy(&text, r) // ends with the program
	ws := <-child.done
	out = strings.TrimSpace(string(text.b))
	code = ws.ExitStatus()
	if ws.Signaled() {
		return out, -1, fmt.Errorf("%s: ended by signal %v %s", argv[0], ws.Signal(), out)
	}
	if code != 0 {
		return out, code, fmt.Errorf("%s: exit status %d: %s", strings.Join(argv[:min(2, len(argv))], " "), code, out)
	}
	return out, 0, nil
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > maxOutput {
		t.b = bytes.Clone(t.b[len(t.b)-maxOutput:])
	}
	return len(p), nil
}

// searchPath is where programs lie; nothing else is looked through.
var searchPath = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

var environment = []string{
	"PATH=" + strings.Join(searchPath, ":"), "HOME=/root", "TERM=linux",
	"DM_DISABLE_UDEV=1", // libdevmapper makes its nodes itself: nobody here answers it
}

func lookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range searchPath {
		p := filepath.Join(dir, name)
		if unix.Access(p, unix.X_OK) == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}
