package workload

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/network"
)

// Size is a terminal's size in characters.
type Size struct{ Width, Height uint16 }

// ExecRequest runs a program in a service's container. Nil streams are empty or
// discarded. With TTY, Stderr is unused and Resize may change the size.
type ExecRequest struct {
	App, Service   string
	Argv           []string
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size
}

// serving finds the container that a person means by app and service.
func (m *Manager) serving(app, service string) (*tracked, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.instances[m.active[serviceKey{app, service}]]
	if t == nil {
		return nil, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("service %s/%s has no container", app, service), Remedy: "see `edgectl describe device` for its apps and services"}
	}
	return t, nil
}

// Exec runs a program in a container and waits for it. err tells that it could not
// be run or waited for; a program's own failure is its exit code.
func (m *Manager) Exec(ctx context.Context, r ExecRequest) (exit int, err error) {
	t, err := m.serving(r.App, r.Service)
	if err != nil {
		return 0, err
	}
	if t.in.Phase != phaseRunning {
		return 0, &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("service %s/%s does not run", r.App, r.Service), Remedy: "see its logs for the reason"}
	}
	exit, err = m.exec(namespaces.WithNamespace(ctx, m.cfg.Namespace), t.in.ID, r)
	return explainExec(r, exit, err)
}

// The exit codes by which shells tell that a program did not even start.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// explainExec says in our words why a program did not run. One that is not there or may
// not be run ends as it would in a shell, with a line on its standard error.
func explainExec(r ExecRequest, exit int, err error) (int, error) {
	if err == nil || len(r.Argv) == 0 {
		return exit, err
	}
	to := orDiscard(r.Stderr)
	if r.TTY {
		to = orDiscard(r.Stdout)
	}
	switch text := err.Error(); {
	case errdefs.IsUnavailable(err), errdefs.IsUnavailable(errgrpc.ToNative(err)):
		return 0, &api.Error{Code: api.Unavailable, Message: "containerd on the device does not answer", Remedy: "try again in a minute; apps go on meanwhile, and `edgectl describe device` shows the device's warnings", Err: err}
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "exec:") && strings.Contains(text, "no such file or directory"):
		fmt.Fprintf(to, "%s: not found\n", r.Argv[0])
		return exitNotFound, nil
	case strings.Contains(text, "exec:") && (strings.Contains(text, "permission denied") || strings.Contains(text, "exec format error")):
		fmt.Fprintf(to, "%s: cannot be run\n", r.Argv[0])
		return exitNotRunnable, nil
	}
	return exit, err
}

func (m *Manager) exec(ctx context.Context, id string, r ExecRequest) (int, error) {
	if len(r.Argv) == 0 {
		return 0, api.Errorf(api.Invalid, "no program was named")
	}
	c, err := m.client.LoadContainer(ctx, id)
	if err != nil {
		return 0, err
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return 0, err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return 0, err
	}
	proc := spec.Process
	proc.Args, proc.Terminal = r.Argv, r.TTY
	if r.TTY {
		proc.Env = append(proc.Env, "TERM=xterm-256color")
	}
	stdin := &endingReader{r: r.Stdin, end: make(chan struct{})}
	var in io.Reader
	if r.Stdin != nil {
		in = stdin
	}
	opts := []cio.Opt{cio.WithFIFODir(filepath.Join(m.cfg.Run, "fifo")), cio.WithStreams(in, orDiscard(r.Stdout), orDiscard(r.Stderr))}
	if r.TTY {
		opts = append(opts, cio.WithTerminal)
	}
	p, err := task.Exec(ctx, "exec-"+randomName(), proc, cio.NewCreator(opts...))
	if err != nil {
		return 0, err
	}
	// Whatever happens, the process goes; also when the caller went away.
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, _ = p.Delete(clean, containerd.WithProcessKill)
	}()
	done, err := p.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if err := p.Start(ctx); err != nil {
		return 0, err
	}
	if r.Stdin == nil {
		close(stdin.end)
	}
	ended := stdin.end
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-ended:
			// The shim holds the pipe open, too; only this lets the program see the end.
			ended = nil
			_ = p.CloseIO(ctx, containerd.WithStdinCloser)
		case size, ok := <-r.Resize:
			if !ok {
				r.Resize = nil
				continue
			}
			_ = p.Resize(ctx, uint32(size.Width), uint32(size.Height))
		case status := <-done:
			p.IO().Wait()
			code, _, err := status.Result()
			return int(code), err
		}
	}
}

