package vitals

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// machine is a kernel whose numbers the test says.
type machine struct {
	mu             sync.Mutex
	busy, idle, rx uint64
	free           uint64
}

func (m *machine) Open(name string) (fs.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	return fstest.MapFS{
		"proc/stat":                            file(fmt.Sprintf("cpu  %d 0 0 %d 7 0 0 0 0 0\ncpu0 1 2 3 4\nintr 5\n", m.busy, m.idle)),
		"proc/meminfo":                         file("MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    250 kB\n"),
		"proc/loadavg":                         file("0.00 0.01 0.05 1/123 4567\n"),
		"proc/net/dev":                         file(fmt.Sprintf("Inter-|   Receive\n face |bytes\n    lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0\n  eth0:%d 2 0 0 0 0 0 0 4000 3 0 0 0 0 0 0\n  br0: 77 2 0 0 0 0 0 0 77 3 0 0 0 0 0 0\n", m.rx)),
		"proc/diskstats":                       file("   8       0 sda 100 0 2000 5 10 0 4000 6 0 0 0\n   8       1 sda1 100 0 2000 5 10 0 4000 6 0 0 0\n"),
		"sys/class/net/eth0/device/vendor":     file("0x8086\n"),
		"sys/class/net/lo/mtu":                 file("1\n"),
		"sys/class/net/br0/mtu":                file("1\n"),
		"sys/block/sda/device/model":           file("disk\n"),
		"sys/class/thermal/thermal_zone0/temp": file("41000\n"),
		"sys/class/thermal/thermal_zone1/temp": file("53500\n"),
		"sys/class/thermal/thermal_zone2/temp": file("not read\n"),
	}.Open(name)
}

func (m *machine) host() Host {
	return Host{Root: m, Disk: func() (uint64, uint64, error) {
		if m.free == 0 {
			return 0, 0, errors.New("no disk")
		}
		return 1000, m.free, nil
	}}
}

func TestRead(t *testing.T) {
	m := &machine{busy: 100, idle: 900, rx: 1000, free: 400}
	r := reader{host: m.host()}
	at := time.Unix(1e9, 0)
	for _, s := range r.read(at) {
		if s.Unit == "B/s" || s.Name == "cpu.busy" {
			t.Errorf("%s is %g at the first reading", s.Name, s.Value)
		}
	}
	m.busy, m.idle, m.rx = 130, 970, 21000
	got := map[string]float64{}
	for _, s := range r.read(at.Add(10 * time.Second)) {
		got[s.Name] = s.Value
	}
	want := map[string]float64{"cpu.busy": 30, "memory.used": 75, "processes": 123, "net.received": 2000, "net.sent": 0, "disk.read": 0, "disk.written": 0, "disk.used": 60, "temperature": 53.5}
	for name, v := range want {
		if is, ok := got[name]; !ok || math.Abs(is-v) > 1e-9 {
			t.Errorf("%s is %g (%v), want %g", name, is, ok, v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("samples are %v", got)
	}
	m.rx, m.free = 5, 0
	for _, s := range r.read(at.Add(20 * time.Second)) {
		if s.Name == "net.received" || s.Name == "disk.used" || s.Name == "cpu.busy" {
			t.Errorf("%s is %g after its counter went back, stood or could not be read", s.Name, s.Value)
		}
	}
	if n := len((&reader{host: Host{Root: fstest.MapFS{}, Disk: (&machine{}).host().Disk}}).read(at)); n != 0 {
		t.Errorf("%d samples of a machine without numbers", n)
	}
}

// TestRun: twenty minutes' quiet, then a process that takes all of the processor: one event, which says so.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{free: 400}
		var events []api.Event
		k := New(Config{Host: m.host(), Now: time.Now, Event: func(e api.Event) { events = append(events, e) }})
		k.SetEvery(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()
		pass := func(seconds int, share uint64) {
			for i := range seconds {
				time.Sleep(time.Second)
				synctest.Wait() // the reading of this second is over, which the race detector hears of by this alone
				m.mu.Lock()
				m.busy += share + uint64(i*7%3)
				m.idle += 100 - share - uint64(i*7%3)
				m.mu.Unlock()
				synctest.Wait()
			}
		}
		time.Sleep(time.Millisecond) // readings come after what they are to read
		pass(1200, 10)
		if len(events) > 0 {
			t.Fatalf("while nothing is odd: %+v", events)
		}
		pass(30, 90)
		if len(events) != 1 || events[0].Name != api.EventAnomaly || events[0].Subject != "cpu.busy" || !strings.HasPrefix(events[0].Message, "cpu.busy is 9") {
			t.Fatalf("events are %+v", events)
		}
		k.SetEvery(0) // what was learned is forgotten
		pass(600, 50)
		if len(events) != 1 {
			t.Errorf("events are %+v after the pace was changed", events)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
