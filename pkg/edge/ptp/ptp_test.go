package ptp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/tests/wait"
)

func TestConfig(t *testing.T) {
	s := Settings{Domain: 24}
	got := s.Config("/run/ptp", []string{"eth1", "eth2"})
	for _, want := range []string{"domainNumber 24\n", "network_transport L2\n", "time_stamping hardware\n", "slaveOnly 1\n", "logAnnounceInterval -3\n", "free_running 0\n", "boundary_clock_jbod 1\n", "sanity_freq_limit 0\n", "step_threshold 1.0\n", "uds_address /run/ptp/ptp4l\n", "[eth1]\n[eth2]\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("without %q:\n%s", want, got)
		}
	}
}

func TestJudge(t *testing.T) {
	slave := Reading{State: "slave", OffsetNS: -2000}
	for _, c := range []struct {
		s    Settings
		r    Reading
		err  error
		age  time.Duration
		want string
	}{
		{Settings{}, Reading{State: "slave", OffsetNS: 1500}, nil, 0, ""},
		{Settings{}, slave, nil, 0, "ptp-offset"},
		{Settings{BoundNS: 2000}, slave, nil, patience, ""},
		{Settings{}, Reading{State: "listening"}, nil, 0, ""},
		{Settings{}, Reading{State: "listening"}, nil, patience, "ptp-unlocked"},
		{Settings{}, Reading{State: "master"}, nil, patience, "ptp-unlocked"},
		{Settings{Server: true}, Reading{State: "master"}, nil, patience, ""},
		{Settings{}, Reading{}, errors.New("refused"), 0, ""},
		{Settings{Server: true}, Reading{}, errors.New("refused"), patience, "ptp-not-running"},
	} {
		name := ""
		if list := Judge(&c.s, c.r, c.err, c.age); len(list) > 0 {
			name = list[0].Name
		}
		if name != c.want {
			t.Errorf("%+v: %q, not %q", c, name, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(request(idTimeStatusNP, anyPort, 24, 1))
	f.Add(answer(idTimeStatusNP, make([]byte, 50)))
	f.Add(answer(idPortDataSet, make([]byte, 26)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, id, data, err := parse(b); err == nil {
			var r Reading
			_ = r.take(id, data)
		}
	})
}

func answer(id uint16, data []byte) []byte {
	b := append(request(id, anyPort, 0, 0), data...)
	b[headerBytes+12] = actionReply
	n := len(data) + 2
	b[headerBytes+bodyBytes+2], b[headerBytes+bodyBytes+3] = byte(n>>8), byte(n)
	return b
}

func TestAnswers(t *testing.T) {
	data := make([]byte, 50)
	data[7], data[41], data[42], data[49] = 9, 1, 0xab, 0xcd
	var r Reading
	_, id, got, err := parse(answer(idTimeStatusNP, data))
	if err != nil || r.take(id, got) != nil || r.OffsetNS != 9 || !r.Present || r.Grandmaster != "ab000000000000cd" {
		t.Errorf("%+v %v", r, err)
	}
	port := make([]byte, 26)
	port[10] = 9
	_, id, got, err = parse(answer(idPortDataSet, port))
	if err != nil || r.take(id, got) != nil || r.State != "slave" {
		t.Errorf("%+v %v", r, err)
	}
	port[10] = 4
	if err := r.take(idPortDataSet, port); err != nil || r.State != "slave" {
		t.Errorf("a second port that listens makes it %+v", r)
	}
	if err := r.take(idDefaultDataSet, make([]byte, 20)); err != nil || r.ports != 0 {
		t.Errorf("%+v %v", r, err)
	}
	current := make([]byte, 18)
	current[15] = 5 // nanoseconds by 2^16
	if err := r.take(idCurrentDataSet, current); err != nil || r.DelayNS != 5 {
		t.Errorf("%+v %v", r, err)
	}
	if _, _, _, err := parse(answer(idPortDataSet, port)[:60]); err == nil {
		t.Error("an answer that is cut off was read")
	}
}

// TestBetweenNamespaces has linuxptp agree on the time over a pair of veth, by software
// timestamps; no clock is set. One end gives the time, the other locks to it, and says so
// when the first is gone.
func TestBetweenNamespaces(t *testing.T) {
	ptp4l := program(t, "ptp4l")
	if os.Getuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	ns := [2]string{fmt.Sprintf("ptpa%d", os.Getpid()), fmt.Sprintf("ptpb%d", os.Getpid())}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	for _, n := range ns {
		ip("netns", "add", n)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n).Run() })
	}
	ip("-n", ns[0], "link", "add", "ptp0", "type", "veth", "peer", "name", "ptp0", "netns", ns[1])
	ip("-n", ns[1], "link", "add", "idle0", "type", "veth", "peer", "name", "idle1") // a second port, that hears nobody
	var keepers [2]*Keeper
	var end [2]func()
	ports := [2][]string{{"ptp0"}, {"ptp0", "idle0"}}
	for i, n := range ns {
		dir, err := os.MkdirTemp("", "ptp") // short: a socket's path is
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		k := New(Config{Settings: Settings{Domain: 24, Software: true, Server: i == 0, FreeRunning: true, BoundNS: 1e9},
			Ports: func() []string { return ports[i] }, Up: func(name string) error { return exec.Command("ip", "-n", n, "link", "set", name, "up").Run() },
			Dir: dir, PTP4L: ptp4l, Now: time.Now, Log: slog.New(slog.DiscardHandler),
			Wrap: func(argv []string) []string { return append([]string{"ip", "netns", "exec", n}, argv...) }})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		end[i] = func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		keepers[i] = k
	}
	gone := false
	defer func() {
		end[1]()
		if !gone {
			end[0]()
		}
	}()
	wait.Seen(t, "one gives the time and the other follows", func() (any, bool) {
		a, _ := keepers[0].Reading()
		b, ok := keepers[1].Reading()
		return []Reading{a, b}, ok && (a.State == "master" || a.State == "grand-master") && keepers[1].cfg.Settings.follows(&b) && b.DelayNS != 0
	})
	r, _ := keepers[1].Reading()
	t.Logf("offset %d ns, delay %d ns, grandmaster %s", r.OffsetNS, r.DelayNS, r.Grandmaster)
	var text bytes.Buffer
	keepers[1].Metrics(&text)
	if !strings.Contains(text.String(), "edged_ptp_locked 1\n") || !strings.Contains(text.String(), "edged_ptp_offset_seconds ") {
		t.Errorf("metrics:\n%s", text.String())
	}
	end[0]()
	gone = true
	wait.Until(t, "nobody is followed", func() bool {
		b, _ := keepers[1].Reading()
		return b.State == "listening" && len(Judge(&keepers[1].cfg.Settings, b, nil, patience)) == 1
	})
}

