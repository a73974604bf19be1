package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot/appear"
)

// child is a program that process 1 keeps running.
type child struct {
	name string
	argv []string
	env  []string // beside what every program gets
	// tty children own their terminal; the others' output is kept in a log.
	tty string
	// oom is the kernel's oom_score_adj: what keeps the box goes last.
	oom int
	// grace is how long it gets to end by itself.
	grace time.Duration

	mu       sync.Mutex
	proc     *process
	restarts int
	lastEnd  string
	stopping bool
}

// ChildStatus is how a child stands.
type ChildStatus struct {
	Name     string `json:"name"`
	PID      int    `json:"pid,omitempty"`
	Restarts int    `json:"restarts"`
	LastEnd  string `json:"lastEnd,omitempty"`
}

func (c *child) status() ChildStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ChildStatus{Name: c.name, Restarts: c.restarts, LastEnd: c.lastEnd}
	if c.proc != nil {
		s.PID = c.proc.pid
	}
	return s
}

const (
	firstPause = 250 * time.Millisecond
	longPause  = 30 * time.Second
	// steady is how long a child has to live for its next end to count as the first.
	steady = time.Minute
)

// backoff gives the pause before the next start, and the number of quick ends in a row: a
// child that lived long is started anew at once, one that dies at once ever more slowly.
func backoff(quick int, lived time.Duration) (pause time.Duration, next int) {
	if lived >= steady {
		return firstPause, 1
	}
	pause = firstPause
	for range min(quick, 10) {
		pause *= 2
	}
	return min(pause, longPause), quick + 1
}

// agentWait is how long the agent has to answer for the first time before the rest starts
// beside it: on a box with one slow processor all that starts at once answers late.
const agentWait = 15 * time.Second

// agentLook is how long a wish for the box's end may go unheard meanwhile.
const agentLook = 500 * time.Millisecond

// startAgent starts the agent before everything else, so that the box answers early, and
// waits until it does. Nothing depends on that: it may be late, or never come.
func (b *booter) startAgent(ctx context.Context) error {
	if b.cfg.Judge != nil {
		b.judge = b.cfg.Judge(b.facts)
	}
	if !b.data {
		return nil // startChildren tells
	}
	b.facts.Data = dataDir + "/edged"
	argv, why := b.cfg.Agent(b.facts)
	if argv == nil {
		b.warn(api.Warning{Name: "agent-not-started", Severity: api.Critical, Message: why, Remedy: "write join.parent and join.token into tributary.yaml on the partition CONFIG"})
		return nil
	}
	b.keep(ctx, &child{name: "agent", argv: argv, oom: -900, grace: 20 * time.Second})
	for deadline := time.Now().Add(agentWait); askAgent(agentSocket) != nil; {
		if time.Now().After(deadline) || len(b.leave) > 0 {
			b.say("the agent does not answer yet; the rest starts beside it")
			break
		}
		look, cancel := context.WithTimeout(ctx, agentLook)
		_ = appear.Wait(look, agentSocket) // asked again in any case
		cancel()
		time.Sleep(20 * time.Millisecond) // a machine's host that asks comes first
	}
	return nil
}

// startChildren starts what the box is for besides. Without DATA there is nothing to run apps
// in: then the consoles alone are there, for a person.
func (b *booter) startChildren(ctx context.Context) error {
	var errs []error
	if b.data {
		conf := b.run("containerd.toml")
		if err := os.WriteFile(conf, []byte(containerdConfig), 0o644); err != nil {
			errs = append(errs, err)
		}
		// A collector that runs more often halves what containerd keeps dirty at rest (20 to 10
		// MB, measured in a guest); it works seldom.
		b.keep(ctx, &child{name: "containerd", argv: []string{"/usr/bin/containerd", "--config", conf}, env: []string{"GOGC=40"}, oom: -999, grace: 10 * time.Second})
	} else {
		b.warn(api.Warning{Name: "no-data", Severity: api.Critical, Message: "neither the agent nor apps run: the encrypted partitions are not open (see /run/tributary/boot.json)", Remedy: "look at the failed steps in the recovery shell"})
		errs = append(errs, errors.New("DATA is not open"))
	}
	if b.keys.locked != nil && b.cfg.Recover != nil {
		if argv := b.cfg.Recover(b.facts, b.run(recoveryFile)); argv != nil {
			b.keep(ctx, &child{name: "recover", argv: argv, oom: -900, grace: 2 * time.Second})
		}
	}
	if b.cfg.Console == nil {
		return errors.Join(errs...)
	}
	if argv := b.cfg.Console(""); argv != nil {
		b.keep(ctx, &child{name: "console", argv: argv, oom: -800, grace: 2 * time.Second})
	}
	for _, tty := range b.ttys() {
		if argv := b.cfg.Console(tty); argv != nil {
			b.keep(ctx, &child{name: "console-" + tty, argv: argv, tty: tty, oom: -800, grace: 2 * time.Second})
		}
	}
	return errors.Join(errs...)
}

// ttys are the terminals of the kernel's consoles; tty0 is whichever screen is in front, so
// a console of its own takes the first.
func (b *booter) ttys() (out []string) {
	text, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return nil
	}
	for _, name := range strings.Fields(string(text)) {
		if name == "tty0" {
			name = "tty1"
		}
		out = append(out, name)
	}
	return out
}

