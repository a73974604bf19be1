package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/stream"
)

// maxStreams bounds the streams that are answered at once: more than the core opens, which
// may hear of an end before this device does. maxRefusals bounds those that are told why not.
const (
	maxStreams  = stream.PerDevice * 3 / 2
	maxRefusals = 16
)

// command takes raw bytes from the link; it never blocks.
func (a *Agent) command(raw []byte) {
	select {
	case a.cmds <- raw:
	default:
		a.cfg.Log.Warn("command dropped: too many at once")
	}
}

// commands answers what the core asks on behalf of people.
//
// Reads: signed commands, the workload. Writes: streams, audit records.
func (a *Agent) commands(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	free, refusing := make(chan struct{}, maxStreams), make(chan struct{}, maxRefusals)
	for {
		var raw []byte
		select {
		case <-ctx.Done():
			return nil
		case raw = <-a.cmds:
		}
		me := a.cfg.Identity.Get()
		c, err := stream.Verify(raw, me.Trust, me.ID(), a.cfg.Clock.Now(), &a.replay)
		if err != nil {
			if errors.Is(err, identity.ErrUnknownSigner) {
				a.cfg.RenewTrust()
			}
			a.cfg.Log.Warn("command refused", "err", err)
			a.Event(api.Event{Name: "command.refused", Message: err.Error()})
			continue
		}
		select {
		case free <- struct{}{}:
		default:
			a.cfg.Log.Warn("command refused: too many streams are open")
			a.refuseSoon(ctx, &running, refusing, c, &api.Error{Code: api.Unavailable, Message: fmt.Sprintf("too many streams to this device are open (%d)", maxStreams), Remedy: "close some, or wait"})
			continue
		}
		running.Add(1)
		go func() {
			defer running.Done()
			defer func() { <-free }()
			if err := a.answer(ctx, c); stream.Full(err) {
				a.refuseSoon(ctx, &running, refusing, c, err)
			}
		}()
	}
}

// refuseSoon tells the person, beside all else, why a command is not served.
func (a *Agent) refuseSoon(ctx context.Context, running *sync.WaitGroup, refusing chan struct{}, c *stream.Command, why error) {
	running.Add(1)
	go func() {
		defer running.Done()
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // the core waits no longer
		defer cancel()
		select {
		case refusing <- struct{}{}:
		case <-ctx.Done():
			return
		}
		defer func() { <-refusing }()
		if err := stream.Refuse(ctx, a.cfg.Identity, a.cfg.Stream, c, why); err != nil {
			a.cfg.Log.Info("refusal not delivered", "verb", c.Verb, "err", err)
		}
	}()
}

// answer serves one command from its stream's opening to its end.
// An error is why it could not be opened.
func (a *Agent) answer(ctx context.Context, c *stream.Command) error {
	subject := strings.Trim(c.App+"/"+c.Service, "/")
	note := func(what, message string) {
		if c.Actor == "" && c.Verb == stream.Attest {
			return // the core asks by itself, and often
		}
		a.appendEvent(api.RecordAudit, api.Event{Time: a.cfg.Clock.Now().UnixMilli(), Name: string(c.Verb) + "." + what, Subject: subject, Message: message, Actor: c.Actor})
	}
	conn, err := stream.Answer(ctx, a.cfg.Identity, a.cfg.Stream, c)
	if err != nil {
		note("unanswered", err.Error())
		a.cfg.Log.Warn("command not answered", "verb", c.Verb, "err", err)
		return err
	}
	note("opened", describe(c))
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := a.serve(ctx, cancel, c, conn)
	outcome := "exit " + strconv.Itoa(code)
	if err != nil {
		outcome = err.Error()
	}
	if err := conn.Finish(code, err, stream.FinishGrace); err != nil {
		a.cfg.Log.Debug("stream broke off", "verb", c.Verb, "err", err)
	}
	note("closed", fmt.Sprintf("%s after %s", outcome, time.Since(began).Round(time.Millisecond)))
	return nil
}

// describe is what the audit record says of a command.
func describe(c *stream.Command) string {
	switch c.Verb {
	case stream.Exec:
		return strings.Join(c.Argv, " ")
	case stream.Forward:
		return "port " + strconv.Itoa(int(c.Port))
	case stream.Line:
		return c.Line
	}
	return ""
}

