package ptp

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Config is what a Keeper is made of.
type Config struct {
	Settings Settings
	// Ports names the interfaces that speak PTP now; they may come and go. There may be none.
	Ports func() []string
	// Up has an interface carry frames, whoever else uses it. May be nil.
	Up func(name string) error
	// KPI takes what is told of the offset, every quarter of an hour. May be nil.
	KPI func(api.KPI)
	// Dir is for the configuration and sockets: on a tmpfs, short.
	Dir string
	// PTP4L and PHC2SYS are the programs; the second runs with hardware clocks alone.
	PTP4L, PHC2SYS string
	// Wrap makes the command to be run of another, such as one in a namespace. May be nil.
	Wrap func(argv []string) []string
	Now  func() time.Time
	Log  *slog.Logger
	// Output takes what the programs say. May be nil.
	Output io.Writer
}

// Keeper has linuxptp run. Its methods may be called from any goroutine.
type Keeper struct {
	cfg Config

	mu       sync.Mutex
	ports    []string
	reading  Reading
	err      error     // of the last question
	held     time.Time // when the clock was PTP's last; zero: it never was
	warnings []api.Warning
}

// Pace.
const (
	askEvery   = time.Second
	askLimit   = time.Second
	restartMin = time.Second
	restartMax = time.Minute
	// patience is how long a box may take to lock before that is a warning.
	patience = 2 * time.Minute
	// holdover is how long a clock that was PTP's goes better by itself, at the rate that it learned, than by
	// servers at the end of a line.
	holdover = time.Hour
)

// New makes a keeper; nothing runs yet.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg} }

