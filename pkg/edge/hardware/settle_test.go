package hardware

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"tributary.dev/tributary/pkg/api"
)

func hot(value int64) api.Inventory {
	s := api.Sensor{Label: "Core 0", Kind: "temperature", High: 80000, Critical: 100000, Value: &value}
	switch {
	case value >= s.Critical:
		s.State = "critical"
	case value >= s.High:
		s.State = "high"
	}
	return api.Inventory{Sensors: []api.SensorChip{{ID: "coretemp", Sensors: []api.Sensor{s}}}}
}

// A temperature near its limit is told of once, however it trembles.
func TestASensorNearItsLimitIsStill(t *testing.T) {
	var s settler
	now := time.Unix(0, 0)
	for n, step := range []struct {
		value int64
		state string
	}{{70000, ""}, {80000, "high"}, {79000, "high"}, {77500, "high"}, {80500, "high"}, {76900, ""}, {79900, ""}, {101000, "critical"}, {98000, "critical"}, {96000, "high"}, {60000, ""}} {
		if got := s.settle(hot(step.value), now).Sensors[0].Sensors[0].State; got != step.state {
			t.Errorf("step %d, %d: %q, want %q", n, step.value, got, step.state)
		}
	}
}

func TestALinkThatComesAndGoesIsFlapping(t *testing.T) {
	var s settler
	now := time.Unix(0, 0)
	up, down := api.Link{State: api.LinkUp, Speed: 1000}, api.Link{State: api.LinkDown}
	look := func(l api.Link) string {
		return s.settle(api.Inventory{NetDevices: []api.NetDevice{{Name: "eth0", Link: l}}}, now).NetDevices[0].Link.State
	}
	told, changes := "", 0
	for n := range 1000 {
		l := up
		if n%2 == 1 {
			l = down
		}
		if state := look(l); state != told {
			told, changes = state, changes+1
		}
		now = now.Add(3 * time.Second)
	}
	if told != LinkFlapping || changes > maxFlips+2 {
		t.Errorf("a link that changes every three seconds is %s, told of %d times", told, changes)
	}
	now = now.Add(flipTime)
	if state := look(down); state != api.LinkDown {
		t.Errorf("still for %s it is %s", flipTime, state)
	}
}

// What the kernel says is looked at within seconds; what changes nothing is not told of;
// when nothing is heard, it is looked at all the same.
func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		value, looks := int64(40000), 0
		pokes := make(chan func(), 8)
		fails := make(chan struct{})
		k := NewKeeper(func() api.Inventory { looks++; return hot(value) }, func(ctx context.Context, poke func()) error {
			pokes <- poke
			select {
			case <-ctx.Done():
			case <-fails:
			}
			return errors.New("deaf")
		}, slog.New(slog.DiscardHandler))
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		poke := <-pokes
		<-k.Changed()
		synctest.Wait()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		value = 90000
		began := time.Now()
		for range 100 {
			poke()
		}
		<-k.Changed()
		if d := time.Since(began); d > time.Second || k.Inventory().Sensors[0].Sensors[0].State != "high" {
			t.Errorf("told after %s: %+v", d, k.Inventory())
		}
		synctest.Wait()
		before := looks
		value = 91000
		for range 20 { // a storm of words that change nothing
			poke()
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := looks - before; n < 1 || n > 4 {
			t.Errorf("looked %d times in a storm of seven seconds", n)
		}
		select {
		case <-k.Changed():
			t.Error("a value that is not told made news")
		default:
		}
		value = 110000
		close(fails)
		began = time.Now()
		<-k.Changed()
		if d := time.Since(began); d > lookEvery+lookPause {
			t.Errorf("nobody said it, and it was found after %s", d)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestWhatTellsOfHardware(t *testing.T) {
	for event, want := range map[string]bool{
		"add@/devices/pci0000:00/0000:00:03.0/0000:01:10.0\x00ACTION=add\x00SUBSYSTEM=pci\x00": true,
		"remove@/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1\x00SUBSYSTEM=block\x00":    true,
		"add@/devices/virtual/net/veth12\x00ACTION=add\x00SUBSYSTEM=net\x00":                   false,
		"change@/devices/virtual/block/loop3\x00SUBSYSTEM=block\x00":                           false,
		"add@/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1\x00SUBSYSTEM=block\x00":      true,
		"add@/kernel/slab/x\x00SUBSYSTEM=slab\x00":                                             false,
		"libudev\x00\xfe\xed": false,
		"":                    false,
	} {
		if got := tellsOfHardware([]byte(event)); got != want {
			t.Errorf("%q: %v", event, got)
		}
	}
}

func FuzzWords(f *testing.F) {
	f.Add([]byte("add@/devices/x\x00SUBSYSTEM=pci\x00"))
	f.Add([]byte("\x20\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x02\x00\x00\x00\x43\x10\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tellsOfHardware(b)
		links := linkFilter{}
		links.news(b)
		links.news(b)
		smart(b)
	})
}