// containerdConfig is written anew at each boot, so that a slot brings its own. The sandbox
// and CRI parts are not built in; state that a reboot clears is in /run. Programs that
// containerd would install belong under /opt, which is read-only here: that part is off.
const containerdConfig = `version = 4
root = "/data/containerd"
state = "/run/containerd"
oom_score = -999
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "/run/containerd/containerd.sock"

[debug]
  level = "warn"

[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "10s"
`

// keep starts a child and starts it again whenever it ends, until the box goes down.
func (b *booter) keep(ctx context.Context, c *child) {
	b.mu.Lock()
	b.children = append(b.children, c)
	b.mu.Unlock()
	go func() {
		quick := 0
		for {
			began := time.Now()
			end := b.live(c)
			c.mu.Lock()
			c.lastEnd = end
			stopping := c.stopping
			c.restarts++
			c.mu.Unlock()
			if stopping || ctx.Err() != nil {
				return
			}
			if c.name == "agent" && b.judge != nil {
				if reason, restart := b.judge.AgentEnded(end); restart {
					b.ask(request{Do: doReboot, Reason: reason})
					return
				}
			}
			var pause time.Duration
			pause, quick = backoff(quick, time.Since(began))
			b.say("%s ended after %v (%s); again in %v", c.name, time.Since(began).Round(time.Millisecond), end, pause)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}()
}

// live starts the child and waits for its end, which it describes.
func (b *booter) live(c *child) string {
	files, log, err := b.files(c)
	if err != nil {
		return err.Error()
	}
	cgroup := ""
	if b.branch != "" {
		cgroup = filepath.Join(b.branch, c.name)
		if err := os.MkdirAll(cgroup, 0o755); err != nil {
			return err.Error()
		}
	}
	c.mu.Lock()
	if c.stopping {
		c.mu.Unlock()
		return "not started: the box goes down"
	}
	p, err := b.procs.start(c.argv, files, cgroup, c.env...)
	c.proc = p
	c.mu.Unlock()
	for i, f := range files {
		if i == 0 || f != files[i-1] {
			f.Close()
		}
	}
	if err != nil {
		return err.Error()
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), fmt.Appendf(nil, "%d", c.oom), 0) // it may have ended
	if log != nil {
		go b.keepLog(c.name, log)
	}
	ws := <-p.done
	end := fmt.Sprintf("exit status %d", ws.ExitStatus())
	if ws.Signaled() {
		end = "signal " + ws.Signal().String()
	}
	c.mu.Lock()
	c.proc, c.lastEnd = nil, end
	c.mu.Unlock()
	return end
}

// files are the child's standard files, and the end from which its log is read.
func (b *booter) files(c *child) (files [3]*os.File, log *os.File, err error) {
	if c.tty != "" {
		f, err := os.OpenFile("/dev/"+c.tty, os.O_RDWR|syscall.O_NOCTTY, 0)
		return [3]*os.File{f, f, f}, nil, err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return files, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		null.Close()
		return files, nil, err
	}
	return [3]*os.File{null, w, w}, r, nil
}

const logBytes = 256 << 10

// keepLog keeps a child's output in memory's file system: two files of 256 KiB, the older
// of which goes. The disk is spared; what matters goes up as events.
func (b *booter) keepLog(name string, r *os.File) {
	defer r.Close()
	path := filepath.Join(b.run("log"), name+".log")
	var f *os.File
	var size int64
	open := func() {
		var err error
		if f, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640); err == nil {
			size, _ = f.Seek(0, io.SeekEnd)
		}
	}
	open()
	in := bufio.NewReaderSize(r, 4<<10)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			if b.out.verbose {
				b.out.print(name + ": " + string(line))
			}
			if f != nil {
				n, _ := f.Write(line) // a full /run loses a log line, no more
				size += int64(n)
			}
		}
		if size > logBytes && f != nil {
			f.Close()
			_ = os.Rename(path, path+".old")
			open()
		}
		if err != nil && err != bufio.ErrBufferFull {
			break
		}
	}
	if f != nil {
		f.Close()
	}
}

// end asks a child to end, and kills it after its grace.
func (c *child) end() {
	c.mu.Lock()
	c.stopping = true
	p := c.proc
	c.mu.Unlock()
	if p == nil {
		return
	}
	_ = syscall.Kill(p.pid, syscall.SIGTERM)
	for deadline := time.Now().Add(c.grace); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		c.mu.Lock()
		gone := c.proc == nil
		c.mu.Unlock()
		if gone {
			return
		}
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
}

// agentSocket is where the agent answers when it is well.
const agentSocket = "/run/edged/edged.sock"

// askAgent tells whether the agent answers its local socket. It speaks the little HTTP that
// this takes, so that process 1 needs no client.
func askAgent(path string) error {
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "GET /status HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(conn, 256).ReadSlice('\n')
	if err != nil {
		return err
	}
	if !strings.Contains(string(line), " 200 ") {
		return fmt.Errorf("the agent answers %q", strings.TrimSpace(string(line)))
	}
	return nil
}
