package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// Two locks taken in two orders: the watchdog names the room and the dump shows who waits.
func TestWatchdogFindsADeadlock(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var apps, usage sync.Mutex
	apps.Lock()
	defer apps.Unlock()
	var stuck string
	var said bytes.Buffer
	ticks := make(chan time.Time, 3)
	for range 3 {
		ticks <- time.Time{}
	}
	w := &watchdog{every: time.Minute, patient: 3,
		patience: func() (<-chan time.Time, func()) { return ticks, func() {} },
		checks: []check{
			{"apps", func() { apps.Lock(); defer apps.Unlock() }},
			{"usage", func() { usage.Lock(); defer usage.Unlock() }},
		},
		alive: func() { t.Error("it was called alive") },
		stuck: func(name string) { stuck = name; dump(&said) },
	}
	if err := w.run(ctx); err != nil || stuck != "apps" || !strings.Contains(said.String(), "TestWatchdogFindsADeadlock") {
		t.Errorf("%v, stuck at %q, dump of %d bytes", err, stuck, said.Len())
	}
}

// A look that takes long, but less than its time, is well; and it ends with the process.
func TestWatchdogIsPatient(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	looks := 0
	ticks := make(chan time.Time)
	w := &watchdog{every: time.Millisecond, patient: 3,
		patience: func() (<-chan time.Time, func()) { return ticks, func() {} },
		checks:   []check{{"slow", func() { ticks <- time.Time{}; ticks <- time.Time{} }}},
		alive: func() {
			if looks++; looks == 3 {
				cancel()
			}
		},
		stuck: func(name string) { t.Errorf("stuck at %q", name) },
	}
	if err := w.run(ctx); err != nil || looks != 3 {
		t.Errorf("%v after %d looks", err, looks)
	}
}

func TestNotifyAsSystemdHearsIt(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), fmt.Sprint("@tributary-test-", os.Getpid(), t.Name())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		notifier(func(string) string { return name })("WATCHDOG=1")
		_ = l.SetReadDeadline(time.Now().Add(wait.Limit))
		buf := make([]byte, 64)
		n, err := l.Read(buf)
		if err != nil || string(buf[:n]) != "WATCHDOG=1" {
			t.Errorf("%s: %q, %v", name, buf[:n], err)
		}
	}
	for _, name := range []string{"", "n", filepath.Join(t.TempDir(), "nobody")} {
		notifier(func(string) string { return name })("READY=1")
	}
}

func TestWatchPace(t *testing.T) {
	for usec, want := range map[string]time.Duration{"": time.Minute, "x": time.Minute, "-1": time.Minute, "30000000": 15 * time.Second, "600000000": time.Minute, "9223372036854775807": time.Minute, "1": 100 * time.Millisecond} {
		if got := watchPace(usec); got != want {
			t.Errorf("%q: %s, want %s", usec, got, want)
		}
	}
}