func (a *Agent) serve(ctx context.Context, cancel func(), c *stream.Command, conn *stream.Conn) (int, error) {
	in := conn.Input()
	go func() { // a person who goes away ends what was done for them
		select {
		case <-in.Gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	switch c.Verb {
	case stream.Attest:
		if a.cfg.Attest == nil {
			return 1, api.Errorf(api.NotFound, "this box answers for no TPM")
		}
		return 0, a.cfg.Attest(ctx, c.Nonce, struct {
			io.Reader
			io.Writer
		}{in.Stdin, conn.Writer(stream.Stdout)})
	case stream.Logs:
		return 0, a.cfg.Workload.Logs(ctx, c.App, c.Service, c.Follow, c.Tail, conn.Writer(stream.Stdout))
	case stream.Exec:
		return a.cfg.Workload.Exec(ctx, workload.ExecRequest{App: c.App, Service: c.Service, Argv: c.Argv, TTY: c.TTY,
			Stdin: in.Stdin, Stdout: conn.Writer(stream.Stdout), Stderr: conn.Writer(stream.Stderr), Resize: sizes(ctx, c.Size, in.Resize)})
	case stream.Forward:
		return 0, a.forward(ctx, c, conn, in)
	case stream.Top:
		return 0, a.top(ctx, c, conn.Writer(stream.Stdout))
	case stream.Console:
		return a.console(ctx, c, conn, in)
	case stream.Line:
		return 0, a.line(ctx, c.Line, conn, in)
	}
	return 0, api.Errorf(api.Invalid, "%q is not known here", c.Verb)
}

// console carries the box's recovery console, which is a program beside this one. Its first
// frame is the terminal's size; none is a line that cannot draw.
func (a *Agent) console(ctx context.Context, c *stream.Command, conn *stream.Conn, in stream.Input) (int, error) {
	none := &api.Error{Code: api.Unavailable, Message: "this box has no recovery console", Remedy: "it comes with the appliance's image; use exec and logs here"}
	if a.cfg.Console == "" {
		return 0, none
	}
	to, err := (&net.Dialer{}).DialContext(ctx, "unix", a.cfg.Console)
	if err != nil {
		none.Err = err
		return 0, none
	}
	box := stream.NewConn(to, stream.Idle)
	size := c.Size
	if !c.TTY {
		size = stream.Size{}
	}
	if err := box.Resize(size); err != nil {
		box.Close()
		return 0, err
	}
	return stream.Run(ctx, box, stream.Local{Stdin: in.Stdin, Stdout: conn.Writer(stream.Stdout), Resize: in.Resize})
}

// sizes passes terminal sizes on, the command's own first.
func sizes(ctx context.Context, first stream.Size, from <-chan stream.Size) <-chan workload.Size {
	out := make(chan workload.Size, 1)
	if first.Columns > 0 {
		out <- workload.Size{Width: first.Columns, Height: first.Rows}
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-from:
				select {
				case out <- workload.Size{Width: s.Columns, Height: s.Rows}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// forward carries one TCP connection.
func (a *Agent) forward(ctx context.Context, c *stream.Command, conn *stream.Conn, in stream.Input) error {
	to, err := a.cfg.Workload.Dial(ctx, c.App, c.Service, int(c.Port))
	if err != nil {
		return err
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() { to.Close() })
	defer stop()
	go func() {
		if _, err := io.Copy(to, in.Stdin); err == nil {
			if half, ok := to.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		}
	}()
	_, err = io.Copy(conn.Writer(stream.Stdout), to)
	if ctx.Err() != nil {
		return nil // the person closed
	}
	return err
}

// topEvery is the time between two samples.
const topEvery = 2 * time.Second

// top writes one sample, or one every two seconds, until ctx ends.
func (a *Agent) top(ctx context.Context, c *stream.Command, w io.Writer) error {
	enc := json.NewEncoder(w)
	var before map[string]reading
	tick := time.NewTicker(topEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		now := time.Now()
		after := a.readAll(now)
		if n > 0 || c.Follow {
			s := sample(before, after, a.cfg.Workload.Status())
			s.Time = a.cfg.Clock.Now().UnixMilli()
			s.Load, s.MemoryBytes, s.MemoryUsed = machine()
			if err := enc.Encode(s); err != nil {
				return err
			}
			if !c.Follow {
				return nil
			}
		}
		before = after
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// reading is one target's counters at a moment.
type reading struct {
	target meter.Target
	at     time.Time
	meter.Reading
}

func (a *Agent) readAll(now time.Time) map[string]reading {
	out := map[string]reading{}
	for _, t := range a.cfg.Workload.Targets() {
		if r, err := a.cfg.Meter.Read(t); err == nil && t.Ended.IsZero() {
			out[t.ID] = reading{t, now, r}
		}
	}
	return out
}

// sample makes rates of two readings.
func sample(before, after map[string]reading, status []api.AppStatus) stream.Sample {
	var out stream.Sample
	for _, app := range status {
		for _, svc := range app.Services {
			use := stream.SampleUse{App: app.Name, Service: svc.Name, State: string(svc.State)}
			for id, r := range after {
				if r.target.App != app.Name || r.target.Service != svc.Name {
					continue
				}
				use.MemoryBytes += r.MemoryBytes
				old, known := before[id]
				if seconds := r.at.Sub(old.at).Seconds(); known && seconds > 0 {
					use.CPUs += rate(old.CPUMicros, r.CPUMicros, seconds) / 1e6
					use.RxPerSecond += rate(old.RxBytes, r.RxBytes, seconds)
					use.TxPerSecond += rate(old.TxBytes, r.TxBytes, seconds)
				}
			}
			out.Uses = append(out.Uses, use)
		}
	}
	return out
}

func rate(from, to uint64, seconds float64) float64 {
	if to < from {
		return 0
	}
	return float64(to-from) / seconds
}

// machine reads the box's own load and memory from /proc (proc(5)).
func machine() (load float64, total, used int64) {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		load, _ = strconv.ParseFloat(first, 64)
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var free int64
		for line := range strings.SplitSeq(string(b), "\n") {
			key, value, _ := strings.Cut(line, ":")
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			switch key {
			case "MemTotal":
				total = kib << 10
			case "MemAvailable":
				free = kib << 10
			}
		}
		used = total - free
	}
	return load, total, used
}
