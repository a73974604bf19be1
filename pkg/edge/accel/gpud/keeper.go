package gpud

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/pattern"
)

// Process is a gpud that runs: its standard output to read, its standard input to write.
// Close ends it, and returns when it is gone; whoever reads or writes it then gets an error.
// It is called once, beside either.
type Process interface {
	io.Reader
	io.Writer
	Close() error
}

// Config says how gpud is kept.
type Config struct {
	// Start starts one. It is called again whenever one has ended.
	Start func() (Process, error)
	// Events is told what cards tell by themselves; it must not wait.
	Events func(Event)
	// Again is told that another gpud answers: events may have been missed, and a change may
	// be half done.
	Again func(Hello)
	Log   *slog.Logger
	// Answer bounds an answer; 0 is 30 seconds, and 3 minutes where a card is reset for it.
	Answer time.Duration
	// Pause is how long is waited before another start, by how many have failed in a row.
	Pause func(failed int) time.Duration
}

// Pause is the usual Config.Pause: a second, then twice as long each time, to a minute.
func Pause(failed int) time.Duration { return min(time.Second<<min(failed, 6), time.Minute) }

// Keeper keeps one gpud running, and asks it. Its methods may be called at any time from any
// goroutine; while no gpud answers they fail with api.Unavailable.
type Keeper struct {
	config Config
	mu     sync.Mutex
	now    *client
	end    func() error // of the process that now speaks to
}

// Keep makes a keeper; Run starts it.
func Keep(c Config) *Keeper { return &Keeper{config: c} }

// Run keeps gpud running until ctx ends, and ends it then.
func (k *Keeper) Run(ctx context.Context) {
	failed := 0
	for ctx.Err() == nil {
		greeted, err := k.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if failed++; greeted {
			failed = 0
		}
		k.config.Log.Warn("gpud ended; it is started again", "err", err, "failed", failed)
		pause := time.NewTimer(k.config.Pause(failed))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// once runs one gpud to its end.
func (k *Keeper) once(ctx context.Context) (greeted bool, err error) {
	p, err := k.config.Start()
	if err != nil {
		return false, err
	}
	c := newClient(p, k.config.Events)
	closeIt := sync.OnceValue(p.Close)
	ended := make(chan error, 1)
	go func() {
		err := c.read(p)
		_ = closeIt() // who writes to it waits no longer
		ended <- err
	}()
	stop := context.AfterFunc(ctx, func() { _ = closeIt() })
	defer stop()
	// Whatever happens, the process is gone and its reader too when this returns.
	defer func() {
		k.set(nil, nil)
		_ = closeIt()
		<-ended
	}()
	hello, err := k.greet(ctx, c, closeIt)
	if err != nil {
		return false, err
	}
	k.set(c, closeIt)
	k.config.Log.Info("gpud answers", "driver", hello.Driver, "library", hello.Library)
	if k.config.Again != nil {
		k.config.Again(hello)
	}
	select {
	case <-ctx.Done():
		return true, nil
	case err := <-ended:
		ended <- err
		if closed(err) {
			err = nil
		}
		return true, err
	}
}

// greeting is how long a gpud may take to load the library: the driver may wake a card first.
const greeting = time.Minute

func (k *Keeper) greet(ctx context.Context, c *client, closeIt func() error) (Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, greeting)
	stop := context.AfterFunc(ctx, func() { _ = closeIt() })
	defer cancel()
	defer stop()
	return c.greet(ctx)
}

func (k *Keeper) set(c *client, end func() error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now, k.end = c, end
}

// Limits of how long an answer may take: a driver that hangs answers nothing any more, and who
// waits for it would hold up all who claim anything.
const (
	askTime = 30 * time.Second
	migTime = 3 * time.Minute // the card is reset for it
)

func (k *Keeper) ask(ctx context.Context, q Request) (Reply, error) {
	k.mu.Lock()
	c, end := k.now, k.end
	k.mu.Unlock()
	if c == nil {
		return Reply{}, &api.Error{Code: api.Unavailable, Message: "gpud does not run", Remedy: "it is started again by itself; see its lines in the log"}
	}
	limit := askTime
	if q.Op == OpSetMIG {
		limit = migTime
	}
	if k.config.Answer > 0 {
		limit = k.config.Answer
	}
	own, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// Writing waits too, when nothing reads: the process ends, and with it the wait.
	stop := context.AfterFunc(own, func() {
		if ctx.Err() == nil {
			_ = end()
		}
	})
	defer stop()
	a, err := c.ask(own, q)
	late := own.Err() != nil && ctx.Err() == nil
	if late {
		go func() { _ = end() }() // stop may come before the AfterFunc was begun, which is then never run
	}
	if late { // check: in time
		return Reply{}, &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("gpud did not answer %s within %v: its driver may hang", q.Op, limit), Remedy: "it is started again by itself; if that goes on, restart the box"}
	}
	return a, err
}

// Cards reads the inventory.
func (k *Keeper) Cards(ctx context.Context) ([]Card, error) {
	a, err := k.ask(ctx, Request{Op: OpCards})
	if err != nil {
		return nil, err
	}
	return a.Cards, checkCards(a.Cards)
}