// Run keeps the programs running on the ports that there are, and asks ptp4l every second,
// until ctx ends; they end with it.
//
// Reads: the settings, the ports, ptp4l's socket. Writes: ptp4l's configuration; the reading;
// warnings; KPIs.
func (k *Keeper) Run(ctx context.Context) error {
	if err := os.MkdirAll(k.cfg.Dir, 0o755); err != nil {
		return err
	}
	end := func() {}
	defer func() { end() }()
	var of tally
	began := k.cfg.Now()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		if ports := k.cfg.Ports(); first || !slices.Equal(ports, k.ports) {
			end()
			began = k.cfg.Now()
			k.mu.Lock()
			k.ports = ports
			k.mu.Unlock()
			var err error
			if end, err = k.start(ctx, ports); err != nil {
				return err
			}
		}
		if len(k.ports) > 0 {
			r, err := Ask(k.cfg.Dir+"/ptp4l", k.cfg.Dir+"/ask", k.cfg.Settings.Domain, askLimit)
			k.note(r, err, began)
			of.add(r.OffsetNS, err == nil && k.cfg.Settings.follows(&r))
			if kpi, due := of.cut(k.cfg.Now()); due && k.cfg.KPI != nil {
				k.cfg.KPI(kpi)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// start has the programs run on some ports, until what it returns is called.
func (k *Keeper) start(ctx context.Context, ports []string) (end func(), err error) {
	if len(ports) == 0 {
		k.mu.Lock()
		k.reading, k.err, k.warnings = Reading{}, nil, nil
		k.mu.Unlock()
		return func() {}, nil
	}
	for _, name := range ports {
		if k.cfg.Up == nil {
			break
		}
		if err := k.cfg.Up(name); err != nil {
			k.cfg.Log.Warn("a port of PTP is not switched on", "port", name, "err", err)
		}
	}
	file := filepath.Join(k.cfg.Dir, "ptp4l.conf")
	if err := os.WriteFile(file, []byte(k.cfg.Settings.Config(k.cfg.Dir, ports)), 0o644); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { k.supervise(ctx, []string{k.cfg.PTP4L, "-f", file, "-m"}) })
	if !k.cfg.Settings.Software && !k.cfg.Settings.FreeRunning {
		// -a follows ptp4l's ports, -r lets the system's clock be set by them, -S steps it as ptp4l does (phc2sys(8)).
		wg.Go(func() {
			k.supervise(ctx, []string{k.cfg.PHC2SYS, "-a", "-r", "-n", fmt.Sprint(k.cfg.Settings.Domain), "-z", k.cfg.Dir + "/ptp4l", "-L", "0", "-S", stepBeyond, "-m"})
		})
	}
	return func() { cancel(); wg.Wait() }, nil
}

// supervise runs a program again and again, with pauses that grow while it ends at once.
func (k *Keeper) supervise(ctx context.Context, argv []string) {
	for pause := restartMin; ; {
		began := k.cfg.Now()
		err := k.once(ctx, argv)
		if ctx.Err() != nil {
			return
		}
		if k.cfg.Now().Sub(began) > restartMax {
			pause = restartMin
		}
		k.cfg.Log.Warn("a program of PTP ended; it is started again", "program", filepath.Base(argv[0]), "err", err, "in", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMax)
	}
}

func (k *Keeper) once(ctx context.Context, argv []string) error {
	if k.cfg.Wrap != nil {
		argv = k.cfg.Wrap(argv)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = k.cfg.Output, k.cfg.Output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // so that it takes its sockets along
	cmd.WaitDelay = 5 * time.Second
	return cmd.Run()
}

func (k *Keeper) note(r Reading, err error, began time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	k.reading, k.err = r, err
	if err == nil && !k.cfg.Settings.FreeRunning && (r.State == "slave" || r.State == "uncalibrated") {
		k.held = now
	}
	list := Judge(&k.cfg.Settings, r, err, now.Sub(began))
	for i := range list {
		list[i].Since = now.Unix()
		for _, old := range k.warnings {
			if old.Name == list[i].Name {
				list[i].Since = old.Since
			}
		}
	}
	k.warnings = list
}

// Judge tells what is wrong with a reading, a plain function: nothing, that nobody answers,
// that the box follows nobody, or that it is too far off. age is for how long linuxptp was
// looked after.
func Judge(s *Settings, r Reading, err error, age time.Duration) []api.Warning {
	warn := func(name, remedy, format string, args ...any) []api.Warning {
		return []api.Warning{{Name: name, Severity: api.Degraded, Message: fmt.Sprintf(format, args...), Remedy: remedy}}
	}
	leads := s.Server && (r.State == "master" || r.State == "grand-master")
	switch {
	case age < patience && (err != nil || !s.follows(&r)):
		return nil // it is about to
	case err != nil:
		return warn("ptp-not-running", "look at the log of edged: ptp4l says there why it ends", "ptp4l does not answer: %v", err)
	case leads:
		return nil // it is who gives the time
	case !s.follows(&r):
		return warn("ptp-unlocked", "look at the cable, at the switch's PTP and its domain", "PTP is %s: the box follows no clock", r.State)
	case max(r.OffsetNS, -r.OffsetNS) > s.Bound():
		return warn("ptp-offset", "look at the way to the clock: its delay changes, or a switch on it knows no PTP", "the box is %d ns from the clock that it follows; %d are allowed", r.OffsetNS, s.Bound())
	}
	return nil
}

// Warnings tells what is wrong with the time.
func (k *Keeper) Warnings() []api.Warning {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]api.Warning(nil), k.warnings...)
}

// Holds tells that the machine's clock is PTP's to set: it follows somebody, or did until
// lately.
func (k *Keeper) Holds() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.held.IsZero() && k.cfg.Now().Sub(k.held) < holdover
}

// Reading is the last answer of ptp4l; ok is false while it gives none.
func (k *Keeper) Reading() (r Reading, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.reading, k.err == nil && k.reading.State != ""
}

// Metrics writes the reading as OpenMetrics.
func (k *Keeper) Metrics(w io.Writer) {
	r, ok := k.Reading()
	locked := 0
	if ok && k.cfg.Settings.follows(&r) {
		locked = 1
	}
	fmt.Fprintf(w, "# TYPE edged_ptp_locked gauge\nedged_ptp_locked %d\n", locked)
	if ok {
		fmt.Fprintf(w, "# TYPE edged_ptp_offset_seconds gauge\n# UNIT edged_ptp_offset_seconds seconds\nedged_ptp_offset_seconds %.9f\n", float64(r.OffsetNS)/1e9)
		fmt.Fprintf(w, "# TYPE edged_ptp_delay_seconds gauge\n# UNIT edged_ptp_delay_seconds seconds\nedged_ptp_delay_seconds %.9f\n", float64(r.DelayNS)/1e9)
	}
}