// What ports are there may change: the programs run on those that there are.
func TestPorts(t *testing.T) {
	dir := t.TempDir()
	ports := make(chan []string, 1)
	now := []string{}
	var up []string
	k := New(Config{Settings: Settings{Software: true}, Dir: dir, PTP4L: "/bin/false", Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Ports: func() []string {
			select {
			case now = <-ports:
			default:
			}
			return now
		},
		Up: func(name string) error { up = append(up, name); return nil }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	for _, names := range [][]string{{"eth1"}, {"eth1", "eth2"}} {
		ports <- names
		wait.Seen(t, "ptp4l is told of its ports", func() (any, bool) {
			b, _ := os.ReadFile(filepath.Join(dir, "ptp4l.conf"))
			return string(b), strings.HasSuffix(string(b), "["+strings.Join(names, "]\n[")+"]\n")
		})
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if strings.Join(up, " ") != "eth1 eth1 eth2" {
		t.Errorf("switched on: %v", up)
	}
	if k.Holds() {
		t.Error("the clock is held by a program that never ran")
	}
}

// The clock is PTP's while it follows somebody, and for an hour after.
func TestHolds(t *testing.T) {
	now := time.Unix(1e9, 0)
	k := New(Config{Now: func() time.Time { return now }})
	for _, c := range []struct {
		after time.Duration
		state string
		want  bool
	}{{0, "listening", false}, {0, "uncalibrated", true}, {0, "slave", true}, {time.Minute, "listening", true}, {58 * time.Minute, "faulty", true}, {time.Minute, "listening", false}, {0, "slave", true}, {0, "master", true}} {
		now = now.Add(c.after)
		k.note(Reading{State: c.state}, nil, now)
		if got := k.Holds(); got != c.want {
			t.Errorf("%s: %v", c.state, got)
		}
	}
	free := New(Config{Settings: Settings{FreeRunning: true}, Now: func() time.Time { return now }})
	free.note(Reading{State: "slave"}, nil, now)
	if free.Holds() {
		t.Error("who sets no clock holds it")
	}
}

func TestTally(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var of tally
		at := time.Unix(1e9, 0)
		if _, due := of.cut(at); due {
			t.Fatal("cut before anything was read")
		}
		list := rapid.SliceOfN(rapid.Int64Range(-1e9, 1e9), 0, 20).Draw(t, "offsets")
		sum := int64(0)
		for _, v := range list {
			of.add(v, true)
			sum += v
		}
		of.add(1<<40, false)
		k, due := of.cut(at.Add(kpiEvery))
		if !due || k.Count != uint64(len(list)) || k.Missing != 1 || k.To-k.From != kpiEvery.Milliseconds() {
			t.Fatalf("%+v", k)
		}
		if n := int64(len(list)); n > 0 && (k.Min != slices.Min(list) || k.Max != slices.Max(list) || k.Mean < (sum-n)/n || k.Mean > (sum+n)/n || k.RMS < max(k.Mean, -k.Mean)) {
			t.Fatalf("%+v of %v", k, list)
		}
		if _, due := of.cut(at.Add(kpiEvery)); due {
			t.Fatal("cut twice")
		}
		if _, due := of.cut(at.Add(-time.Hour)); !due {
			t.Fatal("a clock that was set back stops it")
		}
	})
}

// program finds one of linuxptp's, which this machine may lack.
func program(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs linuxptp's " + name + ": run tests/install-deps")
	}
	return path
}
