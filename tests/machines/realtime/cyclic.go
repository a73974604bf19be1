//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cyclictest has a thread of the real-time class sleep on the last isolated processor again and again, and counts by
// how many microseconds it woke up late. It leaves the processor's sleep as it is, which the box alone could forbid.
var cyclictest = []string{"/usr/bin/cyclictest", "-q", "-m", "-t", "1", "-p", "80", "-a", "3", "-i", "1000", "-l", "1000", "-h", "50000", "--laptop"}

// late is what one run of it saw, in microseconds.
type late struct {
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// side is one way to run it.
type side struct {
	name string
	run  func() ([]byte, error)
	seen []late
}

// latencies measures in turn, in the container that holds the isolated processors and as a program of the box on the
// same processors.
func latencies(ctx context.Context, b *box, runs int) error {
	sides := []*side{
		{name: "container", run: func() ([]byte, error) { return b.inside(ctx, "ran", cyclictest...) }},
		{name: "box", run: bare},
	}
	for range runs {
		for _, s := range sides {
			out, err := s.run()
			var l late
			if err == nil {
				l, err = readLate(out)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			fmt.Printf("realtime: latency of the %s: median %g us, max %g us\n", s.name, l.Median, l.Max)
			s.seen = append(s.seen, l)
		}
		slices.Reverse(sides) // who goes first changes
	}
	figure := map[string][]late{}
	for _, s := range sides {
		figure[s.name] = s.seen
	}
	text, err := json.Marshal(figure)
	fmt.Printf("realtime: figure %s.\n", text)
	return err
}

// bare runs it beside all containers. Nobody but who asks is on an isolated processor: this asks, for its child.
func bare() (out []byte, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever: the thread ends with its affinity
		var cpus unix.CPUSet
		cpus.Set(2)
		cpus.Set(3)
		if err = unix.SchedSetaffinity(0, &cpus); err != nil {
			return
		}
		out, err = exec.Command(cyclictest[0], cyclictest[1:]...).Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
	}()
	<-done
	return out, err
}

// readLate reads a histogram: "000012 000345" says that it woke up 12 us late 345 times. "# Max Latencies: 00077" is
// the latest, also where the histogram ends before.
func readLate(out []byte) (l late, err error) {
	var counts [][2]int
	total := 0
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "# Max Latencies: "); ok {
			if l.Max, err = strconv.ParseFloat(strings.TrimSpace(text), 64); err != nil {
				return l, err
			}
		}
		f := strings.Fields(lines.Text())
		if len(f) != 2 || f[0] == "#" {
			continue
		}
		us, err1 := strconv.Atoi(f[0])
		n, err2 := strconv.Atoi(f[1])
		if err1 == nil && err2 == nil && n > 0 {
			counts, total = append(counts, [2]int{us, n}), total+n
		}
	}
	if total == 0 || l.Max == 0 {
		return l, fmt.Errorf("it says %.300q", out)
	}
	half := (total + 1) / 2
	for _, c := range counts {
		if half -= c[1]; half <= 0 {
			l.Median = float64(c[0])
			break
		}
	}
	return l, nil
}