// endingReader tells when its reader has ended.
type endingReader struct {
	r    io.Reader
	once sync.Once
	end  chan struct{}
}

func (e *endingReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if err != nil {
		e.once.Do(func() { close(e.end) })
	}
	return n, err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// Dial connects to a TCP port inside a service's container, as if from its own
// loopback, so that it need not be published.
func (m *Manager) Dial(ctx context.Context, app, service string, port int) (net.Conn, error) {
	t, err := m.serving(app, service)
	if err != nil {
		return nil, err
	}
	if port < 1 || port > 65535 {
		return nil, api.Errorf(api.Invalid, "%d is not a port", port)
	}
	var d net.Dialer
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	ns := ""
	switch {
	case t.svc.NetworkMode == "host":
		return d.DialContext(ctx, "tcp", addr)
	case t.svc.NetworkMode == "none":
		pid, err := m.pid(ctx, t.in.ID)
		if err != nil {
			return nil, err
		}
		ns = fmt.Sprintf("/proc/%d/ns/net", pid)
	default:
		ns = m.net.Namespace(t.in.ID)
	}
	var conn net.Conn
	err = network.Enter(ns, func() error {
		conn, err = d.DialContext(ctx, "tcp", addr)
		if err != nil && len(t.addrs) > 0 { // it may listen on its own address alone
			conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(t.addrs[0].String(), strconv.Itoa(port)))
		}
		return err
	})
	return conn, err
}

func (m *Manager) pid(ctx context.Context, id string) (int, error) {
	ctx = namespaces.WithNamespace(ctx, m.cfg.Namespace)
	got, err := m.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return 0, errgrpc.ToNative(err)
	}
	return int(got.Process.Pid), nil
}

// Process is one process of a container.
type Process struct {
	PID     int    `json:"pid"` // on the host
	Command string `json:"command"`
	// RSSBytes is resident memory; CPU is time since the process started.
	RSSBytes uint64        `json:"rssBytes"`
	CPU      time.Duration `json:"cpu"`
}

// TopRow is one container at this moment. Rates are for the reader to work out
// from two calls.
type TopRow struct {
	App       string        `json:"app"`
	Service   string        `json:"service"`
	Container string        `json:"container"`
	Reading   meter.Reading `json:"reading"`
	Processes []Process     `json:"processes"`
}

// Top reads what the running containers use now.
func (m *Manager) Top(ctx context.Context, read meter.Reader) ([]TopRow, error) {
	ctx = namespaces.WithNamespace(ctx, m.cfg.Namespace)
	var out []TopRow
	for _, t := range m.Targets() {
		if !t.Ended.IsZero() {
			continue
		}
		id, _, _ := strings.Cut(t.ID, "#")
		row := TopRow{App: t.App, Service: t.Service, Container: id}
		var err error
		if row.Reading, err = read.Read(t); err != nil {
			return nil, err
		}
		pids, err := m.client.TaskService().ListPids(ctx, &tasks.ListPidsRequest{ContainerID: id})
		if err != nil {
			continue // it ended in between
		}
		for _, p := range pids.Processes {
			if proc, ok := readProcess(int(p.Pid)); ok {
				row.Processes = append(row.Processes, proc)
			}
		}
		out = append(out, row)
	}
	return out, nil
}

func readProcess(pid int) (Process, bool) {
	p := Process{PID: pid}
	dir := "/proc/" + strconv.Itoa(pid)
	cmd, err := readBounded(dir+"/cmdline", 4096)
	if err != nil {
		return p, false
	}
	p.Command = strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
	stat, err := readBounded(dir+"/stat", 4096)
	if err != nil {
		return p, false
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) > 21 { // proc(5): fields 14, 15 (ticks) and 24 (pages)
		user, _ := strconv.ParseInt(f[11], 10, 64)
		system, _ := strconv.ParseInt(f[12], 10, 64)
		pages, _ := strconv.ParseUint(f[21], 10, 64)
		p.CPU = time.Duration(user+system) * 10 * time.Millisecond
		p.RSSBytes = pages * uint64(os.Getpagesize())
	}
	return p, true
}
