//go:build linux

// Command clocks answers: does linuxptp, as edged has it run, set the clock of a machine?
//
// It runs in a guest of a test, as a program of tests/machines/inside: as `clocks leader` it gives the time, as
// `clocks follower BOUND` it takes it, and BOUND is how many nanoseconds it may be off. It obeys lines on the console:
// `set SECONDS` moves the machine's clock, `say` shows the time and what PTP says of it, `kpi` ends the quarter of an
// hour for which the offset is summed up, `off` ends it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/ptp"
)

// port is the only card.
const port = "eth0"

// Said is what `say` shows.
type Said struct {
	// Clock is the machine's, in nanoseconds since 1970.
	Clock    int64         `json:"clock"`
	Reading  ptp.Reading   `json:"reading"`
	Locked   bool          `json:"locked"`
	Holds    bool          `json:"holds"`
	Warnings []api.Warning `json:"warnings"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("clocks: failed:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	settings := ptp.Settings{Domain: 24, Software: true, Server: len(args) > 0 && args[0] == "leader"}
	if len(args) > 1 {
		var err error
		if settings.BoundNS, err = strconv.ParseInt(args[1], 10, 64); err != nil {
			return err
		}
	}
	var ahead atomic.Int64 // of the keeper's clock, so that a quarter of an hour ends when the test says
	kpis := make(chan api.KPI, 16)
	keeper := ptp.New(ptp.Config{
		Settings: settings, Ports: func() []string { return []string{port} }, Up: up, KPI: func(k api.KPI) { kpis <- k },
		Dir: "/run/ptp", PTP4L: "/usr/sbin/ptp4l", PHC2SYS: "/usr/sbin/phc2sys", Log: slog.Default(), Output: os.Stdout,
		Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	go func() { fmt.Println("clocks: failed:", keeper.Run(context.Background())) }() // as long as the guest
	fmt.Println("clocks: ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 2 && words[0] == "set":
			if err := set(words[1]); err != nil {
				return err
			}
			fmt.Println("clocks: set")
		case len(words) == 1 && words[0] == "say":
			say("said", show(keeper))
		case len(words) == 1 && words[0] == "kpi":
			ahead.Add(int64(15 * time.Minute))
			say("kpi", <-kpis)
		case len(words) == 1 && words[0] == "off":
			return nil
		default:
			return fmt.Errorf("no such command: %q", words)
		}
	}
	return errors.Join(errors.New("the console ended"), lines.Err())
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// set moves the machine's clock, as somebody does who does not ask PTP.
func set(seconds string) error {
	by, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	tv := unix.NsecToTimeval(time.Now().Add(time.Duration(by) * time.Second).UnixNano())
	return unix.Settimeofday(&tv)
}

func show(k *ptp.Keeper) Said {
	s := Said{Warnings: k.Warnings(), Holds: k.Holds()}
	s.Reading, _ = k.Reading()
	var metrics bytes.Buffer
	k.Metrics(&metrics)
	s.Locked = strings.Contains(metrics.String(), "edged_ptp_locked 1\n")
	s.Clock = time.Now().UnixNano()
	return s
}

func say(what string, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		fmt.Println("clocks: failed:", err)
		return
	}
	fmt.Printf("clocks: %s %s.\n", what, b)
}
