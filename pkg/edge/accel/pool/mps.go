package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// controlProgram is both the daemon of MPS (-f: it stays) and what speaks to it: commands, a
// line each, on its standard input (MPS, "nvidia-cuda-mps-control").
const controlProgram = "nvidia-cuda-mps-control"

// mps keeps one control daemon for each card that is shared so. A daemon runs on when edged
// ends, as its clients do, and is found again by what is noted beside its pipes.
type mps struct {
	files Files
	log   *slog.Logger
	watch sync.WaitGroup

	mu      sync.Mutex
	daemons map[string]*daemon
}

// daemon is one that is to run.
type daemon struct {
	// starting is held while it is made sure that one runs.
	starting sync.Mutex

	unit   accel.Daemon
	setup  []string
	fault  string
	cancel context.CancelFunc
	gone   chan struct{} // closed when nobody looks after it any more
}

// note is what is written down of a daemon that was started.
type note struct {
	PID int `json:"pid"`
	// Started is in clock ticks since the boot (proc_pid_stat(5), field 22): a number of a
	// process may be given again, and not with that.
	Started uint64 `json:"started"`
}

const noteFile = "daemon.json"

// run has a daemon run and set up; it returns when the daemon answers. Called again it
// makes sure of the same.
func (m *mps) run(ctx context.Context, card string, unit accel.Daemon, setup []string) error {
	m.mu.Lock()
	d := m.daemons[card]
	m.mu.Unlock()
	if d != nil {
		return m.ensure(ctx, d)
	}
	d = &daemon{unit: unit, setup: setup, gone: make(chan struct{})}
	if err := m.ensure(ctx, d); err != nil {
		return err
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	m.mu.Lock()
	m.daemons[card] = d
	m.mu.Unlock()
	m.watch.Go(func() { m.tend(own, d) })
	return nil
}

// tendEvery is how often it is seen whether a daemon still runs.
const tendEvery = 2 * time.Second

// tend starts a daemon again when it ends.
func (m *mps) tend(ctx context.Context, d *daemon) {
	defer close(d.gone)
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if d.running() {
			continue
		}
		err := m.ensure(ctx, d)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.log.Warn("the control daemon of MPS is not there; it is started again", "unit", d.unit.Name, "err", err)
		}
		m.mu.Lock()
		d.fault = ""
		if err != nil {
			d.fault = err.Error()
		}
		m.mu.Unlock()
	}
}

// wait ends looking after daemons; they run on.
func (m *mps) wait() {
	m.mu.Lock()
	for _, d := range m.daemons {
		d.cancel()
	}
	m.mu.Unlock()
	m.watch.Wait()
}

func (m *mps) faults() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	for card, d := range m.daemons {
		if d.fault != "" {
			out[card] = d.fault
		}
	}
	return out
}

// startTime bounds how long a daemon may take to answer.
const startTime = time.Minute

// ensure starts a daemon that does not run, and sets it up.
func (m *mps) ensure(ctx context.Context, d *daemon) error {
	d.starting.Lock()
	defer d.starting.Unlock()
	if d.running() {
		return nil
	}
	program := m.files.Program(controlProgram)
	if program == "" {
		return &api.Error{Code: api.Unavailable, Message: "MPS needs " + controlProgram + ", which is not there", Remedy: "install the release with the extension nvidia, or share the card another way"}
	}
	logs := filepath.Join(d.unit.State, "log")
	if err := errors.Join(os.MkdirAll(d.unit.Folder, 0o755), os.MkdirAll(logs, 0o711), os.Chmod(logs, 0o1777), shareMemory(d.unit.Shared)); err != nil { // its servers log as whom they serve
		return err
	}
	log, err := os.OpenFile(filepath.Join(d.unit.State, "output.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, d.unit.Args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), d.unit.Env...), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startWith(cmd, d.unit.Shared); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // tend sees that it is gone
	started, err := startOf(cmd.Process.Pid)
	if err == nil {
		err = d.write(note{cmd.Process.Pid, started})
	}
	if err == nil {
		err = m.answer(ctx, program, d)
	}
	for _, line := range d.setup {
		if err == nil {
			_, err = say(ctx, program, d.unit.Env, line)
		}
	}
	if err != nil {
		_ = cmd.Process.Kill() // one that is not set up limits nobody
		return fmt.Errorf("%s: %w", d.unit.Name, err)
	}
	return nil
}

// answer waits until a daemon takes commands.
func (m *mps) answer(ctx context.Context, program string, d *daemon) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		_, err := say(ctx, program, d.unit.Env, "get_server_list")
		if err == nil {
			return nil
		}
		again := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			again.Stop()
			return errors.Join(ctx.Err(), err)
		case <-again.C:
		}
	}
}

// say gives a daemon one command, and returns its answer.
func say(ctx context.Context, program string, env []string, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env, cmd.Stdin = append(os.Environ(), env...), strings.NewReader(line+"\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", line, err, bytes.TrimSpace(out[:min(len(out), 200)]))
	}
	return string(out), nil
}

// stop ends a card's daemon, one of an earlier edged too; without one it does nothing.
func (m *mps) stop(ctx context.Context, card string, unit accel.Daemon) error {
	m.mu.Lock()
	d := m.daemons[card]
	m.mu.Unlock()
	if d == nil {
		d = &daemon{unit: unit}
	} else {
		d.cancel()
		<-d.gone
	}
	if d.running() {
		if _, err := say(ctx, m.files.Program(controlProgram), d.unit.Env, "quit"); err != nil {
			m.log.Warn("the control daemon of MPS does not end by itself and is killed", "unit", d.unit.Name, "err", err)
		}
		if err := d.end(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	delete(m.daemons, card)
	m.mu.Unlock()
	return errors.Join(os.RemoveAll(d.unit.Folder), os.RemoveAll(d.unit.State), unshareMemory(d.unit.Shared))
}

// drop ends the daemon of a card that is gone, if one runs.
func (m *mps) drop(ctx context.Context, card string) error {
	m.mu.Lock()
	d := m.daemons[card]
	m.mu.Unlock()
	if d == nil {
		return nil
	}
	return m.stop(ctx, card, d.unit)
}

// graceTime is how long a daemon that was told to end may take.
const graceTime = 10 * time.Second

func (d *daemon) end(ctx context.Context) error {
	limit := time.Now().Add(graceTime)
	for d.running() {
		if time.Now().After(limit) {
			if n, err := d.read(); err == nil {
				_ = syscall.Kill(n.PID, syscall.SIGKILL)
			}
		}
		again := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		case <-again.C:
		}
	}
	return nil
}

func (d *daemon) read() (n note, err error) {
	raw, err := os.ReadFile(filepath.Join(d.unit.State, noteFile))
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(raw, &n)
}

func (d *daemon) write(n note) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(d.unit.State, noteFile), raw, 0o600)
}

// running tells whether the daemon that was noted is there.
func (d *daemon) running() bool {
	n, err := d.read()
	if err != nil || n.PID < 2 {
		return false
	}
	started, err := startOf(n.PID)
	return err == nil && started == n.Started
}

// startOf is when a process was started; one that ended and waits for its parent is gone.
func startOf(pid int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), ") ") // a name may have anything but this: it is 15 bytes of ours
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
