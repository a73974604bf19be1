package main

import (
	"context"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"strconv"
	"time"
)

// check goes through one lock of a room and comes back.
type check struct {
	name string
	try  func()
}

// watchdog finds a process that waits for itself: it goes through the locks of the rooms
// again and again, and ends the process when that does not come to an end. Apps run on,
// and whoever started edged starts it anew.
type watchdog struct {
	every  time.Duration // from one look to the next
	checks []check
	alive  func() // after a look that ended well
	// stuck is called once when a look did not end; it does not return in a real process.
	stuck func(name string)
	// patience ticks while a look lasts, and patient is how many ticks it may last. Ticks
	// and not a deadline: a process that was frozen as a whole is not stuck.
	patience func() (ticks <-chan time.Time, stop func())
	patient  int
}

// Pace of the watchdog: a look each minute, which may take two.
const (
	watchEvery   = time.Minute
	watchTick    = 5 * time.Second
	watchPatient = 24
)

func (w *watchdog) run(ctx context.Context) error {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		if at := w.look(ctx); at != "" {
			w.stuck(at)
			return nil
		}
		w.alive()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look goes through all checks; it returns the name of the one that did not come back.
func (w *watchdog) look(ctx context.Context) (stuck string) {
	passed := make(chan struct{}, len(w.checks))
	go func() {
		for _, c := range w.checks {
			c.try()
			passed <- struct{}{}
		}
	}()
	ticks, stop := w.patience()
	defer stop()
	for n, waited := 0, 0; n < len(w.checks); {
		select {
		case <-ctx.Done():
			return ""
		case <-passed:
			n++
		case <-ticks:
			if waited++; waited >= w.patient {
				return w.checks[n].name
			}
		}
	}
	return ""
}

// watch is the loop of the box's own watchdog.
func (b *box) watch(ctx context.Context) error {
	notify := notifier(os.Getenv)
	w := &watchdog{
		every: watchPace(os.Getenv("WATCHDOG_USEC")), patient: watchPatient,
		patience: func() (<-chan time.Time, func()) { t := time.NewTicker(watchTick); return t.C, t.Stop },
		checks: []check{
			{"apps", func() { b.work.Status() }},
			{"usage", func() { b.meter.Pending() }},
			{"link", func() { b.link.Parent() }},
			{"records", func() { b.spool.Range() }},
			{"state", func() { b.state.Warnings(); _, _ = b.state.Get("blob", "clock") }},
			{"agent", func() { b.agent.Load().Totals(); b.agent.Load().Status() }},
		},
		alive: func() { notify("WATCHDOG=1") },
		stuck: func(name string) {
			b.log.Error("edged waits for itself and ends, to be started anew; apps run on", "room", name)
			dump(b.errs)
			b.exit(1)
		},
	}
	notify("READY=1")
	return w.run(ctx)
}

// dump writes what every goroutine waits for.
func dump(w io.Writer) { _ = pprof.Lookup("goroutine").WriteTo(w, 2) } // there is nobody to tell of a failure

// watchPace is the time between two looks: a minute, or less where the supervisor
// (sd_watchdog_enabled(3)) wants to hear sooner.
func watchPace(usec string) time.Duration {
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n <= 0 || n > int64(2*watchEvery/time.Microsecond) {
		return watchEvery
	}
	return max(time.Duration(n)*time.Microsecond/2, 100*time.Millisecond)
}

// notifier tells the supervisor how the process does, in the manner of sd_notify(3): a
// datagram to the socket that NOTIFY_SOCKET names. Without one it does nothing.
func notifier(getenv func(string) string) func(state string) {
	path := getenv("NOTIFY_SOCKET")
	if path == "" || path[0] != '/' && path[0] != '@' {
		return func(string) {}
	}
	return func(state string) {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // "@" is an abstract name
		if err != nil {
			return // a supervisor that went away hears nothing
		}
		defer conn.Close()
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write([]byte(state))
	}
}