// cardName is a UUID or an address: it becomes part of names of files and of devices.
var cardName = pattern.New(`^[A-Za-z0-9][A-Za-z0-9.:-]{0,127}$`)

// checkCards checks what came. A card whose slices make no sense is told without them, with
// the reason, and hides no other.
func checkCards(list []Card) error {
	known := map[string]bool{}
	for i := range list {
		a := &list[i].Accelerator
		if !cardName.MatchString(a.ID) || known[a.ID] || a.MemoryMiB < 0 { // check: card
			return fmt.Errorf("%w: card %d is called %q, of %d MiB", ErrFrame, i, a.ID, a.MemoryMiB)
		}
		known[a.ID] = true
		if a.MIG == nil {
			continue
		}
		if err := api.CheckMIG(a.MIG); err != nil { // check: slices of a card
			a.MIG = nil
			a.Findings = append(a.Findings, api.AcceleratorFinding{Warning: api.Warning{Name: "gpu-slices-unreadable", Severity: api.Degraded, Message: err.Error(), Remedy: err.Remedy}})
		}
	}
	return nil
}

// Layout reads what a card is cut into.
func (k *Keeper) Layout(ctx context.Context, card string) (*api.MIG, error) {
	return layout(k.ask(ctx, Request{Op: OpLayout, Card: card}))
}

// layout checks what came: the planner relies on it.
func layout(a Reply, err error) (*api.MIG, error) {
	if err != nil {
		return nil, err
	}
	if a.MIG == nil {
		return nil, fmt.Errorf("%w: an answer without a layout", ErrFrame)
	}
	if err := api.CheckMIG(a.MIG); err != nil {
		return nil, err
	}
	return a.MIG, nil
}

// Create makes a slice.
func (k *Keeper) Create(ctx context.Context, card string, profile int, at api.MIGPlacement) error {
	_, err := k.ask(ctx, Request{Op: OpCreate, Card: card, Profile: profile, At: at})
	return err
}

// Destroy removes a slice; one that is gone is no fault.
func (k *Keeper) Destroy(ctx context.Context, card string, instance int) error {
	_, err := k.ask(ctx, Request{Op: OpDestroy, Card: card, Instance: instance})
	return err
}

// SetMIG turns MIG on or off; the answer's Pending is what holds after a reset of the card.
func (k *Keeper) SetMIG(ctx context.Context, card string, on bool) (*api.MIG, error) {
	return layout(k.ask(ctx, Request{Op: OpSetMIG, Card: card, On: on}))
}

// SetCompute says who may use a card at once, in nvidia-smi's words: Default, or
// Exclusive_Process, which MPS asks for.
func (k *Keeper) SetCompute(ctx context.Context, card, mode string) error {
	_, err := k.ask(ctx, Request{Op: OpCompute, Card: card, Mode: mode})
	return err
}

// Sample reads what cards and slices use.
func (k *Keeper) Sample(ctx context.Context) ([]Sample, error) {
	a, err := k.ask(ctx, Request{Op: OpSample})
	if err != nil {
		return nil, err
	}
	return a.Samples, checkSamples(a.Samples)
}

// maxMiB is more memory than any card has.
const maxMiB = 1 << 30

// checkSamples checks what came: it is billed.
func checkSamples(list []Sample) error {
	for _, s := range list {
		if s.Percent < -1 || s.Percent > 100 || s.MemoryMiB < 0 || s.MemoryMiB > maxMiB { // check: sample
			return fmt.Errorf("%w: %s%s uses %d %% and %d MiB", ErrFrame, s.Card, s.Slice, s.Percent, s.MemoryMiB)
		}
	}
	return nil
}

// Command is a Config.Start for a program, with further variables of the environment. What it
// writes to its standard error goes to log. It ends when its standard input does, so with the
// agent too, however that ends.
func Command(log io.Writer, env []string, program string) func() (Process, error) {
	return func() (Process, error) {
		cmd := exec.Command(program)
		cmd.Stderr, cmd.Env = log, append(os.Environ(), env...)
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return &process{in: in, out: out, cmd: cmd}, nil
	}
}

type process struct {
	in  io.WriteCloser
	out io.ReadCloser
	cmd *exec.Cmd
}

func (p *process) Read(b []byte) (int, error)  { return p.out.Read(b) }
func (p *process) Write(b []byte) (int, error) { return p.in.Write(b) }

// goneTime is how long a process that was killed is waited for. One that hangs in the driver
// cannot end before that lets go of it.
const goneTime = 10 * time.Second

// Close kills it: gpud has nothing of its own to put away, and a library that hangs in the
// driver would not hear of its input's end.
func (p *process) Close() error {
	_ = p.in.Close()
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	_ = p.out.Close() // who reads it waits no longer
	gone := make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(gone)
	}()
	limit := time.NewTimer(goneTime)
	defer limit.Stop()
	select {
	case <-gone:
	case <-limit.C:
	}
	return nil
}
